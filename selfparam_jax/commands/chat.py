"""A conversation with a job's models, or with any model, in the terminal.

    selfparam chat WORKDIR|MODEL [--model=NAME] [--system=TEXT] [--adapter=NAME=DIR ...]

Lines go through the model's chat template. A model without a template is asked each line as a question of its own,
in the job's prompt format. Lines that begin with / are commands; /help lists them.
Without --model the injected model answers where there is one, else the base.

Example: selfparam chat runs/batch --model=injected
"""

import argparse
import contextlib
import secrets
import sys
from collections.abc import Callable, Iterator

from selfparam_jax.commands import command
from selfparam_jax.commands.serve import add_source
from selfparam_jax.data.documents import Document
from selfparam_jax.data.prompts import FORMATS
from selfparam_jax.distributed.ranges import SEED, Range
from selfparam_jax.evaluation.questions import SHORT_TOKENS
from selfparam_jax.inference.batches import Continuation
from selfparam_jax.inference.decoding import Sampling
from selfparam_jax.inference.engine import Engine
from selfparam_jax.inference.replies import ReplyText
from selfparam_jax.jobs.served import BASE, INJECTED, ServedModels, ask_ids, open_source
from selfparam_jax.reports.tables import counted

HELP = """\
/models            who can answer
/model NAME        let another answer; the conversation continues
/documents         the documents of the job
/document ID       put a document before the conversation; /document alone takes it away
/system TEXT       a system message; /system alone takes it away
/reset             forget the conversation
/quit              end (or Ctrl-D)"""


TOKENS, TOP_P = Range(1, 2**20), Range(0, 1, open_least=True)
TEMPERATURE = Range(1e-6, 100, also={0: "the most likely token"})


class Conversation:
    """What was said, who answers, and what stands before it all."""

    def __init__(self, models: ServedModels, engine: Engine, options: argparse.Namespace):
        """Begins one; `options` are the command line's."""
        self._models, self._engine, self._options = models, engine, options
        self.model = options.model or next((name for name in models.names() if name.startswith(INJECTED)), BASE)
        models.find(self.model)
        self.system, self.document = options.system, None
        self._turns: list[dict] = []
        self._commands: dict[str, Callable[[str], str]] = {
            "help": lambda _: HELP,
            "models": lambda _: "\n".join(self._models.names()),
            "model": self._choose_model,
            "documents": lambda _: "\n".join(each.id for each in self._models.opened.documents) or "there are none",
            "document": self._choose_document,
            "system": self._set_system,
            "reset": self._forget,
        }

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return self._models.texts.converse is not None

    def command(self, line: str) -> str:
        """Does what a line that begins with / says; returns what to print.

        Raises:
          ValueError: there is no such command, or not what it names.
        """
        name, _, rest = line[1:].partition(" ")
        if name not in self._commands:
            raise ValueError(f"there is no command /{name}; /help lists them")
        return self._commands[name](rest.strip())

    def answer(self, line: str) -> Iterator[str]:
        """The answer to a line, piece by piece; it is part of the conversation when it is complete.

        Raises:
          ValueError: the conversation does not fit the model, or its template refuses it.
        """
        texts, options, prompt = self._models.texts, self._options, self._models.opened.prompt
        if self.chats:
            turns = [*self._before(), *self._turns, {"role": "user", "content": line}]
            ids, stop_ids, stop = texts.converse(turns), texts.end_ids, texts.end_texts
        else:
            turns, ids = [], ask_ids(prompt, line, self.document)
            stop_ids, stop = prompt.stop_ids, ("\n", *texts.end_texts)
        sampling = Sampling(options.temperature, options.top_p) if options.temperature else None
        seed = secrets.randbelow(2**32) if options.seed is None else options.seed
        most = options.max_tokens if self.chats else min(options.max_tokens, SHORT_TOKENS)
        wanted = Continuation(ids, most, stop_ids, sampling, seed)
        reply, said = ReplyText(texts.decode, frozenset(stop_ids), stop, strip=True), ""
        pieces = self._engine.stream(self._models.find(self.model, line), wanted)
        with contextlib.closing(pieces):
            for tokens, last in pieces:
                text = reply.add(tokens, last)
                said += text
                yield text
                if reply.ended:
                    break
        if self.chats:
            self._turns += [turns[-1], {"role": "assistant", "content": said}]

    def _before(self) -> list[dict]:
        """The system message and the document, as turns."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        if self.document is not None:
            text = FORMATS["chat"].context.format(context=self.document.text)
            turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "Go on."}]
        return turns

    def _choose_model(self, name: str) -> str:
        if name:
            self._models.find(name)
            self.model = name
        return f"{self.model} answers"

    def _choose_document(self, id: str) -> str:
        if not id:
            self.document = None
            return "no document"
        known: dict[str, Document] = {each.id: each for each in self._models.opened.documents}
        if id not in known:
            raise ValueError(f"there is no document {id!r}; /documents lists them")
        self.document = known[id]
        return f"before the conversation: {self.document.title or id}"

    def _set_system(self, text: str) -> str:
        self.system = text
        return "system message set" if text else "no system message"

    def _forget(self, _: str) -> str:
        self._turns.clear()
        return "forgotten"


def main(argv: list[str] | None = None) -> None:
    """Talks until /quit or the end of the input; ends the process with 1 for input that cannot be used."""
    parser = command.make_parser("chat", __doc__)
    add_source(parser)
    parser.add_argument("--model", default="", metavar="NAME", help="who answers first: base, injected, ...")
    parser.add_argument("--system", default="", help="a system message")
    parser.add_argument(
        "--max_tokens", type=command.Number(int, TOKENS), default=256, help="the longest answer (default: 256)"
    )
    parser.add_argument(
        "--temperature",
        type=command.Number(float, TEMPERATURE),
        default=0.0,
        help="0 takes the most likely token (default: 0)",
    )
    parser.add_argument(
        "--top_p",
        type=command.Number(float, TOP_P),
        default=1.0,
        help="draw from the most likely tokens only (default: 1)",
    )
    parser.add_argument(
        "--seed", type=command.Number(int, SEED), help="of the draws (default: another one every time)"
    )
    command.run(_chat, parser.parse_args(argv))


def _chat(options: argparse.Namespace) -> None:
    models = ServedModels(open_source(options.source, options.dtype, options.unfinished), options.adapter)
    with Engine(most_rows=1) as engine:
        talk = Conversation(models, engine, options)
        print(f"{models.opened.model.name}: {talk.model} answers. /help lists the commands.")
        if not talk.chats:
            print("This model has no chat template: each line is a question of its own.")
        refused = sum(not _reply(talk, line) for line in _lines(talk))
    if refused and not sys.stdin.isatty():  # nobody has seen it
        raise ValueError(f"{counted(refused, 'line')} of standard input could not be answered; see above")


def _lines(talk: Conversation) -> Iterator[str]:
    """Lines of the terminal, or of standard input where that is none."""
    if sys.stdin.isatty():
        with contextlib.suppress(ModuleNotFoundError):  # not in every Python
            import readline  # noqa: F401  (arrow keys and history in input())
    while True:
        try:
            line = input(f"{talk.model}> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            raise KeyboardInterrupt("ended") from None
        if line in ("/quit", "/exit"):
            return
        if line:
            yield line


def _reply(talk: Conversation, line: str) -> bool:
    """Prints what a line gives; a mistake in it, or Ctrl-C during an answer, ends only this line: False."""
    try:
        if line.startswith("/"):
            print(talk.command(line))
            return True
        for text in talk.answer(line):
            print(text, end="", flush=True)
        print()
        return True
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(" (stopped)")
    return False
