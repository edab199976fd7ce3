"""Compares models of one base and writes what it finds.

python -m selfparam_jax.compare RUN_A RUN_B@300 MODEL [--base=MODEL] [--probe=TEXTS] [--questions=CONTEXTS]
    [--out=compare]

A work directory of job `batch`, one injection of job `single` (WORKDIR/contexts/000), one sequence of job
`sequential` (WORKDIR/sequences/000), a checkpoint of these (WORKDIR@STEP; of a sequence, after so many injections),
an adapter that `selfparam_jax.ledger compose` wrote, or a model: a Hugging Face directory, a .gguf file, a hub id,
the embedded model's name. Of these, finished runs have answers; --questions asks all of them anew.
"""

import argparse
import collections
import dataclasses
import itertools
import pathlib
import string
import sys
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from selfparam_jax import backend, command, compare, evaluate, hub
from selfparam_jax.compare.contenders import Lineup, load_lineup
from selfparam_jax.compare.pages import summary_table, write_comparison
from selfparam_jax.contexts import Context, load_contexts, load_texts
from selfparam_jax.lora import MODULES
from selfparam_jax.model import Decoder
from selfparam_jax.prompts import Prompt


def compare_models(
    sources: Sequence[str], base: str | None = None, probe: str | None = None, questions: str | None = None
) -> dict:
    """Loads and compares; returns the content of compare.json.

    Args:
      sources: two or more; see the module.
      base: the model that deltas are measured from; None means that of the first work directory.
      probe: file of texts for the KL; None means the first work directory's `eval.general`.
      questions: file of contexts whose questions all are asked, without the contexts; None means the answers that the
        runs have.

    Raises:
      ValueError, OSError: input that cannot be used.
    """
    labels = string.ascii_uppercase
    if not 2 <= len(sources) <= len(labels):
        raise ValueError(f"got {len(sources)} models, expected 2 to {len(labels)}")
    texts = load_texts(probe) if probe else []
    asked = _with_questions(questions) if questions else []
    lineup = load_lineup(sources, base)
    if asked:
        lineup = _asked_anew(lineup, asked)
    if probe is None and lineup.general:
        probe = lineup.general
        texts = load_texts(probe)
    record = {
        "base": {"name": lineup.base.name, "fingerprint": lineup.base.fingerprint},
        "dtype": str(np.dtype(lineup.dtype)),
        **_outputs(lineup, labels, probe, texts),
        **_deltas(lineup, labels),
    }
    for pair, (one, other) in zip(record["pairs"], itertools.combinations(lineup.contenders, 2), strict=True):
        pair |= {"answers": None, "answers_note": None}
        if one.predictions and other.predictions:
            try:
                pair["answers"] = compare.compare_answers(one.predictions, other.predictions)
            except ValueError as error:  # the rest of the comparison stands
                pair["answers_note"] = str(error)
    return record


def _with_questions(path: str) -> list[Context]:
    contexts = [context for context in load_contexts(path) if context.questions]
    if not contexts:
        raise ValueError(f"--questions={path}: no context has questions, expected some; see README, input files")
    return contexts


def _reader(lineup: Lineup) -> tuple[Decoder, Prompt]:
    return Decoder(lineup.base.config, lineup.dtype), Prompt(lineup.prompt, lineup.base.tokenizer)


def _asked_anew(lineup: Lineup, contexts: Sequence[Context]) -> Lineup:
    """With every model's answers to the questions of some contexts in place of those that were kept."""
    model, prompt = _reader(lineup)
    contenders = []
    for contender in tqdm(lineup.contenders, desc="questions", unit="model", leave=False):
        answers = evaluate.answer_questions(model, contender.variables, prompt, contexts, False, lineup.batch)
        predictions = evaluate.predictions(contexts, {"injected": answers})
        contenders.append(dataclasses.replace(contender, predictions=predictions))
    return dataclasses.replace(lineup, contenders=contenders)


def _outputs(lineup: Lineup, labels: str, probe: str | None, texts: list[str]) -> dict:
    """The parts `probe` and `kl` of the record."""
    if not texts:
        return {"probe": None, "kl": None}
    model, prompt = _reader(lineup)
    variables = [{"params": lineup.base.params}, *(contender.variables for contender in lineup.contenders)]
    kl, tokens = compare.divergences(model, variables, prompt, texts)
    order = ["base", *labels[: len(lineup.contenders)]]
    return {
        "probe": {"source": str(probe), "prompt": lineup.prompt, "texts": len(texts), "tokens": tokens},
        "kl": {"order": order, "mean_per_token": kl.tolist()},
    }


def _deltas(lineup: Lineup, labels: str) -> dict:
    """The parts `contenders` and `pairs` of the record."""
    kernels = len(compare.kernels_of(lineup.base.params))
    with tqdm(total=kernels, desc="deltas", unit="kernel", leave=False) as bar:
        alone, together = compare.measure_deltas(lineup.contenders, lineup.base.params, bar.update)
    contenders, pairs = [], []
    for label, contender, records in zip(labels, lineup.contenders, alone, strict=False):
        outside = {
            path: {"norm": norm, "relative": norm / before if before else None}
            for path, (norm, before) in contender.outside.items()
        }
        contenders.append(
            {
                "label": label, "name": contender.name, "notes": list(contender.notes), "outside": outside,
                "answers": compare.score_answers(contender.predictions) if contender.predictions else None,
                "delta": compare.total_delta(records),
                "modules": {name: compare.total_delta(of) for name, of in _by_module(records).items()},
                "kernels": records,
            }
        )  # fmt: skip
    for (i, j), records in together.items():
        one, other = contenders[i], contenders[j]
        totals = compare.total_pair(records, one["delta"]["norm"], other["delta"]["norm"])
        modules = {
            name: compare.total_pair(of, one["modules"][name]["norm"], other["modules"][name]["norm"])
            for name, of in _by_module(records).items()
        }
        pairs.append({"a": labels[i], "b": labels[j], **totals, "modules": modules, "kernels": records})
    return {"contenders": contenders, "pairs": pairs}


def _by_module(records: Sequence[dict]) -> dict[str, list[dict]]:
    groups = collections.defaultdict(list)
    for record in records:
        groups[record["module"]].append(record)
    return {name: groups[name] for name in MODULES}


def _run(arguments: argparse.Namespace) -> None:
    out = pathlib.Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file, expected a directory; choose another")
    backend.prepare(hub.cache_directory() / "compiled")
    record = compare_models(arguments.models, arguments.base, arguments.probe, arguments.questions)
    write_comparison(record, out)
    print(summary_table(record))
    print(f"{out / 'compare.md'}")


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, compares, writes and prints the main table; ends the process with 1 for bad input."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m selfparam_jax.compare", description=__doc__, formatter_class=raw)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="two or more")
    parser.add_argument("--base", help="the model that deltas are measured from; default: the first run's")
    parser.add_argument("--probe", help='texts for the KL (JSONL with "text", or .txt); default: the first run\'s')
    parser.add_argument("--questions", help="contexts (JSONL) whose questions all are asked; default: what runs kept")
    parser.add_argument("--out", default="compare", help="folder for compare.md, compare.json and pictures")
    command.run(_run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
