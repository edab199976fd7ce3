"""Asks a job: the base, the base with the document in its prompt, and the injected model.

    selfparam ask WORKDIR "question" ... [--document=ID] [--form=chat|reading|bare]

Questions go through the model's chat template if the job trained in it (targets.formats), else they are put in the
job's prompt format; --form chooses.

Example: selfparam ask runs/batch "Who founded the town of Quenbarrow?"
"""

import argparse

from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.commands import command
from selfparam_jax.jobs.ask import ask


def main(argv: list[str] | None = None) -> None:
    """Answers every question on the command line; ends the process with 1 for input that cannot be used."""
    parser = command.make_parser("ask", __doc__)
    parser.add_argument("workdir", help="work directory of a job")
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument(
        "--document",
        help="id of the document for the base with a document, and for job 'single' of the model that is asked; "
        "default: the document that shares the most distinctive words with the question",
    )
    parser.add_argument(
        "--form",
        default="",
        choices=("chat", "reading", "bare"),
        help="chat: through the model's chat template; reading: in the job's prompt format, with short answers; "
        "bare: the question alone; default: as the job trained",
    )
    command.add_unfinished(parser)
    command.run(_ask, parser.parse_args(argv))


def _ask(arguments: argparse.Namespace) -> None:
    answers = ask(arguments.workdir, arguments.questions, arguments.document, arguments.form, arguments.unfinished)
    labels = {name: f"{entry.label} ({entry.meaning})" for name, entry in SYSTEMS.items()}
    width = max(len(labels[name]) for name in answers[0] if name in labels)
    for question, answer in zip(arguments.questions, answers, strict=True):
        print(f"\n{question}")
        for name, text in answer.items():
            print(f"  {labels.get(name, name):{width}}  {text or '(nothing)'}")
