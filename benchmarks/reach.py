"""One setting of the default batch job, and where what it taught can be reached: a row of the table in RESULTS.md.

    python -m benchmarks.reach --name=default --out=/tmp/reach.json
    python -m benchmarks.reach --name=reading --set=formats=reading --set=contrast_per_epoch=0 --set=chat_per_epoch=0
    python -m benchmarks.reach --systems=base,base_cq  # the bounds

Answers and scores go to --out.
"""

import json
import pathlib
import time

from absl import app, flags

import selfparam_jax as sp
from selfparam_jax.data.documents import load_texts
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.resources import resource
from selfparam_jax.evaluation import drift, reach
from selfparam_jax.jobs.inputs import start_backend

NAME = flags.DEFINE_string("name", "default", "The row's name.")
MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "What a configuration's `model` may be.")
CONTEXTS = flags.DEFINE_string("contexts", "examples:4", "Documents; examples:development:4 are to choose on.")
SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE of the recipe, as Recipe(FIELD=VALUE) takes it.")
SEED = flags.DEFINE_integer("seed", 0, "Of everything that is drawn.")
SYSTEMS = flags.DEFINE_list("systems", ["injected"], "base, base_cq and injected.")
COLUMNS = flags.DEFINE_list("columns", list(reach.COLUMNS), "Which columns.")
OUT = flags.DEFINE_string("out", "", "A JSON file for answers and scores.")
SAVE = flags.DEFINE_string("save", "", "A directory for the adapter, in PEFT's layout.")
LOAD = flags.DEFINE_string("load", "", "Such a directory: it is asked, nothing is trained.")


def recipe_of(settings: list[str], seed: int) -> sp.Recipe:
    """A recipe with some fields set: values are JSON, or text."""
    fields = {}
    for entry in settings:
        name, _, value = entry.partition("=")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return sp.Recipe(seed=seed, **fields)


def _note(steps: list, step: dict) -> None:
    steps.append(step)
    if step["step"] % 50 == 0:
        print(f"step {step['step']}, loss {step['loss']:.3f}, {step['seconds']:.2f} s", flush=True)


def main(_) -> None:
    """Injects, asks, prints."""
    start_backend(cache=True)
    model, documents = sp.load_model(MODEL.value), sp.read_documents(CONTEXTS.value)
    recipe, steps, seconds = recipe_of(SET.value, SEED.value), [], 0.0
    base = {"params": model.params}
    prompt = Prompt(recipe.prompt, model.tokenizer, model.end_ids)
    askers = {
        "base": reach.Asker(model.decoder(), base, prompt),
        "base_cq": reach.Asker(model.decoder(), base, prompt, with_document=True),
    }
    variants = reach.read_variants(resource("examples", "reach.jsonl"))
    probes = reach.read_probes(
        resource("examples", "unrelated_questions.jsonl"), resource("examples", "reach_probes.jsonl")
    )
    row = {"name": NAME.value, "settings": SET.value, "seed": SEED.value, "contexts": CONTEXTS.value}
    if "injected" in SYSTEMS.value:
        began = time.perf_counter()
        if LOAD.value:
            adapter = sp.load_adapter(model, LOAD.value)
        else:
            adapter = sp.inject(model, documents, recipe, progress=False, on_step=lambda step: _note(steps, step))
        seconds = time.perf_counter() - began
        if SAVE.value:
            adapter.save(SAVE.value)
        variables = {"params": model.params, "lora": adapter.lora}
        decoder = model.decoder(lora_scale=adapter.scale)
        askers["injected"] = reach.Asker(decoder, variables, prompt)
        texts = load_texts(resource("examples", "general_eval.jsonl"))
        general = drift.read_general(model.decoder(), base, prompt, texts)
        moved = drift.measure_drift(decoder, general, variables)
        row["perplexity"] = moved["perplexity_after"] / moved["perplexity_before"] - 1
        row |= {
            "steps": len(steps),
            "step_s": sorted(s["seconds"] for s in steps)[len(steps) // 2] if steps else None,
        }
    row["inject_s"] = seconds
    for name in SYSTEMS.value:
        began = time.perf_counter()
        records = reach.ask_columns(askers[name], documents, variants, COLUMNS.value)
        row[name] = {column: reach.mean_right(found) for column, found in records.items()}
        row[f"{name}_answers"], row[f"{name}_s"] = records, time.perf_counter() - began
    if "injected" in SYSTEMS.value:
        row["unchanged"] = reach.compare_probes(
            probes, *(reach.ask_probes(askers[name], probes) for name in ("base", "injected")), documents
        )
    if OUT.value:
        pathlib.Path(OUT.value).write_text(json.dumps(row, indent=1), encoding="utf-8")
    for name in SYSTEMS.value:
        print(f"{NAME.value} {name}: " + " | ".join(f"{key} {value:.3f}" for key, value in row[name].items()))
    if "injected" in SYSTEMS.value:
        kept = {key: value for key, value in row["unchanged"].items() if isinstance(value, float)}
        print(f"steps {row['steps']}, {row['step_s']} s a step, perplexity {row['perplexity']:+.1%} | " + str(kept))


if __name__ == "__main__":
    app.run(main)
