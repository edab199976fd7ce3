"""Writes question-answer pairs about documents into a file, and shows a sample of them.

    selfparam targets --contexts=DOCUMENTS --out=pairs.jsonl [--inspect=5] [--config.NAME=VALUE ...]

The file grows as pairs arrive, and a killed command resumes with it. A job then uses it with
--config.generator.file=pairs.jsonl.

Example: selfparam targets --contexts=my_documents --out=pairs.jsonl
"""

import sys

from absl import flags

from selfparam_jax.commands import command
from selfparam_jax.jobs.targets import inspect_targets, write_targets
from selfparam_jax.reports.tables import counted


def define_flags(argv: list[str]) -> flags.FlagValues:
    """The command's own flags; `argv` is the whole command line, the program's name first."""
    values = flags.FlagValues()
    command.define_config(values, argv, "base")
    flags.DEFINE_string("contexts", None, "Documents, as --config.contexts.", flag_values=values)
    flags.DEFINE_string("out", None, "JSONL file of the pairs.", flag_values=values)
    flags.DEFINE_integer(
        "inspect", 0, "Print this many pairs of every document with their scores; write nothing.", 0, 10**6,
        flag_values=values,
    )  # fmt: skip
    return values


def main(argv: list[str] | None = None) -> None:
    """Writes the pairs or prints a sample of them; ends the process with 1 for input that cannot be used.

    Args:
      argv: the arguments without the program's name; None means those of the process.
    """
    command.run(_run, ["selfparam targets", *(sys.argv[1:] if argv is None else argv)])


def _run(arguments: list[str]) -> None:
    values = define_flags(arguments)
    command.refuse_arguments(command.parse_command(values, arguments, __doc__))
    if not values.out:
        raise ValueError("--out is missing, expected a file, such as --out=pairs.jsonl")
    config = values.config
    if values.contexts is not None:
        command.refuse_twice(arguments, "--contexts", "contexts")
        config.contexts = values.contexts
    if values.inspect:
        print(inspect_targets(config, values.out, values.inspect))
        return
    written = write_targets(config, values.out)
    documents = counted(written["contexts"], "document")
    print(f"{values.out}: {written['kept']} of {written['written']} pairs kept for {documents}")
    if "sentences" in written:
        print(f"{written['covered']} of {written['sentences']} sentences are asked about; a report lists others")
