"""The comparison of a set of models as one record."""

import collections
import dataclasses
import itertools
import string
from collections.abc import Callable, Sequence

import numpy as np

from selfparam_jax.compare.answers import compare_answers, score_answers
from selfparam_jax.compare.candidates import ModelSet, kernels_of
from selfparam_jax.compare.deltas import measure_deltas, total_delta, total_pair
from selfparam_jax.compare.divergences import divergences
from selfparam_jax.data.documents import Document
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.questions import answer_questions, predictions
from selfparam_jax.inference.decoding import answering
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.models.lora import MODULES

LABELS = string.ascii_uppercase


def compare_models(
    model_set: ModelSet,
    texts: Sequence[str] = (),
    probe: str = "",
    documents: Sequence[Document] = (),
    progress: Callable[[], object] = lambda: None,
) -> dict:
    """Compares the candidates of a set with the base and with each other.

    Args:
      model_set: the loaded models.
      texts: texts on which the KL is measured; none measures none.
      probe: where the texts are from, for the record.
      documents: their questions are asked of every candidate, without the documents; without any, the answers that
        the candidates bring are compared.
      progress: called after every step, `count_steps` times.

    Returns:
      the content of compare.json: {"base", "dtype", "probe", "kl", "candidates", "pairs"}.

    Raises:
      ValueError: a delta is not finite, or there is nothing to predict in the texts.
    """
    if documents:
        model_set = _with_answers(model_set, documents, progress)
    record = {
        "base": {"name": model_set.base.name, "fingerprint": model_set.base.fingerprint},
        "dtype": str(np.dtype(model_set.dtype)),
        **_compare_outputs(model_set, texts, probe),
        **_compare_deltas(model_set, progress),
    }
    for pair, (one, other) in zip(record["pairs"], itertools.combinations(model_set.candidates, 2), strict=True):
        pair |= {"answers": None, "answers_note": None}
        if one.predictions and other.predictions:
            try:
                pair["answers"] = compare_answers(one.predictions, other.predictions)
            except ValueError as error:  # the rest of the comparison stands
                pair["answers_note"] = str(error)
    return record


def count_steps(model_set: ModelSet, documents: Sequence[Document] = ()) -> int:
    """How often `compare_models` calls `progress`: once a kernel, and once a candidate if questions are asked."""
    return len(kernels_of(model_set.base.params)) + (len(model_set.candidates) if documents else 0)


def _reader(model_set: ModelSet) -> tuple[Decoder, Prompt]:
    base = model_set.base
    return Decoder(base.config, model_set.dtype), Prompt(model_set.prompt, base.tokenizer, base.end_ids)


def _with_answers(model_set: ModelSet, documents: Sequence[Document], progress: Callable[[], object]) -> ModelSet:
    """The set with every candidate's answers to the documents' questions in place of those that it brought."""
    model, prompt = _reader(model_set)
    candidates = []
    for candidate in model_set.candidates:
        with answering(candidate.name):
            given = answer_questions(model, candidate.variables, prompt, documents, False, model_set.batch_size)
        records = predictions(documents, {"answer": given})
        candidates.append(dataclasses.replace(candidate, predictions=records))
        progress()
    return dataclasses.replace(model_set, candidates=candidates)


def _compare_outputs(model_set: ModelSet, texts: Sequence[str], probe: str) -> dict:
    """The parts "probe" and "kl" of the record."""
    if not texts:
        return {"probe": None, "kl": None}
    model, prompt = _reader(model_set)
    variables = [{"params": model_set.base.params}, *(candidate.variables for candidate in model_set.candidates)]
    kl, tokens = divergences(model, variables, prompt, texts)
    order = ["base", *LABELS[: len(model_set.candidates)]]
    return {
        "probe": {"source": probe, "prompt": model_set.prompt, "texts": len(texts), "tokens": tokens},
        "kl": {"order": order, "mean_per_token": kl.tolist()},
    }


def _compare_deltas(model_set: ModelSet, progress: Callable[[], object]) -> dict:
    """The parts "candidates" and "pairs" of the record."""
    alone, together = measure_deltas(model_set.candidates, model_set.base.params, progress)
    candidates, pairs = [], []
    for label, candidate, records in zip(LABELS, model_set.candidates, alone, strict=False):
        outside = {
            path: {"norm": norm, "relative": norm / before if before else None}
            for path, (norm, before) in candidate.outside.items()
        }
        candidates.append(
            {
                "label": label,
                "name": candidate.name,
                "notes": list(candidate.notes),
                "outside": outside,
                "answers": score_answers(candidate.predictions) if candidate.predictions else None,
                "delta": total_delta(records),
                "modules": {name: total_delta(of) for name, of in _by_module(records).items()},
                "kernels": records,
            }
        )
    for (i, j), records in together.items():
        one, other = candidates[i], candidates[j]
        totals = total_pair(records, one["delta"]["norm"], other["delta"]["norm"])
        modules = {
            name: total_pair(of, one["modules"][name]["norm"], other["modules"][name]["norm"])
            for name, of in _by_module(records).items()
        }
        pairs.append({"a": LABELS[i], "b": LABELS[j], **totals, "modules": modules, "kernels": records})
    return {"candidates": candidates, "pairs": pairs}


def _by_module(records: Sequence[dict]) -> dict[str, list[dict]]:
    groups = collections.defaultdict(list)
    for record in records:
        groups[record["module"]].append(record)
    return {name: groups[name] for name in MODULES}
