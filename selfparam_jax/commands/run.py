"""Runs a job: `selfparam run`, or `python -m selfparam_jax.main`.

On several hosts every one runs the same command; on a TPU pod with `--distributed=on`.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from selfparam_jax.commands import command
from selfparam_jax.distributed import processes
from selfparam_jax.jobs.dry_run import dry_run
from selfparam_jax.jobs.run import run_job
from selfparam_jax.jobs.settings import read_settings

USAGE = """Runs a job: documents into a model's weights, then all questions, scores, and a report.

  selfparam run batch                  (or --config=batch)
  python -m selfparam_jax.main --config=configs/batch.py
  python -m selfparam_jax.main --config=batch --workdir=runs/mine --config.contexts=my_documents.jsonl

The same command resumes a job that was stopped. With --dry_run it only says what would be read, and what that takes.

Example: selfparam run --config=batch:quick --workdir=runs/quick"""


def define_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The flags of a job; `argv` is the whole command line, the program's name first."""
    values = flags.FlagValues()
    command.define_config(values, argv)
    flags.DEFINE_string(
        "workdir", None, "Directory for everything the job writes, resumed if it exists; default: runs/NAME of the "
        "configuration.", flag_values=values,
    )  # fmt: skip
    command.define_dry_run(values)
    flags.DEFINE_enum(
        "distributed", "auto", processes.MODES,
        "Join other processes: if the environment names them, always, or never.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "coordinator_address", "", "host:port of the first process; also --process_count.", flag_values=values
    )
    flags.DEFINE_integer(
        "process_count", 0, "How many processes there are; 0: as the environment says.", 0, 2**16, flag_values=values
    )
    flags.DEFINE_integer(
        "heartbeat_s", 100, "A process that is silent for this many seconds is dead and ends the others.", 1, 10**6,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "process_index", -1, "Which of them this is; -1: as the environment says.", -1, 2**16, flag_values=values
    )
    return values


def default_workdir(config: str) -> str:
    """runs/batch for configs/batch.py, runs/batch-quick for configs/batch.py:quick."""
    file, _, argument = config.partition(":")
    name = pathlib.Path(file).stem
    return str(pathlib.Path("runs") / (f"{name}-{argument.replace(':', '-')}" if argument else name))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a job and prints its scores; ends the process with 1 for input that cannot be used.

    Args:
      argv: the arguments without the program's name; None means those of the process.
    """
    command.run(run_command, ["selfparam run", *_named(sys.argv[1:] if argv is None else argv)])


def _named(arguments: Sequence[str]) -> list[str]:
    """The arguments with a configuration's name in first place as --config: `selfparam run batch`."""
    named = arguments and not arguments[0].startswith("-")
    return [f"--config={arguments[0]}", *arguments[1:]] if named else list(arguments)


def run_command(arguments: Sequence[str]) -> None:
    """Parses the command line, runs the job, prints its scores."""
    if [each.lstrip("-").partition("=")[0] for each in arguments if each.startswith("-")].count("config") > 1:
        raise command.UsageError("got more than one configuration, expected one; remove the others")
    values = define_flags(arguments)
    command.refuse_arguments(command.parse_command(values, arguments, USAGE))
    if values["config"].value is None:
        raise ValueError("--config is missing, expected a file or a name such as batch; see --help")
    config, others = values["config"].value, ("coordinator_address", "process_count", "process_index", "heartbeat_s")
    read_settings(config)  # before anything is started or written
    workdir = values["workdir"].value or default_workdir(command.config_name(arguments))
    if values["dry_run"].value:
        command.print_lines(dry_run(config, workdir))
        return
    processes.start(values["distributed"].value, *(values[name].value for name in others))
    if values["workdir"].value is None and processes.is_main_process():
        print(f"work directory: {workdir}")
    results = run_job(config, workdir)
    if not processes.is_main_process():
        return
    command.print_scores(results)
    print(f"report: {workdir}/report.md")


if __name__ == "__main__":
    main()
