"""Writes your documents into a model's weights: adapter, merged model and report out.

    selfparam inject PATH ... --out=DIR [--model=MODEL] [--dry_run] [--config.NAME=VALUE ...]

A PATH is a file of text, Markdown, HTML, PDF, Word, PowerPoint, EPUB, a notebook, source code, a chat log or JSONL, a
folder of these, or a pattern such as "notes/*.md". Question-answer pairs are made first about documents that bring
none. With --dry_run it only says what would be read, and what that takes.

DIR is a work directory: the same command resumes, and
`selfparam ask DIR "question"` asks. It holds adapter/ (PEFT's layout), merged/ (Hugging Face's) and report.md.

Example: selfparam inject notes.txt --out=out
"""

import pathlib
import sys

from absl import flags

from selfparam_jax.commands import command
from selfparam_jax.jobs.dry_run import dry_run
from selfparam_jax.jobs.export import export_workdir
from selfparam_jax.jobs.run import run_job


def define_flags(argv: list[str]) -> flags.FlagValues:
    """The command's own flags; `argv` is the whole command line, the program's name first."""
    values = flags.FlagValues()
    command.define_config(values, argv, "base")
    flags.DEFINE_string("out", None, "Directory for everything that is written; resumed if it exists.",
                        flag_values=values)  # fmt: skip
    command.define_dry_run(values)
    flags.DEFINE_string("model", None, "The base, as --config.model.", flag_values=values)
    return values


def main(argv: list[str] | None = None) -> None:
    """Injects the documents; ends the process with 1 for input that cannot be used.

    Args:
      argv: the arguments without the program's name; None means those of the process.
    """
    command.run(_run, ["selfparam inject", *(sys.argv[1:] if argv is None else argv)])


def _run(arguments: list[str]) -> None:
    values = define_flags(arguments)
    paths = command.parse_command(values, arguments, __doc__)[1:]
    if not paths:
        raise ValueError("got no documents, expected files or folders, as in: selfparam inject notes.txt --out=out")
    if broken := next((path for path in paths if "\n" in path), ""):
        raise ValueError(f"{broken!r}: got a path with a line break, expected one without; rename the file")
    command.refuse_twice(arguments, "documents", "contexts")
    if not values.out and not values.dry_run:
        raise ValueError("--out is missing, expected a directory, as in: selfparam inject notes.txt --out=out")
    config = values.config
    config.contexts = "\n".join(paths)
    if values.model is not None:
        command.refuse_twice(arguments, "--model", "model")
        config.model = values.model
    if values.dry_run:
        command.print_lines(dry_run(config, values.out))
        return
    results, out = run_job(config, values.out), pathlib.Path(values.out)
    if not (out / "adapter").exists():
        export_workdir(out, "peft", out / "adapter")
    command.print_scores(results)
    print(f"report:  {out / 'report.md'}\nadapter: {out / 'adapter'}")
    if (out / "merged").exists():
        print(f"merged:  {out / 'merged'}")
    print(f'ask:     selfparam ask {out} "..."')
