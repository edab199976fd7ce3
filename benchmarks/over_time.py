"""Facts that change over time, and questions that need two documents: what is learned of them.

    python -m benchmarks.over_time --out=DIR
    python -m benchmarks.over_time --out=DIR --only=batch,batch-dated --set=train.epochs=8

The documents come with the package: eight dated documents of one library, of which later ones change earlier facts
(`examples:over_time`), and eight that name one another (`examples:two_documents`). Every job of the table has a
directory of its own under `--out`; a finished job is not run again, an unfinished one resumes. The table grows with
every job: over_time.json and over_time.md.
"""

import json
import pathlib
import shutil

from absl import flags, logging
from ml_collections import ConfigDict
from selfparam_jax.configs import batch, sequential

from benchmarks.rows import measure_rows, run
from selfparam_jax.data.documents import read_document_files
from selfparam_jax.distributed import files
from selfparam_jax.jobs.inputs import example_documents, prepare
from selfparam_jax.jobs.run import run_job

OUT = flags.DEFINE_string("out", None, "Directory for the jobs and the results.", required=True)
ONLY = flags.DEFINE_list("only", [], "Only these jobs (names of the first column, before the colon).")
SET = flags.DEFINE_multi_string("set", [], "NAME=VALUE of a setting, for all jobs.")

DATED = {"targets.dated": True}
OVER_TIME, TWO = "examples:over_time", "examples:two_documents"
# Name, what it is, configuration, documents, changes.
JOBS = {
    "batch": ("all dated documents at once, pairs as they are", batch, OVER_TIME, {}),
    "batch-dated": ("the same, targets.dated", batch, OVER_TIME, DATED),
    "sequence": ("dated documents one after another, pairs as they are", sequential, OVER_TIME, {}),
    "sequence-dated": ("the same, targets.dated", sequential, OVER_TIME, DATED),
    "two": ("documents that name one another, single facts", batch, TWO, {}),
    "two-step": ("the same, targets.two_step_pairs=6", batch, TWO, {"targets.two_step_pairs": 6}),
}


def config_of(name: str) -> ConfigDict:
    """The configuration of a job."""
    _, module, contexts, changes = JOBS[name]
    config = module.get_config()
    config.contexts = contexts
    config.export_dtype = ""
    for change in SET.value:
        setting, _, value = change.partition("=")
        config.update_from_flattened_dict({setting: _value(value)})
    config.update_from_flattened_dict(changes)
    return config


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def measure(name: str) -> dict:
    """Runs one job, or reads what it gave before; returns its line of the table."""
    out = pathlib.Path(OUT.value)
    directory, config = out / name, config_of(name)
    answers = out / "answers" / config.contexts.partition(":")[2]
    logging.info("%s: %s", name, JOBS[name][0])
    prepare(config, directory)
    if answers.exists():  # the untouched model answers the same in every job
        shutil.copytree(answers, directory / "answers", dirs_exist_ok=True)
    results = run_job(config, directory)
    shutil.copytree(directory / "answers", answers, dirs_exist_ok=True)
    return {"name": name, "what": JOBS[name][0], **summarize(results), "seen": seen(config, directory)}


def seen(config: ConfigDict, directory: pathlib.Path) -> dict:
    """Questions of two documents by whether a training pair asks for the same of the same two, in other words.

    Returns:
      {"trained on" or "never": {"questions", "injected": [F1, share with the gold answer]}}; {} without such pairs.
    """
    lines = [line for line in files.read_lines(directory / "targets.jsonl") if line["kind"] == "qa"]
    trained = {(line["context"], line["answer"]) for line in lines if "+" in line.get("context", "")}
    answers = {(r["context"], r["question"]): r for r in files.read_lines(directory / "predictions.jsonl")}
    groups: dict[str, list[dict]] = {}
    for document in read_document_files(example_documents(config.contexts)[0]) if trained else ():
        for question in document.questions:
            if question.documents:
                known = ("+".join(question.documents), question.answers[0]) in trained
                record = answers[document.id, question.question]["injected"]
                groups.setdefault("trained on" if known else "never", []).append(record)
    return {
        name: {
            "questions": len(records),
            "injected": [sum(record[metric] for record in records) / len(records) for metric in ("f1", "contains")],
        }
        for name, records in groups.items()
    }


def summarize(results: dict) -> dict:
    """Per kind of question and system F1 and the share of answers with the gold one; steps, seconds, perplexity."""
    drift = results["drift"]
    return {
        "kinds": {
            entry["kind"]: {
                "questions": entry["questions"],
                **{system: [score["f1"], score["contains"]] for system, score in entry["scores"].items() if score},
            }
            for entry in results["kinds"]
        },
        "steps": results["steps"],
        "train_s": results["timing"]["train_s"],
        "perplexity": drift["perplexity_after"] / drift["perplexity_before"] - 1,
        "retention": (results.get("sequential") or {}).get("f1", {}).get("retention"),
    }


def table_of(rows: list[dict]) -> str:
    """The rows as Markdown: F1, and in brackets the share of answers that contain the gold one."""
    lines = [
        "| job | kind of question | questions | Base Q | Base C+Q | injected | steps | training | perplexity |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        for number, (kind, found) in enumerate(row["kinds"].items()):
            scores = [_cell(found.get(system)) for system in ("base_q", "base_cq", "injected")]
            ends = (
                [str(row["steps"]), f"{row['train_s']:.0f} s", f"{row['perplexity']:+.1%}"]
                if not number
                else [""] * 3
            )
            what = f"{row['name']}: {row['what']}" if not number else ""
            lines.append("| " + " | ".join([what, kind, str(found["questions"]), *scores, *ends]) + " |")
        for name, found in row["seen"].items():
            cells = [
                "",
                f"two_documents, {name}",
                str(found["questions"]),
                "",
                "",
                _cell(found["injected"]),
                *[""] * 3,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(scores: list[float] | None) -> str:
    return f"{scores[0]:.3f} ({scores[1]:.3f})" if scores else ""


def measure_all() -> None:
    """Runs what is missing, and writes the table after each."""
    path = f"{OUT.value}/over_time"
    measure_rows(path, JOBS, ONLY.value, measure, table_of, settings=SET.value)


if __name__ == "__main__":
    run(measure_all)
