"""What the number and the kind of target sentences do to what a model learns: a table and a picture.

    python -m benchmarks.target_study --contexts=FILE --documents=FILE --out=DIR
    python -m benchmarks.target_study --contexts=FILE --documents=FILE --out=DIR --grid=full --model=ID --prompt=plain

`--contexts` has training pairs and held-out questions, `--documents` held-out questions alone. Contexts are taken in
groups; every cell of the study is one whole batch job on one group, in a directory of its own under `--out`, and a
finished cell is not run again (`--finished` only reports them). Cells of a part see about the same number of training
sentences (`--exposures` per context), so what differs is which; pairs that a cell's own setting leaves out are not
made up for. `--grid=full` is meant for a GPU: larger groups, more of them, more values.

Two further parts are run when they are named, `--parts=texts,distractors`. "texts": what each optional kind of
prompts (a summary, a dialogue, ...) adds to written questions; a cell has as many epochs as it takes to read about as
many words, so that all have about the same number of steps. "distractors": other documents in the teacher's prompt.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import shutil

import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags, logging
from selfparam_jax.configs import base

from selfparam_jax.commands import command
from selfparam_jax.data.documents import Document, read_document_files
from selfparam_jax.distributed import files
from selfparam_jax.evaluation.likelihood import question_log_likelihoods
from selfparam_jax.evaluation.metrics import bootstrap_interval
from selfparam_jax.jobs.ask import read_adapter
from selfparam_jax.jobs.inputs import Job, prepare
from selfparam_jax.jobs.run import run_job
from selfparam_jax.jobs.settings import read_settings
from selfparam_jax.jobs.targets import write_targets
from selfparam_jax.targets.config import GeneratorConfig
from selfparam_jax.targets.filter_pairs import filter_pairs
from selfparam_jax.targets.question_prompts import load_prompts
from selfparam_jax.targets.write_pairs import read_written, with_written_pairs
from selfparam_jax.training.inject import teacher_reader

CONTEXTS = flags.DEFINE_string("contexts", None, "JSONL file of contexts with qa_pairs and questions.")
DOCUMENTS = flags.DEFINE_string("documents", None, "JSONL file of contexts with questions, for the generator.")
OUT = flags.DEFINE_string("out", None, "Directory for the cells and the results.", required=True)
PARTS = flags.DEFINE_list("parts", ["number", "kinds", "answers", "generator"], "Parts of the study to run.")
GRID = flags.DEFINE_enum("grid", "small", ["small", "full"], "How many values, groups and contexts.")
GROUPS = flags.DEFINE_integer("groups", 0, "Groups of contexts; 0: 3, or 8 in the full grid.")
SIZE = flags.DEFINE_integer("size", 0, "Contexts per group; 0: 2, or 10 in the full grid.")
EXPOSURES = flags.DEFINE_integer("exposures", 160, "Training pairs seen per context, epochs counted.")
FINISHED = flags.DEFINE_bool("finished", False, "Run nothing: report the cells that are finished.")
MODEL = flags.DEFINE_string("model", "", "Another model than the embedded one.")
WRITER = flags.DEFINE_string("writer", "", "Another model that writes, for the part texts (generator.model).")
PROMPT = flags.DEFINE_string("prompt", "", "Another prompt format than the default.")
DTYPE = flags.DEFINE_string("dtype", "float32", "dtype of weights and activations.")

ROW_LENGTH = 192  # a written answer may be two long sentences
UNRELATED = 60  # texts in all epochs together
REPLY_TOKENS = 320  # six pairs, or a text
COPIED = ("answers/base_q.jsonl", "answers/base_cq.jsonl", "teacher_answers.jsonl")
# What a part's other settings are compared with, question by question.
REFERENCE = {
    "number": "all pairs",
    "kinds": "pairs, unrelated x 1",
    "answers": "as written; KL + 0.5 CE",
    "generator": "tails alone",
    "texts": "questions",
    "distractors": "the document alone",
}
OF_DOCUMENTS = ("generator", "texts")  # parts that write about --documents
PAIR_WORDS = 12  # of a short question and its answer: what an exposure is, in words
SHORT = {"targets.agreement": "rewrite"}  # the pairs of --contexts with the teacher's own, short answers


@dataclasses.dataclass(frozen=True)
class Cell:
    """One job: a setting of one part on one group of contexts."""

    part: str
    label: str
    group: int
    source: str
    changes: dict
    pairs: int  # pairs per context in an epoch; 0: all

    @property
    def name(self) -> str:
        """Of its directory; equal settings of two parts are one job."""
        what = json.dumps([self.changes, self.pairs], sort_keys=True).encode()
        return f"{self.source}-{self.group}-{hashlib.sha256(what).hexdigest()[:8]}"


def settings_of(part: str, grid: str) -> list[tuple[str, dict, int]]:
    """(label, changes of the configuration, pairs per context) of a part's settings."""
    full = grid == "full"
    tails, tail_weights = {"targets.tails_per_context": 12}, [0.1, 0.3, 1.0] if full else [0.3]
    if part == "number":
        numbers = [1, 2, 5, 10, 15, 20, 30, 40, 0] if full else [5, 10, 20, 40, 0]
        return [(f"{n or 'all'} pairs", SHORT, n) for n in numbers]
    if part == "kinds":
        weights = [0.1, 0.3, 1.0, 3.0, 10.0] if full else [1.0, 3.0]
        return [
            ("pairs alone", {**SHORT, "targets.unrelated_per_epoch": 0}, 0),
            *(
                (f"pairs, unrelated x {w:g}", {**SHORT, **({} if w == 1 else {"targets.unrelated_weight": w})}, 0)
                for w in weights
            ),
            *(
                (f"pairs, tails x {w:g}, unrelated x 1", {**SHORT, **tails, "targets.tail_weight": w}, 0)
                for w in tail_weights
            ),
            ("tails, unrelated x 1", {**tails, "targets.qa_weight": 0.0}, 0),
        ]
    if part == "answers":
        kl, both = {"targets.answer_supervision": 0.0}, {}
        answers = {
            "as written": {},
            "those that the teacher gives": {"targets.agreement": "keep", "targets.least_agreement": 0.5},
            "the teacher's": SHORT,
        }
        if full:
            answers["as written, short ones"] = {"targets.answer_shape": "short"}
            answers["as written, sentences"] = {"targets.answer_shape": "sentence"}
        return [
            (f"{label}; {objective}", {**changes, **weights}, 0)
            for label, changes in answers.items()
            for objective, weights in (("KL", kl), ("KL + 0.5 CE", both))
        ]
    if part == "distractors":
        counts = [0, 1, 3, 7] if full else [0, 1]
        labels = {0: "the document alone", 1: "1 distractor"}
        return [(labels.get(n, f"{n} distractors"), {**SHORT, "targets.distractors": n}, 0) for n in counts]
    written = {"targets.generator": "local"}
    if part == "texts":
        asked = {**written, "generator.form": "chat", "generator.reply_tokens": REPLY_TOKENS}
        plain, further = kinds_of_prompts()
        return [
            ("questions", {**asked, "generator.kinds": plain}, 0),
            *((f"questions and {name}", {**asked, "generator.kinds": (*plain, name)}, 0) for name in further),
            ("questions and all of these", {**asked, "generator.kinds": (*plain, *further)}, 0),
        ]
    return [
        ("tails alone", tails, 0),
        ("written pairs", written, 0),
        ("written pairs, the teacher's answers", {**written, "targets.agreement": "rewrite"}, 0),
        (
            "written pairs, likely ones",
            {**written, "generator.least_likelihood": 0.3, "generator.least_gain": 0.1},
            0,
        ),
    ]


def kinds_of_prompts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The kinds of prompts in a chat that are asked for by default, and the optional ones."""
    kinds = [kind for kind in load_prompts().values() if kind.form == "chat"]
    return tuple(k.name for k in kinds if not k.optional), tuple(k.name for k in kinds if k.optional)


def all_cells(parts, grid: str, groups: int) -> list[Cell]:
    """The cells of some parts, one group after the other, so that an unfinished study is balanced."""
    return [
        Cell(part, label, group, "documents" if part in OF_DOCUMENTS else "contexts", changes, pairs)
        for group in range(groups)
        for part in parts
        for label, changes, pairs in settings_of(part, grid)
    ]


def epochs_of(cell: Cell, contexts, exposures: int) -> int:
    """Passes over the pairs with which a context's pairs are seen about `exposures` times."""
    if cell.changes.get("targets.qa_weight") == 0.0 or cell.source == "documents":
        # What is written is not known before; 40 pairs a context are asked for, and tails stand in for pairs.
        return max(1, round(exposures / 40))
    there = np.mean([len(context.qa_pairs) for context in contexts])
    return max(1, round(exposures / min(cell.pairs or math.inf, there)))


def config_of(cell: Cell, path: str, contexts, exposures: int):
    """The batch job of a cell."""
    config = base.get_config()
    base.set_reading_recipe(config)
    set_epochs(config, epochs_of(cell, contexts, exposures))
    config.update_from_flattened_dict(
        {
            "contexts": path,
            "context_ids": tuple(context.id for context in contexts),
            "export_dtype": "",
            "targets.generator": "none",
            "targets.qa_per_context": cell.pairs,
            "targets.long_pairs": "skip",
            "train.seq_len": ROW_LENGTH,
            "model": MODEL.value or config.model,
            "prompt": PROMPT.value or config.prompt,
            "dtype": DTYPE.value,
            **cell.changes,
        }
    )
    return config


def written_documents(config, contexts) -> list[Document]:
    """The contexts with what is written about them, into the file that the configuration names."""
    write_targets(config, config.generator.file)
    return with_written_pairs(contexts, read_written(config.generator.file), read_settings(config).recipe.generator)


def epochs_for_words(contexts, exposures: int) -> int:
    """Passes over pairs of any length in which a context's words are as many as those of `exposures` short pairs."""
    words = [sum(len(f"{p.question} {p.answer}".split()) for p in context.qa_pairs) for context in contexts]
    return max(1, round(exposures * PAIR_WORDS / max(np.mean(words), 1)))


def set_epochs(config, epochs: int) -> None:
    """Sets the passes, with as many unrelated texts in all however the epochs are cut."""
    config.train.epochs = epochs
    config.targets.unrelated_per_epoch = max(1, round(UNRELATED / epochs))


def run_cell(cell: Cell, path: str, contexts, out: pathlib.Path) -> dict:
    """One job; what the group's earlier jobs found out (answers of base and teacher, written pairs) is used again."""
    directory, record = out / "cells" / cell.name, out / "cells" / cell.name / "cell.json"
    if not record.exists():
        shared = out / "shared" / f"{cell.source}-{cell.group}"
        shared.mkdir(parents=True, exist_ok=True)
        config = config_of(cell, path, contexts, EXPOSURES.value)
        if config.targets.generator != "none":
            config.generator.file = str(shared / "pairs.jsonl")
        logging.info("cell %s", cell.name)
        if cell.part == "texts":  # what other kinds write is another file
            config.generator.update(file=str(shared / f"{cell.name}.jsonl"), model=WRITER.value)
            set_epochs(config, epochs_for_words(written_documents(config, contexts), EXPOSURES.value))
        job = prepare(config, directory)
        for name in COPIED:
            if (shared / name).exists() and not (directory / name).exists():
                copy_file(shared / name, directory / name)
        run_job(config, directory)
        files.write_json(record, what_was_learned(job, directory))
        for name in COPIED:
            if (directory / name).exists():
                copy_file(directory / name, shared / name)
        for heavy in ("teacher", "checkpoints"):
            shutil.rmtree(directory / heavy, ignore_errors=True)
    labels = {"part": cell.part, "label": cell.label, "group": cell.group}
    return {**labels, **files.read_json(record), **what_was_written(directory)}


def copy_file(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a file into a folder that may not be there yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def what_was_written(directory: pathlib.Path) -> dict:
    """F1 of every question by context, and the mean number of words of the training pairs' answers."""
    by_context: dict[str, list[float]] = {}
    for line in files.read_lines(directory / "predictions.jsonl"):
        by_context.setdefault(line["context"], []).append(line["injected"]["f1"])
    lengths = [
        len(line["answer"].split()) for line in files.read_lines(directory / "targets.jsonl") if line["kind"] == "qa"
    ]
    return {"f1_by_context": by_context, "answer_words": float(np.mean(lengths)) if lengths else None}


def what_was_learned(job: Job, directory: pathlib.Path) -> dict:
    """Scores, drift, size and time of a finished job, and the likelihood of the gold answers without the document."""
    results = files.read_json(directory / "results.json")
    variables = {"params": job.model.params, "lora": read_adapter(job, directory)}
    decoder = job.model.decoder(lora_scale=job.recipe.lora.scale)
    reader = teacher_reader(job.model, job.prompt, job.recipe)
    injected = dataclasses.replace(reader, model=decoder, variables=variables)
    likelihoods = question_log_likelihoods(injected, job.prompt, job.documents)
    return {
        **{name: results["scores"]["injected"][name] for name in ("f1", "contains")},
        "log_likelihood": float(np.mean([np.mean(group) for group in likelihoods if group])),
        "f1_cq": results["scores"]["base_cq"]["f1"],
        "perplexity": results["drift"]["perplexity_after"] / results["drift"]["perplexity_before"] - 1,
        "steps": results["steps"],
        "seconds": results["timing"]["total_s"],
        "pairs": sum(line["kind"] == "qa" for line in files.read_lines(directory / "targets.jsonl")),
    }


def summary_of(records: list[dict]) -> list[dict]:
    """Per part and label: means over groups, with 95 % bootstrap intervals over contexts and their questions.

    `f1_difference` is against the part's reference, on the contexts that both have; its interval is that of the
    differences question by question.
    """
    rows, by_context = [], {}
    for record in records:
        by_context.setdefault((record["part"], record["label"]), {}).update(record["f1_by_context"])
    for part, label in by_context:
        mine = [record for record in records if (record["part"], record["label"]) == (part, label)]
        answers, reference = by_context[part, label], by_context.get((part, REFERENCE[part]), {})
        differences = [
            np.subtract(answers[context], reference[context]) for context in answers if context in reference
        ]
        words = [record["answer_words"] for record in mine if record["answer_words"] is not None]
        means = {
            name: float(np.mean([record[name] for record in mine]))
            for name in ("f1", "contains", "log_likelihood", "f1_cq", "perplexity", "steps", "seconds", "pairs")
        }
        rows.append(
            {
                **{"part": part, "label": label, "groups": len(mine), **means},
                "f1_ci95": bootstrap_interval(list(answers.values())),
                "answer_words": float(np.mean(words)) if words else None,
                "f1_difference": float(np.mean([each.mean() for each in differences])) if differences else None,
                "f1_difference_ci95": bootstrap_interval(differences) if differences else None,
            }
        )
    return rows


def written_counts(out: pathlib.Path, config: GeneratorConfig) -> dict | None:
    """What the generator wrote in all groups: yield, what was left out and why, and its speed."""
    counts: dict[str, float] = {"contexts": 0, "replies": 0, "replies_without_pair": 0, "seconds": 0.0}
    for path in sorted((out / "shared").glob("documents-*/pairs.jsonl")):
        lines = files.read_lines(path)
        by_context: dict[str, list[dict]] = {}
        for line in lines[1:]:
            by_context.setdefault(line["digest"], []).append(line)
        for mine in by_context.values():
            counts["contexts"] += 1
            for unit in (line for line in mine if "kinds" in line):
                counts["seconds"] += unit["seconds"]
                counts["replies"] += sum(kind["replies"] for kind in unit["kinds"].values())
                counts["replies_without_pair"] += sum(kind["without_pair"] for kind in unit["kinds"].values())
            _, reasons = filter_pairs([line for line in mine if "question" in line], [], config)
            for name, value in reasons.items():
                counts[name] = counts.get(name, 0) + value
    return {**counts, "pairs_per_s": counts["written"] / counts["seconds"]} if counts["seconds"] else None


def write_report(out: pathlib.Path, records: list[dict], written: dict | None) -> None:
    """study.json, study.md and study.png."""
    rows = summary_of(records)
    files.write_json(out / "study.json", {"cells": records, "summary": rows, "written": written})
    lines = []
    for part in dict.fromkeys(row["part"] for row in rows):
        lines += [
            f"## {part}",
            "",
            f"| setting | F1 [95 %] | against `{REFERENCE[part]}` [95 %] | log-likelihood | Base C+Q | perplexity | "
            "pairs | words of an answer | steps | s | groups |",
        ]
        lines += ["| --- " * 11 + "|"]
        for row in (row for row in rows if row["part"] == part):
            low, high = row["f1_ci95"]
            difference = words = ""
            if row["f1_difference"] is not None and row["label"] != REFERENCE[part]:
                difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(row["f1_difference"], *row["f1_difference_ci95"])
            if row["answer_words"] is not None:
                words = f"{row['answer_words']:.1f}"
            lines.append(
                f"| {row['label']} | {row['f1']:.3f} [{low:.3f}, {high:.3f}] | {difference} | "
                f"{row['log_likelihood']:.2f} | {row['f1_cq']:.3f} | {row['perplexity']:+.1%} | {row['pairs']:.0f} | "
                f"{words} | {row['steps']:.0f} | {row['seconds']:.0f} | {row['groups']} |"
            )
        lines.append("")
    if written:
        lines += ["## what the generator wrote", "", "```json", json.dumps(written, indent=1), "```", ""]
    files.write_text(out / "study.md", "\n".join(lines))
    draw(rows, out / "study.png")


def draw(rows: list[dict], path: pathlib.Path) -> None:
    """F1 with its interval per setting, one panel per part."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    heights = [sum(row["part"] == part for row in rows) + 1 for part in parts]
    figure, panels = plt.subplots(
        len(parts),
        1,
        figsize=(8, 0.4 * sum(heights) + 0.6),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for part, panel in zip(parts, panels[:, 0], strict=True):
        mine = [row for row in rows if row["part"] == part][::-1]
        middle = [row["f1"] for row in mine]
        errors = np.abs(np.asarray([row["f1_ci95"] for row in mine]).T - middle)
        panel.barh([row["label"] for row in mine], middle, xerr=errors, color="#7aa6c2", ecolor="#333333", capsize=3)
        panel.axvline(np.mean([row["f1_cq"] for row in mine]), color="#b5541c", linestyle="--", label="Base C+Q")
        panel.set_title(part, loc="left", fontsize=10)
        panel.set_xlim(0, 1)
    panels[0, 0].legend(fontsize=8)
    panels[-1, 0].set_xlabel("F1 on held-out questions")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def study() -> None:
    """Runs the cells that are missing, and writes the report after each of them and in the end."""
    out, full = pathlib.Path(OUT.value), GRID.value == "full"
    groups, size = GROUPS.value or (8 if full else 3), SIZE.value or (10 if full else 2)
    sources = {"contexts": CONTEXTS.value, "documents": DOCUMENTS.value}
    cells = all_cells(PARTS.value, GRID.value, groups)
    for source in sorted({cell.source for cell in cells}):
        if not sources[source]:
            raise ValueError(f"these parts need --{source}=FILE; give it, or leave them out of --parts")
    contexts = {source: read_document_files(path, groups * size) for source, path in sources.items() if path}
    records = []
    finished = {cell.name for cell in cells if (out / "cells" / cell.name / "cell.json").exists()}
    if FINISHED.value:
        cells = [cell for cell in cells if cell.name in finished]
        if not cells:
            raise ValueError(f"{out} has no finished cell of these parts; run it without --finished first")
    for number, cell in enumerate(cells, start=1):
        group = contexts[cell.source][cell.group * size : (cell.group + 1) * size]
        records.append(run_cell(cell, sources[cell.source], group, out))
        logging.info("%d of %d cells: %s F1 %.3f", number, len(cells), cell.name, records[-1]["f1"])
        if cell.name not in finished or number == len(cells):
            write_report(out, records, written_counts(out, GeneratorConfig()))
    print((out / "study.md").read_text(encoding="utf-8"))


def main(argv: list[str]) -> None:
    """Runs the study."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if unknown := set(PARTS.value) - set(REFERENCE):
        raise app.UsageError(f"--parts has {', '.join(sorted(unknown))}, expected some of {', '.join(REFERENCE)}")
    command.run(study)


if __name__ == "__main__":
    app.run(main)
