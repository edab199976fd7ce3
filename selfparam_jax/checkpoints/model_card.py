"""The README.md of an export: what it is made of, how well it answers, and how it is loaded."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL, HUB_ID

_LOADING = {
    "hf": """\
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("THIS_DIRECTORY")
    tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY")

vLLM: `vllm serve THIS_DIRECTORY`. This program: `load_model("THIS_DIRECTORY")`.""",
    "peft": """\
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{hub}"), "THIS_DIRECTORY")
{note}
This program: `load_adapter(load_model("{base}"), "THIS_DIRECTORY")`.""",
    "gguf": """\
    llama-cli -m THIS_DIRECTORY/{file}

This program: `load_model("THIS_DIRECTORY/{file}")`.""",
}

_ROUNDED = """
`{base}` is a GGUF file with rounded weights of that model. Beside the weights that were not rounded, the adapter
answers a little differently; the merged model (`selfparam export WORKDIR --format=hf`) has those it was trained on.
"""
# Names of systems and scores in results.json, as a reader of the card knows them.
_NAMES = {
    "base_q": "the base",
    "base_cq": "the base with the document in the prompt",
    "injected": "this model",
    "f1": "F1",
    "em": "exact match",
    "contains": "gold answer contained",
    "f1_paper": "F1, paper's protocol",
    "perplexity_before": "perplexity on unrelated text, of the base",
    "perplexity_after": "perplexity on unrelated text, of this model",
    "kl": "KL to the base on unrelated text, nats per token",
    "tokens": "tokens of the unrelated text",
}


def write_card(
    form: str,
    base: str,
    fingerprint: str,
    licence: str,
    documents: Sequence[Mapping[str, str]],
    recipe: Mapping[str, Any],
    scores: Mapping[str, Any],
    round_trip: Mapping[str, Any],
    file: str = "",
) -> str:
    """The text of a model card.

    Args:
      form: "hf", "peft" or "gguf".
      base: hub id or path of the base.
      fingerprint: of the base's weights.
      licence: of the base; "" if its files name none.
      documents: each with "title" and "digest".
      recipe: the settings of the training.
      scores: of the evaluation, by name; drift among them. Empty if there was none.
      round_trip: what `check_round_trip` found.
      file: name of the weights, for "gguf".

    Returns:
      Markdown.
    """
    licences = licence or "not named in its files; ask its publisher before you pass this on"
    lines = ["# A model with documents in its weights", ""]
    lines += [f"Base: `{base}` (fingerprint `{fingerprint[:16]}`). Licence of the base: {licences}.", ""]
    lines += ["Documents were written into the weights with selfparam_jax (SELF-PARAM).", "", "## Documents", ""]
    lines += ["| title | digest |", "|---|---|"]
    lines += [f"| {_cell(each['title'])} | `{each['digest']}` |" for each in documents]
    lines += ["", "## Scores", ""]
    lines += _table(scores) if scores else ["Not evaluated."]
    lines += ["", "## Round trip", "", "The files were loaded again and compared with the model in memory.", ""]
    for reader, result in round_trip.items():
        if isinstance(result, Mapping):
            if left_out := result.get("not_checked"):
                told = f"not read again: {left_out}"
            else:
                told = (
                    f"largest KL divergence of a token {result['max_token_kl']:.2e} nats, greedy agreement "
                    f"{result['greedy_agreement']:.1%} of {result['tokens']} tokens"
                )
            lines.append(f"- {reader}: {told}")
    hub, note = (HUB_ID, _ROUNDED.format(base=base)) if base == DEFAULT_MODEL else (base, "")
    loading = _LOADING[form].format(base=base, hub=hub, note=note, file=file)
    lines += ["", "## How to load it", "", loading, "", "## Recipe", ""]
    lines += ["```json", json.dumps(recipe, indent=1, sort_keys=True, default=str), "```", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(scores: Mapping[str, Any]) -> list[str]:
    """A table of the numbers in nested scores."""
    rows = ["| | |", "|---|---|"]

    def walk(names: tuple[str, ...], value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(names if key in ("scores", "drift") else (*names, _NAMES.get(key, str(key))), inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            rows.append(f"| {_cell(': '.join(names))} | {value:.4g} |")

    walk((), scores)
    return rows
