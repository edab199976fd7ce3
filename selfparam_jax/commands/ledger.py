"""What was written into a model, injection by injection; takes one out again, or puts several into one adapter.

    selfparam ledger WORKDIR list
    selfparam ledger WORKDIR show ID
    selfparam ledger WORKDIR undo ID [--measure]
    selfparam ledger WORKDIR compose ID ID ... --out=DIR [--max_rank=64]
    selfparam ledger WORKDIR export --out=DIR [--format=hf|peft|gguf] [--dtype=bfloat16]
    selfparam ledger WORKDIR verify

WORKDIR is of a sequential job; of several sequences each has a ledger: give WORKDIR/sequences/000. The start of an ID
will do if no other id starts with it.

Example: selfparam ledger runs/sequential list
"""

import argparse
import dataclasses
import math
import pathlib
import sys
from collections.abc import Sequence

from selfparam_jax.commands import command
from selfparam_jax.commands.export import DTYPES, FORMATS, print_round_trip
from selfparam_jax.distributed.files import flatten
from selfparam_jax.distributed.ranges import Range
from selfparam_jax.jobs import ledger_model
from selfparam_jax.models.lora import compose_lora, delta_norms
from selfparam_jax.sequential.ledger import Entry, Ledger, write_composed

MAX_RANK = Range(1, 2**20, also={0: "no limit"})


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
        raise ValueError(f"{workdir} has {len(within)} sequences; give one of them: {sequences}")
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


def _norm_of(ledger: Ledger, entries: Sequence[Entry]) -> float:
    """Norm of what some entries add to the base together."""
    return overall(delta_norms(compose_lora(ledger.adapters([each.id for each in entries])), 1.0))


def undo(ledger: Ledger, id: str, measure: bool) -> None:
    """Takes an entry out of the model and says what follows; `measure` also says what that does, asked before."""
    before = ledger.active()
    found = ledger_model.measure_undo(ledger, id) if measure else None
    norms = [_norm_of(ledger, before)]  # reads all adapters: a damaged one is found before anything is changed
    entry = ledger.undo(id)
    after = ledger.active()
    print(f"undone: {entry.id} ({entry.name}); its files stay")
    print(f"the model is now W0 + {len(after)} of {len(ledger.entries())} deltas")
    if entry == before[-1]:
        print("it is exactly the model before this injection")
    else:
        later = sum(each.number > entry.number for each in after)
        print(f"{later} later injections stay; they were trained with it in the model")
    norms.append(_norm_of(ledger, after))
    print(f"norm of what was added to W0: {norms[0]:.4g} before, {norms[1]:.4g} now")
    if merged := ledger_model.exported_before(ledger):
        print(f"{merged} is still the model before; `export --out=DIR` writes this one")
    if found:
        show_measured(found)


def show_measured(found: dict) -> None:
    """Prints what `measure_undo` found: F1 and log-likelihood of every document's answers, with the entry and not."""
    print(f"{'context':30}  {'F1 with':>8}  {'without':>8}  {'log-likelihood with':>20}  {'without':>8}")
    for line in found["contexts"]:
        mark = "*" if line["context"] == found["undone"] else " "
        (f1, f1_without), (likelihood, without) = (
            ["-" if value is None else f"{value:.3f}" for value in line[score]] for score in ("f1", "log_likelihood")
        )
        print(f"{mark}{line['context'][:29]:29}  {f1:>8}  {f1_without:>8}  {likelihood:>20}  {without:>8}")
    if found["kl"][0] is not None:
        print(f"KL to the base on general text: {found['kl'][0]:.4f} with, {found['kl'][1]:.4f} without")


def compose(ledger: Ledger, ids: Sequence[str], out: str, max_rank: int) -> None:
    """Writes one adapter in place of several.

    Args:
      ledger: of a sequence.
      ids: of the entries, or their beginnings.
      out: a new directory.
      max_rank: ranks above it are recompressed to it; 0 for none.
    """
    written = write_composed(out, ledger, ids, max_rank)
    print(f"{out}: {len(ids)} entries as one adapter of rank {written['rank']} and scale 1")
    if written["error"]:
        print(f"recompressed; relative error {written['error']['overall']:.3g}")
        print_values(written["error"]["modules"])


def export(ledger: Ledger, out: str, form: str, dtype: str | None) -> None:
    """Writes the model as it stands: the base and all active entries.

    Args:
      ledger: of a sequence.
      out: a new directory.
      form: of `jobs.export.FORMATS`.
      dtype: of the weights; None as `selfparam export` has it.
    """
    print_round_trip(ledger_model.export_ledger(ledger, out, form, dtype))
    print(f"{out}: W0 + {len(ledger.active())} of {len(ledger.entries())} deltas")


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


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.make_parser("ledger", __doc__)
    parser.add_argument("workdir", help="work directory of a sequential job, or of one of its sequences")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("list", help="all entries")
    show = verbs.add_parser("show", help="all fields of an entry")
    undone = verbs.add_parser("undo", help="take an entry out of the model")
    for each in (show, undone):
        each.add_argument("id")
    undone.add_argument(
        "--measure", action="store_true", help="ask all questions with the entry and without it (minutes)"
    )
    composed = verbs.add_parser("compose", help="several entries as one adapter")
    composed.add_argument("id", nargs="+")
    composed.add_argument(
        "--max_rank",
        type=command.Number(int, MAX_RANK),
        default=0,
        help="recompress to this rank, with an error; 0 for none",
    )
    exported = verbs.add_parser("export", help="the base and all active entries, for other programs")
    exported.add_argument("--format", default="hf", choices=sorted(FORMATS))
    exported.add_argument("--dtype", choices=DTYPES, help="of the weights; default: the job's")
    for each in (composed, exported):
        each.add_argument("--out", required=True, help="a new directory")
    verbs.add_parser("verify", help="finds changed, missing and reordered entries")
    return parser


def run_verb(arguments: argparse.Namespace) -> None:
    """Opens the ledger and does what the command line says."""
    ledger = Ledger.open(find_ledger(arguments.workdir))
    if arguments.verb == "list":
        show_list(ledger)
    elif arguments.verb == "show":
        show_entry(ledger, arguments.id)
    elif arguments.verb == "undo":
        with ledger_model.lock_job(ledger):  # a job that is running would append to what it has read
            undo(ledger, arguments.id, arguments.measure)
    elif arguments.verb == "compose":
        compose(ledger, arguments.id, arguments.out, arguments.max_rank)
    elif arguments.verb == "export":
        export(ledger, arguments.out, arguments.format, arguments.dtype)
    else:
        verify(ledger)


def main(argv: list[str] | None = None) -> None:
    """Runs a verb on a ledger; ends the process with 1 for input that cannot be used."""
    command.run(run_verb, make_parser().parse_args(argv))
