"""Command line: `python -m selfparam_jax.main --config=configs/batch.py --workdir=DIR`."""

import logging as standard_logging
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from selfparam_jax import jobs
from selfparam_jax.trainer import NotFiniteError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, FILE or FILE:argument.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for everything the job writes; resumed if it exists.")
flags.mark_flags_as_required(["config", "workdir"])


def is_news(record) -> bool:
    """Keeps our own log lines and everybody's warnings; libraries tell a lot about their insides."""
    ours = pathlib.Path(record.pathname).parent == pathlib.Path(__file__).parent
    return ours or record.levelno >= standard_logging.WARNING


def main(argv: list[str]) -> None:
    """Runs the job; 0 when it is done, 1 with one line of error, 130 when it was stopped."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; settings are given as --config.NAME=VALUE")
    logging.get_absl_handler().addFilter(is_news)
    try:
        results = jobs.run_job(CONFIG.value, WORKDIR.value)
    except (jobs.Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, NotFiniteError) as error:
        logging.debug("traceback", exc_info=True)  # shown with --verbosity=1
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    scores = results["scores"]
    if scores["injected"]:
        print("F1  " + "  ".join(f"{system} {scores[system]['f1']:.3f}" for system in jobs.SYSTEMS))
    print(f"report: {WORKDIR.value}/report.md")


if __name__ == "__main__":
    app.run(main)
