"""Command line: `python -m selfparam_jax.main --config=configs/batch.py --workdir=DIR`.

On several hosts every one runs the same command; on a TPU pod with `--distributed=on`.
"""

from absl import app, flags
from ml_collections import config_flags

from selfparam_jax import command, jobs, processes

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration, FILE or FILE:argument.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for everything the job writes; resumed if it exists.")
DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", processes.MODES, "Join other processes: if the environment names them, always, or never."
)
COORDINATOR = flags.DEFINE_string("coordinator_address", "", "host:port of the first process; also --process_count.")
COUNT = flags.DEFINE_integer("process_count", 0, "How many processes there are; 0: as the environment says.")
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_s", 100, "A process that is silent for so long is dead and ends the others."
)
INDEX = flags.DEFINE_integer("process_index", -1, "Which of them this is; -1: as the environment says.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Runs the job and prints its scores."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; settings are given as --config.NAME=VALUE")
    others = (COORDINATOR.value, COUNT.value, INDEX.value, HEARTBEAT.value)
    command.run(processes.start, DISTRIBUTED.value, *others)
    results = command.run(jobs.run_job, CONFIG.value, WORKDIR.value)
    if not processes.is_first():
        return
    scores = results["scores"]
    if scores["injected"]:
        print("F1  " + "  ".join(f"{system} {scores[system]['f1']:.3f}" for system in jobs.SYSTEMS))
    print(f"report: {WORKDIR.value}/report.md")


if __name__ == "__main__":
    app.run(main)
