"""Documents without pairs, as people have them: what is learned of them, and how long it takes.

    python -m benchmarks.own_documents --out=DIR
    python -m benchmarks.own_documents --out=DIR --documents=FILE --size=1 --set=generator.wordings=2

The documents (minutes, a notice, a manual, a profile, rules, a report; each with questions that were written before
any run) are taken in twos. Each two are one default batch job, in a directory of its own under `--out`: the pairs are
written, the documents injected, the questions asked. A finished job is not run again.
"""

import json
import pathlib

import numpy as np
from absl import flags
from selfparam_jax.configs import base

from benchmarks.rows import run
from selfparam_jax.data.documents import Document, read_document_files
from selfparam_jax.data.resources import resource
from selfparam_jax.distributed import files
from selfparam_jax.jobs.run import run_job

DOCUMENTS = flags.DEFINE_string("documents", "", 'JSONL file of documents with questions; "": those of the package.')
OUT = flags.DEFINE_string("out", None, "Directory for the jobs.", required=True)
SIZE = flags.DEFINE_integer("size", 2, "Documents in a job.", lower_bound=1)
GROUPS = flags.DEFINE_integer("groups", 0, "At most this many jobs; 0: all.", lower_bound=0)
SET = flags.DEFINE_multi_string("set", [], "NAME=VALUE of a setting, such as generator.wordings=2.")

SYSTEMS = ("base_q", "base_cq", "injected")
FORMS = ("reading", "chat", "bare")  # columns of the job's reach table


def run_group(documents: list[Document], directory: pathlib.Path, changes: list[str]) -> dict:
    """Runs one job, or reads what it gave before; returns its line of the table."""
    directory.mkdir(parents=True, exist_ok=True)
    records = [
        {
            "id": document.id,
            "title": document.title,
            "context": document.text,
            "questions": [{"question": q.question, "answers": list(q.answers)} for q in document.questions],
        }
        for document in documents
    ]
    files.write_lines(directory / "documents.jsonl", records)
    config = base.get_config()
    config.contexts = str(directory / "documents.jsonl")
    config.export_dtype = ""
    for change in changes:
        name, _, value = change.partition("=")
        config.update_from_flattened_dict({name: _value(value)})
    results = run_job(config, directory / "run")
    return {**summarize(results), "documents": [document.id for document in documents], **_written(directory)}


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _written(directory: pathlib.Path) -> dict:
    lines = files.read_lines(directory / "run" / "pairs.jsonl")
    units = [line for line in lines if "kinds" in line]
    ruled = all("sentences" in unit for unit in units)  # other writers do not know what they left out
    return {
        "pairs": sum("question" in line for line in lines),
        **({name: sum(unit[name] for unit in units) for name in ("sentences", "covered")} if ruled else {}),
        "write_s": sum(unit["seconds"] for unit in units),
    }


def summarize(results: dict) -> dict:
    """F1 and the share of answers that contain the gold one, by system and form, with times in seconds and drift."""
    scores = {f"{name} f1": results["scores"][name]["f1"] for name in SYSTEMS}
    asked = results["reach"]["systems"]
    for name in ("base_cq", "injected"):
        scores |= {f"{name} {form}": asked[name][form] for form in FORMS}
    timing = {name: results["timing"][name] for name in ("teacher_s", "train_s", "total_s")}
    drift = results["drift"]
    rise = drift["perplexity_after"] / drift["perplexity_before"] - 1
    return {**scores, **timing, "steps": results["steps"], "drift": drift, "rise": rise}


def table(rows: list[dict]) -> str:
    """The rows as Markdown, and their mean."""
    header = ["documents", "pairs", "sentences covered", "Base F1", "Base C+Q F1", "F1", "of C+Q"]
    header += [*(f"{form} (C+Q)" for form in FORMS), "perplexity", "writing", "training", "in all"]
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    numbers = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if _is_number(rows[0][name])}
    for row in [*rows, {**numbers, "documents": ["mean"]}]:
        cells = [
            ", ".join(row["documents"]),
            f"{row['pairs']:.0f}",
            f"{row['covered']:.0f} of {row['sentences']:.0f}" if "covered" in row else "",
            *(f"{row[name]:.3f}" for name in ("base_q f1", "base_cq f1", "injected f1")),
            f"{row['injected f1'] / row['base_cq f1']:.2f}" if row["base_cq f1"] else "",
            *(f"{row[f'injected {form}']:.3f} ({row[f'base_cq {form}']:.3f})" for form in FORMS),
            f"{row['rise']:+.1%}".replace("%", " %"),
            *(f"{row[name]:.0f} s" for name in ("write_s", "train_s", "total_s")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def measure_all() -> None:
    """Runs the jobs and prints the table."""
    path = DOCUMENTS.value or str(resource("examples", "own_documents.jsonl"))
    documents = read_document_files(path)
    groups = [documents[n : n + SIZE.value] for n in range(0, len(documents), SIZE.value)]
    out = pathlib.Path(OUT.value)
    rows = [run_group(group, out / str(n), SET.value) for n, group in enumerate(groups[: GROUPS.value or None])]
    files.write_json(out / "own_documents.json", {"rows": rows})
    print(table(rows))


if __name__ == "__main__":
    run(measure_all)
