"""The same small sweep of learning rates for our recipe and for every system that is trained beside it.

    python -m benchmarks.learning_rates --out=DIR
    python -m benchmarks.learning_rates --out=DIR --systems=ft_c,ft_s --factors=0.5,1,2

One job for each factor: the injection and all systems are trained at their own default rate times the factor, on
documents that no result is reported on. Every job has a directory of its own under `--out`; a finished job is not run
again, an unfinished one resumes. The table grows with every job: learning_rates.json and learning_rates.md. It ends
with the settings that were best: the highest F1 of those that have not ruined the model.
"""

import pathlib

from absl import flags, logging
from ml_collections import ConfigDict
from selfparam_jax.configs import batch

from benchmarks.rows import measure_rows, run
from selfparam_jax.baselines.registry import SYSTEMS, system_name
from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.evaluation.health import is_ruined
from selfparam_jax.jobs.run import run_job

OUT = flags.DEFINE_string("out", None, "Directory for the jobs and the results.", required=True)
MODEL = flags.DEFINE_string("model", DEFAULT_MODEL, "What a configuration's `model` may be.")
CONTEXTS = flags.DEFINE_string("contexts", "examples:development:4", "The documents.")
CHOSEN = flags.DEFINE_list("systems", ["ft_c", "ft_s", "cartridge", "full_mlp"], "The systems beside our recipe.")
FACTORS = flags.DEFINE_list("factors", ["0.25", "0.5", "1", "2"], "What every default rate is multiplied by.")

INJECTED = "injected"


def rate_setting(system: str) -> str:
    """The setting with the learning rate of a system, or of our recipe."""
    return "train.learning_rate" if system == INJECTED else f"baselines.{system}.learning_rate"


def rates_of(factor: float) -> dict[str, float]:
    """The learning rate of our recipe and of each system.

    Raises:
      ValueError: a system is not trained at a rate of its own.
    """
    config, rates = batch.get_config("reading"), {}
    ours = config.train.learning_rate
    for name in (INJECTED, *map(system_name, CHOSEN.value)):
        if name != INJECTED and not hasattr(SYSTEMS[name].options, "learning_rate"):
            raise ValueError(f"--systems has {name}, which has no setting {rate_setting(name)}")
        own = ours if name == INJECTED else config.baselines[name].learning_rate
        rates[name] = factor * (own or ours)
    return rates


def config_of(factor: str) -> ConfigDict:
    """The configuration of a job."""
    config = batch.get_config("reading")
    config.contexts, config.export_dtype, config.eval.reach = CONTEXTS.value, "", "none"
    config.model, config.systems = MODEL.value, tuple(CHOSEN.value)
    config.update_from_flattened_dict({rate_setting(name): rate for name, rate in rates_of(float(factor)).items()})
    return config


def measure(factor: str) -> dict:
    """Runs one job, or reads what it gave before; returns its line of the results."""
    logging.info("learning rates: %s times the defaults", factor)
    results = run_job(config_of(factor), pathlib.Path(OUT.value) / factor)
    found = {}
    for name, rate in rates_of(float(factor)).items():
        drift = results["measured"][name]["drift"]
        found[name] = {"rate": rate, "f1": results["scores"][name]["f1"], **drift}
    return {"name": factor, "systems": found}


def best_rate(rows: list[dict], system: str) -> float | None:
    """The rate of the highest F1 of those that have not ruined the model, the lowest of equals; None without one."""
    healthy = [row["systems"][system] for row in rows if not is_ruined(row["systems"][system])]
    return max(healthy, key=lambda each: (each["f1"], -each["rate"]))["rate"] if healthy else None


def table_of(rows: list[dict]) -> str:
    """The rows as Markdown, and the settings that were best."""
    names = list(rows[0]["systems"])
    best = {name: best_rate(rows, name) for name in names}
    lines = ["| system | learning rate | F1 | perplexity of general text: before | after | |", "| --- " * 6 + "|"]
    for name in names:
        for each in (row["systems"][name] for row in rows):
            said = "collapsed" if is_ruined(each) else "best" if each["rate"] == best[name] else ""
            before, after = (each[f"perplexity_{when}"] for when in ("before", "after"))
            texts = ("not measured" if value is None else f"{value:.2f}" for value in (before, after))
            lines.append(f"| {name} | {each['rate']:g} | {each['f1']:.3f} | {' | '.join(texts)} | {said} |")
    flags_of = [f"--config.{rate_setting(name)}={rate:g}" for name, rate in best.items() if rate is not None]
    return "\n".join([*lines, "", *(f"    {flag}" for flag in flags_of)]) + "\n"


def measure_all() -> None:
    """Runs what is missing, and writes the table after each."""
    rates_of(1.0)
    measure_rows(f"{OUT.value}/learning_rates", FACTORS.value, [], measure, table_of, contexts=CONTEXTS.value)


if __name__ == "__main__":
    run(measure_all)
