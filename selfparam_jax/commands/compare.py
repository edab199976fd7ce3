"""Compares models of one base: what was written into each, and how their distributions and answers differ.

    selfparam compare RUN_A RUN_B@300 MODEL [--base=MODEL] [--probe=TEXTS] [--questions=DOCUMENTS] [--out=compare]

A model is given as: a work directory of job `batch`; one injection of job `single` (WORKDIR/contexts/000); one
sequence of job `sequential` (WORKDIR/sequences/000); a checkpoint of these (WORKDIR@STEP; of a sequence, the model
after STEP injections); an adapter that `selfparam ledger compose` wrote; a Hugging Face directory, a .gguf file, a
hub id or the embedded model's name. Of these, finished runs bring their answers; --questions asks all models.

Example: selfparam compare runs/batch runs/batch/merged --out=compare
"""

import argparse
import contextlib
import pathlib

from selfparam_jax.checkpoints.default_model import cache_directory
from selfparam_jax.commands import command
from selfparam_jax.compare.comparison import compare_models, count_steps
from selfparam_jax.data.documents import Document, load_texts, read_document_files
from selfparam_jax.distributed import backend
from selfparam_jax.jobs.bars import open_bar
from selfparam_jax.jobs.candidates import load_model_set
from selfparam_jax.jobs.inputs import example_texts
from selfparam_jax.reports.comparison import check_folder, summary_table, write_comparison


def compare_sources(
    sources: list[str],
    base: str | None = None,
    probe: str | None = None,
    questions: str | None = None,
    unfinished: bool = False,
) -> dict:
    """Loads models and compares them; files that can be read without a model are read first.

    Args:
      sources: two or more; see the module.
      base: the model that deltas are measured from; None means that of the first work directory.
      probe: file of texts for the KL; None means the first work directory's `eval.general`.
      questions: file of documents whose questions are asked of every model; None means the answers of finished runs.
      unfinished: whether models whose training has not ended may be compared, with a warning.

    Returns:
      the content of compare.json.

    Raises:
      ValueError, OSError: input that cannot be used.
    """
    texts = load_texts(probe) if probe else []
    documents = _with_questions(questions) if questions else []
    model_set, general = load_model_set(sources, base, unfinished)
    if probe is None and general:
        probe, texts = general, load_texts(example_texts(general, "eval"))
    with contextlib.closing(open_bar(count_steps(model_set, documents), "compare", "step", leave=False)) as bar:
        return compare_models(model_set, texts, probe or "", documents, bar.update)


def _with_questions(path: str) -> list[Document]:
    documents = [document for document in read_document_files(path) if document.questions]
    if not documents:
        raise ValueError(f"--questions={path}: no document has questions, expected some; add them to the file")
    return documents


def _run(arguments: argparse.Namespace) -> None:
    out = pathlib.Path(arguments.out)
    check_folder(out)
    backend.prepare(cache_directory() / "compiled")
    record = compare_sources(
        arguments.models, arguments.base, arguments.probe, arguments.questions, arguments.unfinished
    )
    write_comparison(record, out)
    print(summary_table(record))
    print(f"{out / 'compare.md'}")


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, compares, writes and prints the main table; ends the process with 1 for bad input.

    Args:
      argv: the arguments without the program's name; None means those of the process.
    """
    parser = command.make_parser("compare", __doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="two or more")
    parser.add_argument("--base", help="the model that deltas are measured from; default: the first run's")
    parser.add_argument("--probe", help='texts for the KL (JSONL with "text", or .txt); default: the first run\'s')
    parser.add_argument("--questions", help="documents whose questions are asked of every model")
    parser.add_argument("--out", default="compare", help="folder for compare.md, compare.json and pictures")
    command.add_unfinished(parser)
    command.run(_run, parser.parse_args(argv))
