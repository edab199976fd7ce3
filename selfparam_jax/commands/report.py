"""Makes the report of a finished job again, from the results in its work directory.

    selfparam report WORKDIR

Example: selfparam report runs/batch
"""

import argparse
import pathlib

from selfparam_jax.commands import command
from selfparam_jax.jobs.workdir import check_finished
from selfparam_jax.reports.report import write_report


def main(argv: list[str] | None = None) -> None:
    """Writes report.md and its pictures; ends the process with 1 for input that cannot be used."""
    parser = command.make_parser("report", __doc__)
    parser.add_argument("workdir", help="folder with results.json, metrics.jsonl and predictions.jsonl")
    command.run(_report, parser.parse_args(argv))


def _report(arguments: argparse.Namespace) -> None:
    check_finished(arguments.workdir)
    write_report(arguments.workdir)
    print(pathlib.Path(arguments.workdir) / "report.md")
