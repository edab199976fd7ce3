"""The console script `selfparam`: one verb a file of this folder."""

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from selfparam_jax.commands.output import end_unprinted, flush_output

# Verb -> what it does, in a few words; each is a module of this folder with a `main`.
VERBS = {
    "inject": "write your documents into a model",
    "run": "run a configured job",
    "ask": "ask a job's models",
    "chat": "talk to a job's models in the terminal",
    "serve": "a server and a page that answer as a job's models",
    "targets": "write question-answer pairs about documents",
    "plan": "does a job fit a machine, and how fast would it be",
    "compare": "compare models and checkpoints",
    "eval": "ask tasks of lm-evaluation-harness",
    "ledger": "what was injected; take it out again",
    "export": "write a job's model for other programs",
    "report": "make a job's report again",
    "recommend": "score recommendations as the benchmark does",
    "doctor": "what this installation can do",
}


def usage() -> str:
    """What `selfparam --help` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {words}" for verb, words in VERBS.items()]
    return (
        "Writes documents and dialogues into a language model's own weights.\n\nusage: selfparam VERB ...\n\n"
        + "\n".join(lines)
        + "\n\nselfparam VERB --help says more. Example: selfparam inject notes.txt --out=out"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb; ends the process with 2 for one that does not exist."""
    try:
        _run_verb(argv)
    except OSError as error:  # of printing: a command tells all others itself
        end_unprinted(error)
    finally:
        flush_output()


def _run_verb(argv: Sequence[str] | None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
        return
    if arguments[0] == "--version":
        print(importlib.metadata.version("selfparam-jax"))
        return
    verb, *rest = arguments
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(VERBS)}"
        print(f"error: selfparam has no verb {verb!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    importlib.import_module(f"selfparam_jax.commands.{verb}").main(rest)


if __name__ == "__main__":
    main()
