"""Writes the model of a finished job for other programs.

    selfparam export WORKDIR --format=hf|peft|gguf --out=DIR [--dtype=bfloat16]

hf: the merged model as a Hugging Face directory, for transformers, vLLM or llama.cpp's converter. peft: the adapter
in PEFT's layout. gguf: the merged model as a file of llama.cpp (--dtype=float16 or q8_0). The files are loaded again
and compared with the model in memory; README.md beside them is a model card.

WORKDIR is of job `batch`, one injection of job `single` (WORKDIR/contexts/000), or one sequence of job `sequential`
(WORKDIR/sequences/000; its only one can be given as WORKDIR). It may also be the directory of a ledger, of an adapter
composed from one, or of an adapter in PEFT's layout, ours or another's; the last two need --base=MODEL.

Example: selfparam export runs/batch --format=peft --out=adapter
"""

import argparse

from selfparam_jax.commands import command
from selfparam_jax.jobs.export import FORMATS, export_workdir

DTYPES = tuple(dict.fromkeys(dtype for form in FORMATS.values() for dtype in form.dtypes))


def main(argv: list[str] | None = None) -> None:
    """Writes the export; ends the process with 1 for input that cannot be used."""
    parser = command.make_parser("export", __doc__)
    parser.add_argument("workdir", help="work directory of a job, or of one of its injections or sequences")
    parser.add_argument("--format", required=True, choices=sorted(FORMATS))
    parser.add_argument("--out", required=True, help="a new directory")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: the job's")
    parser.add_argument("--base", default="", help="the model below an adapter")
    command.add_unfinished(parser)
    command.run(_export, parser.parse_args(argv))


def _export(arguments: argparse.Namespace) -> None:
    found = export_workdir(
        arguments.workdir, arguments.format, arguments.out, arguments.dtype, arguments.base, arguments.unfinished
    )
    print(f"{arguments.out}: {FORMATS[arguments.format].description}")
    print_round_trip(found)


def print_round_trip(found: dict) -> None:
    """Prints what the round trip of an export found."""
    for reader, result in found.items():
        if isinstance(result, dict) and "max_token_kl" in result:
            print(
                f"read again by {reader}: largest KL divergence of a token {result['max_token_kl']:.2e} nats, "
                f"greedy agreement {result['greedy_agreement']:.1%}"
            )
        elif isinstance(result, dict):
            print(f"not read again by {reader}: {result['not_checked']}")
