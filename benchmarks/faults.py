"""The campaign of injected faults: many tries of what the tests in tests/faults try a few times, as a table.

    python -m benchmarks.faults --tries=100 --out=faults.md
    python -m benchmarks.faults --tries=20 --out=faults.md --only=kills --match="export and gguf"

Commands are killed at random moments, or started twice at once; files of finished and of unfinished runs lose a bit,
their end or what was written last before a power cut; readers get files that were changed at random. It needs the
extra `test`. The table grows: what `--out` has already is counted in.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import flags

from benchmarks.rows import run
from selfparam_jax.distributed import files

OUT = flags.DEFINE_string(
    "out", None, "Where the table goes (Markdown), and, beside it, its counts (JSON).", required=True
)
TRIES = flags.DEFINE_integer("tries", 100, "Tries of each fault on each target.", lower_bound=1)
ONLY = flags.DEFINE_list("only", [], "Only these parts: files, kills, readers.")
MATCH = flags.DEFINE_string("match", "", "Only tests whose names match this, as pytest's -k has it.")

PARTS = ("files", "kills", "readers")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def count(lines: list[dict], before: list[dict]) -> list[dict]:
    """Rows of {"fault", "where", "outcomes": {outcome: number}}, earlier rows first."""
    counts: dict[tuple[str, str], collections.Counter] = {}
    for row in before:
        counts.setdefault((row["fault"], row["where"]), collections.Counter()).update(row["outcomes"])
    for line in lines:
        counts.setdefault((line["fault"], line["where"]), collections.Counter())[line["outcome"]] += 1
    return [{"fault": fault, "where": where, "outcomes": dict(found)} for (fault, where), found in counts.items()]


def table_of(rows: list[dict]) -> str:
    """The counts as Markdown, a row for each fault and target."""
    lines = ["| fault | where | tried | what happened |", "| --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: (row["fault"], row["where"])):
        outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(row["outcomes"].items()))
        lines.append(f"| {row['fault']} | {row['where']} | {sum(row['outcomes'].values())} | {outcomes} |")
    return "\n".join(lines) + "\n"


def measure_all() -> None:
    """Runs the tests, writes and prints the table."""
    if unknown := set(ONLY.value) - set(PARTS):
        raise ValueError(f"--only has {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    chosen = [f"tests/faults/test_{part}.py" for part in PARTS if not ONLY.value or part in ONLY.value]
    out = pathlib.Path(OUT.value).resolve()
    counts = out.with_suffix(".json")
    before = files.read_json(counts)["rows"] if counts.exists() else []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        log = pathlib.Path(folder, "log.jsonl")
        settings = {"FAULTS_TRIES": str(TRIES.value), "FAULTS_LOG": str(log)}
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-o", "timeout=0", "-k", MATCH.value, *chosen]
        failed = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=False).returncode
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    rows = count(lines, before)
    files.write_json(counts, {"rows": rows})
    files.write_text(out, table_of(rows))
    print(table_of(rows))
    if failed:
        raise ValueError("not every try went as it must; see the failures above. The table has the others")


if __name__ == "__main__":
    run(measure_all)
