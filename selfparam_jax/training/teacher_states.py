"""The teacher's states for all sentences of an injection, read once and stored: in memory, or in files.

Each context has one file, named by everything that its states depend on: a change of anything leads to another
file. It ends with a checksum of its contents; where it is damaged, the teacher reads again.
"""

import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Sequence

import jax
import ml_dtypes
import numpy as np
from absl import logging

from selfparam_jax.data.packing import NO_SLOT
from selfparam_jax.distributed.files import open_array, replacing_own, write_array
from selfparam_jax.distributed.mesh import all_agree, share_of, sum_of_shares
from selfparam_jax.inference.prefix import LEAST_SHARED, read_prefixes
from selfparam_jax.models.attention import BLOCKS
from selfparam_jax.targets.sentences import Sentence, context_groups
from selfparam_jax.training.teacher import Reader, read_context, read_without_context

FORMAT = 2  # of the files; a new number makes all old ones unknown


class Store:
    """Hidden states of all loss tokens of an injection, by slot: [slots, D] in one part per context.

    A context's slots are contiguous (`sentences.first_slots`); its part is an array or a memory-mapped file.
    Of several processes each holds a share of every part.
    """

    def __init__(self, parts: Sequence[np.ndarray], counts: Sequence[int] | None = None):
        """Args:
        parts: per context the states that this process holds, [slots, D].
        counts: per context how many there are on all processes; None: all of them are here.
        """
        self._parts, self._shared = list(parts), counts is not None
        counts = [len(part) for part in parts] if counts is None else counts
        self._ends = np.cumsum([0, *counts])
        begins = [share_of(count).start if self._shared else 0 for count in counts]
        self._starts = self._ends[:-1] + np.asarray(begins, np.int64)  # slot of each part's first state

    def __len__(self) -> int:
        return int(self._ends[-1])

    def with_states(self, states: np.ndarray) -> "Store":
        """This store followed by other states [slots, D], the same on every process, in its dtype."""
        states = states.astype(self._parts[0].dtype if self._parts else states.dtype)
        if not self._shared:
            return Store([*self._parts, states])
        return Store([*self._parts, states[share_of(len(states))]], [*np.diff(self._ends), len(states)])

    def take(self, slots: np.ndarray) -> np.ndarray:
        """States [*slots.shape, D]; zeros where a slot is NO_SLOT or is held by another process."""
        flat = np.asarray(slots).reshape(-1)
        found = np.zeros((len(flat), self._parts[0].shape[1]), self._parts[0].dtype)
        owner = np.searchsorted(self._ends, flat, side="right") - 1
        for part in np.unique(owner[flat != NO_SLOT]):
            mine = np.flatnonzero((owner == part) & (flat != NO_SLOT))
            at = flat[mine] - self._starts[part]
            here = (at >= 0) & (at < len(self._parts[part]))
            found[mine[here]] = self._parts[part][at[here]]
        return found.reshape(*np.shape(slots), found.shape[1])

    def take_all(self, slots: np.ndarray) -> np.ndarray:
        """As `take`, for the slots of all processes; all of them must call it with the same slots."""
        return sum_of_shares(self.take(slots)) if self._shared else self.take(slots)


def digest(reader: Reader, prefix: Sequence[int], sentences: Sequence[Sentence]) -> str:
    """Names the states of sentences after a prefix by everything that they depend on; 40 hexadecimal digits.

    Token ids stand for tokenizer, prompt format and texts; the shape of the rows is not part of it.
    """
    what = {
        "format": FORMAT,
        "parameters": reader.identity,
        "architecture": repr(reader.model.clone(remat="none", attention=BLOCKS, sharding=None)),
        "prefix": list(map(int, prefix)),
        "sentences": [_identity(s) for s in sentences],
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:40]


def _identity(sentence: Sentence) -> list:
    """All of a sentence that its states depend on, beside what is read before it."""
    what = [list(map(int, sentence.taught_ids)), list(sentence.taught_tokens), sentence.start]
    if sentence.context is None and sentence.before is not None:
        what.append(list(map(int, sentence.before)))
    return what


def _alike(texts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """The texts in runs that begin alike (a prompt format's worked examples), each read once for its run."""
    runs: list[list[Sequence[int]]] = []
    for ids in texts:
        if runs and tuple(runs[-1][0][:LEAST_SHARED]) == tuple(ids[:LEAST_SHARED]):
            runs[-1].append(ids)
        else:
            runs.append([ids])
    return runs


def _save(path: pathlib.Path, states: np.ndarray) -> None:
    with replacing_own(path) as temporary:
        # .npy has no bfloat16: its bits are stored as integers.
        write_array(temporary, states.view(np.uint16) if states.dtype == ml_dtypes.bfloat16 else states)


def _open(path: pathlib.Path, count: int, reader: Reader, check: bool) -> np.ndarray | None:
    """The memory-mapped states of a file, or None if it is missing or damaged; `check` reads all of it."""
    if not path.exists():
        return None
    try:
        states = open_array(path, check=check)
    except ValueError as error:
        logging.warning("%s; the teacher reads these sentences again", error)
        return None
    dtype = np.dtype(reader.model.dtype)
    states = states.view(dtype) if states.dtype == np.uint16 else states
    whole = states.shape == (count, reader.model.config.hidden_size) and states.dtype == dtype
    return states if whole else None


def teacher_store(
    reader: Reader,
    prefixes: Sequence[Sequence[int]],
    sentences: Sequence[Sentence],
    directory: pathlib.Path | None = None,
    memory_limit: int = 256 << 20,
    progress: Callable[[int], None] | None = None,
) -> Store:
    """The states of all sentences: read from `directory` where they are, computed and written where not.

    If it is stopped at any point, the next call resumes after the last finished context. Files of the directory that
    belong to none of these sentences are removed at the end.

    Args:
      reader: how the teacher reads.
      prefixes: for each context, the ids that the teacher reads before a sentence.
      sentences: all target sentences.
      directory: of the files; None keeps the states in memory and touches no file.
      memory_limit: bytes up to which all states are held in memory; files are memory-mapped above it.
      progress: called after each context with the number of its sentences, if given.

    Returns:
      the states by slot.
    """
    groups = {context: [sentences[i] for i in members] for context, members in context_groups(sentences).items()}
    counts = {context: sum(len(sentence.loss_tokens) for sentence in chosen) for context, chosen in groups.items()}
    files = {}
    if directory is not None:
        own = _own_directory(directory)
        for context, chosen in groups.items():
            prefix = reader.start_ids if context is None else prefixes[context]
            files[context] = own / f"{digest(reader, prefix, chosen)}.npy"

    def open_part(context, check: bool = False) -> np.ndarray | None:
        share = share_of(counts[context])
        return _open(files[context], share.stop - share.start, reader, check) if files else None

    # A context that one process has lost is read again by all of them: they can only read together.
    there = all_agree([open_part(context, check=True) is not None for context in groups])
    missing = [context for context, has in zip(groups, there, strict=True) if not has]
    runs = _alike([prefixes[context] for context in missing if context is not None])
    reading = itertools.chain.from_iterable(read_prefixes(reader.model, reader.variables, run) for run in runs)
    parts = {}
    for context, chosen in groups.items():
        if context in missing:
            if context is None:
                states = read_without_context(reader, chosen)
            else:
                states = read_context(reader, next(reading), chosen)
            parts[context] = states[share_of(len(states))]
            if files:
                _save(files[context], parts.pop(context))
        if progress:
            progress(len(chosen))
    if files:
        for stray in [*own.glob("*.npy"), *own.glob(".*.npy.*.tmp")]:  # other states; what a kill cut off
            if stray not in files.values():
                stray.unlink()
        parts = {context: open_part(context) for context in groups}
        if sum(part.nbytes for part in parts.values()) <= memory_limit:
            parts = {context: np.array(part) for context, part in parts.items()}
    return Store(list(parts.values()), list(counts.values()) if jax.process_count() > 1 else None)


def _own_directory(directory: pathlib.Path) -> pathlib.Path:
    """Where this process keeps its share: the directory itself if it is the only one, else a folder of its own in it.

    Shares of another number of processes are no longer of use and are removed.
    """
    index, count = jax.process_index(), jax.process_count()
    own = directory if count == 1 else directory / f"{index}-of-{count}"
    own.mkdir(parents=True, exist_ok=True)
    if index == 0:
        for other in directory.glob("*-of-*"):
            if not other.name.endswith(f"-of-{count}"):
                shutil.rmtree(other)
    return own
