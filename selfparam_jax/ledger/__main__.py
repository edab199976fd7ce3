"""What was written into a model, injection by injection; takes one out again, or puts several into one adapter.

python -m selfparam_jax.ledger --workdir=runs/sequential list
python -m selfparam_jax.ledger --workdir=runs/sequential show ID
python -m selfparam_jax.ledger --workdir=runs/sequential undo ID [--measure]
python -m selfparam_jax.ledger --workdir=runs/sequential compose ID ID ... --out=DIR [--max_rank=64]
python -m selfparam_jax.ledger --workdir=runs/sequential export --out=DIR
python -m selfparam_jax.ledger --workdir=runs/sequential verify

The start of an ID will do if no other id starts with it. Of a run of several sequences, each has a ledger:
give --workdir=runs/sequential/sequences/000.
"""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable

from absl import app, flags

from selfparam_jax import command, served
from selfparam_jax.ledger import Ledger, write_composed
from selfparam_jax.lora import compose_lora, delta_norms
from selfparam_jax.workdir import flatten

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a sequential job, or of one of its sequences.")
OUT = flags.DEFINE_string("out", None, "For compose: a new directory for the adapter; for export: for the model.")
MAX_RANK = flags.DEFINE_integer(
    "max_rank", 0, "For compose: ranks above it are recompressed to it, with an error; 0 for none.", lower_bound=0
)
MEASURE = flags.DEFINE_bool(
    "measure",
    False,
    "For undo: ask all questions of the sequence with the entry and without it (minutes).",
)
flags.mark_flag_as_required("workdir")


def find_ledger(workdir: str) -> pathlib.Path:
    """The directory of the ledger in a work directory, or of that of its only sequence.

    Raises:
      ValueError: it has several sequences.
    """
    directory = pathlib.Path(workdir) / "ledger"
    within = sorted(pathlib.Path(workdir).glob("sequences/*/ledger"))
    if directory.exists() or not within:
        return directory
    if len(within) > 1:
        sequences = ", ".join(str(path.parent) for path in within)
        raise ValueError(f"{workdir} has {len(within)} sequences; give one as --workdir: {sequences}")
    return within[0]


def overall(norms: dict[str, float]) -> float:
    """Norm of all projections together."""
    return math.hypot(*norms.values())


def show_list(ledger: Ledger) -> None:
    """A table of all entries."""
    active = {entry.id for entry in ledger.active()}
    rows = [("number", "id", "name", "rank", "norm", "state")]
    for entry in ledger.entries():
        norm = overall(delta_norms(ledger.adapter(entry.id), entry.scale))
        state = "active" if entry.id in active else "undone"
        rows.append((str(entry.number), entry.id, entry.name, str(entry.rank), f"{norm:.4g}", state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show_entry(ledger: Ledger, id: str) -> None:
    """All fields of an entry, and how much it changes every projection."""
    entry = ledger.find(id)
    for name, value in flatten(dataclasses.asdict(entry)).items():
        print(f"{name}: {value}")
    print(f"state: {'active' if entry in ledger.active() else 'undone'}")
    norms = delta_norms(ledger.adapter(entry.id), entry.scale)
    print(f"norm of the delta: {overall(norms):.4g}")
    print_values(norms)


def undo(ledger: Ledger, id: str) -> None:
    """Takes an entry out of the model and says what follows; with --measure also what that does, asked before."""
    before = ledger.active()
    found = served.measure_undo(ledger, id) if MEASURE.value else None
    entry = ledger.undo(id)
    after = ledger.active()
    print(f"undone: {entry.id} ({entry.name}); its files stay")
    print(f"the served model is now W0 + {len(after)} of {len(ledger.entries())} deltas")
    if entry == before[-1]:
        print("it is exactly the model before this injection")
    else:
        later = sum(each.number > entry.number for each in after)
        print(f"{later} later injections stay; they were trained with it in the model")
    norms = [
        overall(delta_norms(compose_lora(ledger.adapters([each.id for each in entries])), 1.0))
        for entries in (before, after)
    ]
    print(f"norm of what was added to W0: {norms[0]:.4g} before, {norms[1]:.4g} now")
    if merged := served.exported_before(ledger):
        print(f"{merged} is still the model before; `export --out=DIR` writes this one")
    if found:
        show_measured(found)


def show_measured(found: dict) -> None:
    """What `served.measure_undo` found: F1 and log-likelihood of every context's answers, with the entry and not."""
    print(f"{'context':30}  {'F1 with':>8}  {'without':>8}  {'log-likelihood with':>20}  {'without':>8}")
    for line in found["contexts"]:
        mark = "*" if line["context"] == found["undone"] else " "
        (f1, f1_without), (likelihood, without) = (
            ["-" if value is None else f"{value:.3f}" for value in line[score]] for score in ("f1", "log_likelihood")
        )
        print(f"{mark}{line['context'][:29]:29}  {f1:>8}  {f1_without:>8}  {likelihood:>20}  {without:>8}")
    if found["kl"][0] is not None:
        print(f"KL to the base on general text: {found['kl'][0]:.4f} with, {found['kl'][1]:.4f} without")


def compose(ledger: Ledger, *ids: str) -> None:
    """Writes one adapter in place of several."""
    if not OUT.value:
        raise app.UsageError("compose needs --out=DIR, a new directory for the adapter")
    written = write_composed(OUT.value, ledger, ids, MAX_RANK.value)
    print(f"{OUT.value}: {len(ids)} entries as one adapter of rank {written['rank']} and scale 1")
    if written["error"]:
        print(f"recompressed; relative error {written['error']['overall']:.3g}")
        print_values(written["error"]["modules"])


def export(ledger: Ledger) -> None:
    """Writes the model as it is served: the base and all active entries."""
    if not OUT.value:
        raise app.UsageError("export needs --out=DIR, a new directory for the model")
    served.export_ledger(ledger, OUT.value)
    print(f"{OUT.value}: W0 + {len(ledger.active())} of {len(ledger.entries())} deltas")


def verify(ledger: Ledger) -> None:
    """Prints the problems and exits with 1 if there are any."""
    problems = ledger.verify()
    print("\n".join(problems) or f"{len(ledger.entries())} entries, all as they were written")
    if problems:
        sys.exit(1)


def print_values(values: dict[str, float]) -> None:
    """A line for every projection."""
    for name, value in values.items():
        print(f"  {name}: {value:.4g}")


@dataclasses.dataclass(frozen=True)
class Command:
    """A word of the command line: what it runs, how many ids it takes, and which flags are its own."""

    function: Callable[..., None]
    least: int = 0
    most: float = 0
    own_flags: tuple[str, ...] = ()


COMMANDS = {
    "list": Command(show_list),
    "show": Command(show_entry, 1, 1),
    "undo": Command(undo, 1, 1, ("measure",)),
    "compose": Command(compose, 1, math.inf, ("out", "max_rank")),
    "export": Command(export, own_flags=("out",)),
    "verify": Command(verify),
}
OWN_FLAGS = {flag for each in COMMANDS.values() for flag in each.own_flags}


def main(argv: list[str]) -> None:
    """Checks the command line and runs its command."""
    word, *ids = argv[1:] or [""]
    if word not in COMMANDS:
        raise app.UsageError(f"got {word!r}, expected one of {', '.join(COMMANDS)}")
    chosen = COMMANDS[word]
    if not chosen.least <= len(ids) <= chosen.most:
        wanted = "no id" if not chosen.most else "one id" if chosen.most == 1 else "one id or more"
        raise app.UsageError(f"{word} got {len(ids)} ids, expected {wanted}")
    for flag in sorted(OWN_FLAGS - set(chosen.own_flags)):
        if flags.FLAGS[flag].present:
            raise app.UsageError(f"{word} has no --{flag}")
    command.run(lambda: chosen.function(Ledger.open(find_ledger(WORKDIR.value)), *ids))


if __name__ == "__main__":
    app.run(main)
