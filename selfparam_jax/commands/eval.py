"""Asks tasks of lm-evaluation-harness: of a job's base and injected model side by side, or of any model.

    selfparam eval WORKDIR|MODEL --tasks=TASK,TASK [--include_path=DIR] [--limit=N] [--out=FILE]

WORKDIR is of job `batch`, one injection of job `single` (WORKDIR/contexts/000), or one sequence of job `sequential`
(WORKDIR/sequences/000); WORKDIR@STEP is a checkpoint of it. An adapter's folder needs --base=MODEL. A MODEL is a
Hugging Face directory, a .gguf file, a hub id or the embedded model's name.

Tasks are named as the harness names them; --include_path adds task files of one's own. A task file may name Python
functions, which the harness runs: only give folders that you trust. Needs the extra `eval`.

Example: selfparam eval runs/batch --tasks=hellaswag,gsm8k --limit=100 --out=eval.json
"""

import argparse

from selfparam_jax.commands import command
from selfparam_jax.jobs.harness import (
    BATCH,
    FEWSHOT,
    LIMIT,
    HarnessConfig,
    check_scores_file,
    evaluate_tasks,
    score_rows,
    write_scores,
)


def main(argv: list[str] | None = None) -> None:
    """Asks the tasks and prints a table; ends the process with 1 for input that cannot be used."""
    parser = command.make_parser("eval", __doc__)
    parser.add_argument("source", metavar="WORKDIR|MODEL")
    parser.add_argument("--tasks", default="", help="names of tasks or groups, separated by commas")
    parser.add_argument("--include_path", default="", metavar="DIR", help="a folder of task files (.yaml)")
    parser.add_argument(
        "--limit",
        type=command.Number(int, LIMIT),
        default=0,
        help="only the first examples of each task; default: all",
    )
    parser.add_argument("--out", default="", metavar="FILE", help="scores as JSON; default: no file")
    parser.add_argument(
        "--num_fewshot", type=command.Number(int, FEWSHOT), help="worked examples before each; default: the task's"
    )
    parser.add_argument("--chat", action="store_true", help="prompts go through the model's chat template")
    parser.add_argument(
        "--batch_size", type=command.Number(int, BATCH), default=16, help="rows together (default: 16)"
    )
    parser.add_argument("--dtype", default="float32", help="of a MODEL's weights (default: float32)")
    parser.add_argument("--base", default="", metavar="MODEL", help="the model below an adapter")
    command.add_unfinished(parser)
    command.run(_eval, parser.parse_args(argv))


def _eval(arguments: argparse.Namespace) -> None:
    config = HarnessConfig(
        tuple(name.strip() for name in arguments.tasks.split(",") if name.strip()),
        arguments.include_path,
        arguments.limit,
        arguments.num_fewshot,
        arguments.chat,
        arguments.batch_size,
        arguments.dtype,
    )
    if arguments.out:
        check_scores_file(arguments.out)
    record = evaluate_tasks(arguments.source, config, arguments.base, arguments.unfinished)
    if arguments.out:
        write_scores(record, arguments.out)
    header, rows = score_rows(record)
    widths = [max(len(row[n]) for row in (header, *rows)) for n in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if arguments.out:
        print(arguments.out)
