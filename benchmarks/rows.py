"""Measurements of several jobs: a row for each, and a table that grows with every one that ends."""

import pathlib
from collections.abc import Callable, Collection, Sequence

from absl import app

from selfparam_jax.commands import command
from selfparam_jax.distributed import files

Row = dict


def measure_rows(
    path: str,
    known: Collection[str],
    only: Sequence[str],
    measure: Callable[[str], Row],
    table_of: Callable[[list[Row]], str],
    **record: object,
) -> None:
    """Measures one job after another, writes PATH.json and PATH.md after each, and prints the table.

    Args:
      path: of the results, without an ending; the folder is made.
      known: names of all jobs, in their order.
      only: those that are wanted; none means all.
      measure: runs a job, or reads what it gave before.
      table_of: the rows as Markdown.
      record: what PATH.json says besides "rows".

    Raises:
      ValueError: a wanted job is not known.
    """
    if unknown := set(only) - set(known):
        raise ValueError(f"--only has {', '.join(sorted(unknown))}, expected some of {', '.join(known)}")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in known:
        if only and name not in only:
            continue
        rows.append(measure(name))
        files.write_json(f"{path}.json", {**record, "rows": rows})
        files.write_text(f"{path}.md", table_of(rows))
    print(table_of(rows))


def run(measure_all: Callable[[], None]) -> None:
    """The command line of a benchmark that has flags only."""

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        command.run(measure_all)

    app.run(main)
