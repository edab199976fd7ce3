"""Command line: `python -m selfparam_jax.main --config=configs/batch.py --workdir=DIR`."""

from absl import app, flags
from ml_collections import config_flags

from selfparam_jax import command, jobs

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration, FILE or FILE:argument.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for everything the job writes; resumed if it exists.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Runs the job and prints its scores."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; settings are given as --config.NAME=VALUE")
    results = command.run(jobs.run_job, CONFIG.value, WORKDIR.value)
    scores = results["scores"]
    if scores["injected"]:
        print("F1  " + "  ".join(f"{system} {scores[system]['f1']:.3f}" for system in jobs.SYSTEMS))
    print(f"report: {WORKDIR.value}/report.md")


if __name__ == "__main__":
    app.run(main)
