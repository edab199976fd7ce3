"""The models of a work directory, or of a model and adapters, under the names that a server or a chat calls them.

base                 the base
injected             what the job made: its newest adapter, or the active entries of its ledger
injected:DOCUMENT    of job `single`: the model of one document
bank                 of job `single`: the model of the document that a text matches best (BM25); else the base
ledger:ID+ID         the base with these entries of a ledger and no others
NAME                 an adapter that was given as NAME=DIR
"""

import collections
import dataclasses
import difflib
import errno
import functools
import os
import pathlib
import threading
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from selfparam_jax.checkpoints import peft
from selfparam_jax.checkpoints.export import check_weights, digest_arrays
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.chat_templates import conversation_ids, end_of_turn
from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import group_passages, source_id
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.retrieval import Retriever
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.distributed.processes import is_distributed
from selfparam_jax.distributed.ranges import Range
from selfparam_jax.inference.batches import Variant
from selfparam_jax.inference.replies import Texts
from selfparam_jax.jobs.ask import read_adapter
from selfparam_jax.jobs.candidates import is_adapter, saved_candidate
from selfparam_jax.jobs.evaluation import INJECTED
from selfparam_jax.jobs.inputs import Job, reopen, start_backend
from selfparam_jax.jobs.sequential import sequences_of
from selfparam_jax.jobs.single import injection_directory
from selfparam_jax.jobs.workdir import check_whole, find_record, split_part
from selfparam_jax.models.lora import compose_lora
from selfparam_jax.models.parameters import tree_leaves
from selfparam_jax.sequential.ledger import Entry, Ledger

BASE, BANK, LEDGER = "base", "bank", "ledger"
ADAPTERS = 8  # adapters that stay in memory besides the base
MOST_ADAPTERS = Range(1, 100_000)


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a server is given.

    Attributes:
      model: the base.
      prompt: the format in which questions are asked: the job's, or "plain" without a job.
      documents: those that the models were made from, long ones as passages; [] without a job.
      directory: the work directory, or that of the one sequence that is served; None without a job.
      job: None without a job.
      ledger: of a sequence; None for other jobs.
      unfinished: whether a model whose training has not ended may answer.
    """

    model: Model
    prompt: Prompt
    documents: list[Document]
    directory: pathlib.Path | None = None
    job: Job | None = None
    ledger: Ledger | None = None
    unfinished: bool = False


def is_workdir(source: str) -> bool:
    """Whether a path is a job's work directory, or one of the injections or sequences in it."""
    return find_record(split_part(source)[0]) is not None


def open_source(source: str, dtype: str = "float32", unfinished: bool = False) -> Opened:
    """Opens a work directory or a model.

    Args:
      source: a work directory, WORKDIR/contexts/000 of job `single`, WORKDIR/sequences/000 of job `sequential`, or a
        model as `load_model` takes it.
      dtype: of a model; a work directory's is in its settings.
      unfinished: whether a model whose training has not ended may answer, with a warning.

    Returns:
      what it holds.

    Raises:
      ValueError, OSError: it is neither, or a work directory with several sequences.
    """
    if is_distributed():
        raise ValueError("a model that several processes share cannot be served; start one process")
    if not is_workdir(source):
        check_weights(source)
        start_backend(cache=True)
        model = load_model(source, dtype)
        return Opened(model, Prompt("plain", model.tokenizer, model.end_ids), [])
    workdir, part = split_part(source)
    job = reopen(workdir)
    if job.settings.job != "sequential":
        sources = group_passages(job.documents)
        parts = {injection_directory(job.workdir, place).name: place for place in range(len(sources))}
        if part is not None and part not in parts:
            raise ValueError(f"{source} is no injection of this job; it has {', '.join(parts)} in {workdir}/contexts")
        chosen = job.documents if part is None else list(sources[parts[part]].passages)
        return Opened(job.model, job.prompt, chosen, job.workdir, job, unfinished=unfinished)
    cut = sequences_of(job)
    if part is None and len(cut) > 1:
        raise ValueError(f"{source} has {len(cut)} sequences; give one, such as {source}/sequences/000")
    names = [each.directory.name for each in cut]
    if part is not None and part not in names:
        raise ValueError(f"{source} is no sequence of this job; it has {', '.join(names)} in {workdir}/sequences")
    sequence = cut[0 if part is None else names.index(part)]
    ledger = sequence.ledger(job.model)
    if ledger.entries():
        check_whole(sequence.directory, len(ledger.entries()), len(sequence.sources), "injection", unfinished)
    return Opened(job.model, job.prompt, list(sequence.documents), sequence.directory, job, ledger)


class ServedModels:
    """A catalogue of models (`inference.server.Catalogue`): each is made when it is asked for.

    The adapters that were asked for last stay in memory; others are read again.
    """

    def __init__(self, opened: Opened, adapters: Sequence[str] = (), most_adapters: int = ADAPTERS):
        """Checks what there is.

        Args:
          opened: of `open_source`.
          adapters: NAME=DIR each, an adapter in PEFT's layout or one that was composed from a ledger.
          most_adapters: that stay in memory besides the base, choices of a ledger's entries among them; at least 1.

        Raises:
          ValueError: the job has made nothing yet, or an adapter cannot be used.
        """
        MOST_ADAPTERS.check("most_adapters", most_adapters, int)
        self.opened, self.fingerprint = opened, opened.model.fingerprint
        self.texts = make_texts(opened.model)
        self._lock, self._most = threading.Lock(), most_adapters
        self._held: collections.OrderedDict[Hashable, Variant] = collections.OrderedDict()  # the latest is the last
        self._bank: list[str] = []  # names of the models of single documents
        self._makers: dict[str, Callable[[], Variant]] = {BASE: functools.cache(lambda: self._variant(BASE))}
        if opened.job is not None:
            self._add_injected(opened.job)
        for given in adapters:
            self._add_adapter(*_split_name(given))

    def names(self) -> list[str]:
        """All names but combinations of a ledger's entries."""
        base, *adapters = self._makers
        if self.opened.ledger is None:
            return [base, *([BANK] if self._bank else []), *adapters]
        return [base, INJECTED, *(f"{LEDGER}:{entry.id}" for entry in self.entries()), *adapters]

    def find(self, name: str, text: str = "") -> Variant:
        """The model of a name; of the bank that of the document which the text matches best, or the base.

        Raises:
          ValueError: there is none.
          OSError: it is not in memory, and its files are no longer there.
        """
        kind, _, rest = name.partition(":")
        with self._lock:
            if name in self._makers:
                return self._named(name)
            if self._bank and name == BANK:
                return self._named(self._of_bank(text))
            if self.opened.ledger is not None and name == INJECTED:
                return self._choice(tuple(entry.id for entry in self.opened.ledger.active()))
            if self.opened.ledger is not None and kind == LEDGER and rest:
                chosen = {self.opened.ledger.find(id).id for id in rest.split("+")}
                return self._choice(tuple(entry.id for entry in self.entries() if entry.id in chosen))
        names = self.names()
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}"
        raise ValueError(f"there is no model {name!r:.80}; {hint}")

    def entries(self) -> list[Entry]:
        """The ledger's entries, undone ones too; [] without a ledger."""
        return self.opened.ledger.entries() if self.opened.ledger else []

    def injected_name(self, document: Document) -> str | None:
        """The name of the model that a document is in; None if there is none."""
        known = self.names()
        return next((name for name in (INJECTED, f"{INJECTED}:{source_id(document)}") if name in known), None)

    def _named(self, name: str) -> Variant:
        return self._makers[BASE]() if name == BASE else self._hold(name, self._makers[name])

    def _hold(self, key: Hashable, make: Callable[[], Variant]) -> Variant:
        """The model of a key, made if it is not in memory; the one that was not asked for longest makes room."""
        if key not in self._held:
            while len(self._held) >= self._most:
                self._held.popitem(last=False)
            self._held[key] = make()
        self._held.move_to_end(key)
        return self._held[key]

    def _of_bank(self, text: str) -> str:
        """The name of the model that answers a text."""
        scores = self._retriever.scores(text)
        return self._bank[int(np.argmax(scores))] if scores.max() > 0 else BASE

    @functools.cached_property
    def _retriever(self) -> Retriever:
        sources = group_passages(self.opened.documents)
        return Retriever([source.text for source in sources if f"{INJECTED}:{source.id}" in self._bank])

    def _variant(self, name: str, lora: dict | None = None, scale: float = 1.0) -> Variant:
        model = self.opened.model
        if lora is None:
            return Variant(name, model.decoder(), model.variables)
        lora = meshes.put_same(model.mesh, lora)
        return Variant(name, model.decoder(lora_scale=scale), {**model.variables, "lora": lora})

    def _choice(self, ids: tuple[str, ...]) -> Variant:
        """The base with some of the ledger's entries.

        All entries are in its adapter, the others as zeros: every choice has the same shapes, so one program.
        """
        if not ids:
            return self._makers[BASE]()
        entries = self.entries()

        def make() -> Variant:
            adapters = self.opened.ledger.adapters([entry.id for entry in entries])
            chosen = [
                (lora, scale if entry.id in ids else 0.0)
                for entry, (lora, scale) in zip(entries, adapters, strict=True)
            ]
            return self._variant(f"{LEDGER}:{'+'.join(ids)}", compose_lora(chosen))

        return self._hold((tuple(entry.id for entry in entries), ids), make)

    def _add_injected(self, job: Job) -> None:
        if self.opened.ledger is not None:
            if not self.opened.ledger.entries():
                raise ValueError(f"{self.opened.directory} has no finished injection; run the job first")
            return
        scale = job.recipe.lora.scale
        if job.settings.job != "single":
            make = functools.partial(self._read_variant, INJECTED, job, job.workdir, scale, self.opened.unfinished)
            self._makers[INJECTED] = make
            self._named(INJECTED)  # read now, so that one that cannot be used is refused at the start
            return
        served = {source_id(document) for document in self.opened.documents}
        for place, source in enumerate(group_passages(job.documents)):
            directory = injection_directory(job.workdir, place)
            if source.id in served and (directory / "injected.json").exists():
                name = f"{INJECTED}:{source.id}"
                self._makers[name] = functools.partial(self._read_variant, name, job, directory, scale)
        if len(self._makers) == 1:
            raise ValueError(f"{job.workdir} has no finished injection; run the job first")
        if len(self._makers) > 2:
            self._bank = [name for name in self._makers if name != BASE]

    def _read_variant(
        self, name: str, job: Job, directory: pathlib.Path, scale: float, unfinished: bool = False
    ) -> Variant:
        if not directory.is_dir():  # it was when the server started
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
        return self._variant(name, read_adapter(job, directory, unfinished), scale)

    def _add_adapter(self, name: str, directory: str) -> None:
        if name in self._makers or name.partition(":")[0] in (BASE, BANK, INJECTED, LEDGER):
            raise ValueError(f"--adapter={name}={directory}: the name {name!r} is taken; choose another")
        if not is_adapter(directory):
            raise ValueError(f"{directory} is no adapter: it has neither {peft.CONFIG} nor adapter.json")

        def read() -> tuple[dict, str]:
            lora = saved_candidate(name, self.opened.model, directory).variables["lora"]
            return lora, digest_arrays({"/".join(path): leaf for path, leaf in tree_leaves(lora["layers"]).items()})

        lora, expected = read()  # now, so that one that cannot be used is refused at the start

        def make() -> Variant:
            again, found = read()
            if found != expected:
                raise ValueError(f"{directory} has changed since it was given as {name!r}; start the server again")
            return self._variant(name, again)

        self._makers[name] = make
        self._hold(name, lambda: self._variant(name, lora))


def _split_name(given: str) -> tuple[str, str]:
    name, equals, directory = given.partition("=")
    if not (name and equals and directory):
        raise ValueError(f"--adapter={given}, expected NAME=DIR")
    return name, directory


def make_texts(model: Model) -> Texts:
    """How text and conversations become a model's token ids.

    A completion's prompt begins with BOS, or EOS where there is none, as the prompt formats of jobs do.
    """
    prompt = Prompt("plain", model.tokenizer, model.end_ids)
    mark = end_of_turn(model.tokenizer) if model.has_chat_template else ""
    return Texts(
        lambda text: prompt.start_ids + prompt.encode(text),
        prompt.decode,
        functools.partial(conversation_ids, model.tokenizer) if model.has_chat_template else None,
        prompt.end_ids,
        (mark,) if mark and mark not in model.tokenizer.get_vocab() else (),
    )


def ask_ids(prompt: Prompt, question: str, document: Document | None = None) -> tuple[int, ...]:
    """Ids of a question in a job's format, a document before it or none."""
    before = prompt.start_ids if document is None else prompt.context_prefix(document.text)
    return before + prompt.question(question)
