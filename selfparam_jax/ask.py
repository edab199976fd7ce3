"""Ask a finished run: `python -m selfparam_jax.ask --workdir=DIR "question"`.

Prints side by side what the base model says, what it says with the document in its prompt, and what the
injected model says without it.
"""

from absl import app, flags

from selfparam_jax import command, jobs

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a finished or running job.")
CONTEXT = flags.DEFINE_string(
    "context", None, "Id of the document for Base C+Q, and for job 'single' the model that was injected with it; "
    "without it, the document that shares the most distinctive words with the question."
)  # fmt: skip
flags.mark_flag_as_required("workdir")

LABELS = {
    "base_q": "base model",
    "base_cq": "base model + document",
    "injected": "injected model",
}


def main(argv: list[str]) -> None:
    """Answers every question on the command line."""
    if len(argv) < 2:
        raise app.UsageError('give at least one question, for example "Who founded Quenbarrow?"')
    answers = command.run(jobs.ask, WORKDIR.value, argv[1:], CONTEXT.value)
    width = max(map(len, LABELS.values()))
    for question, answer in zip(argv[1:], answers, strict=True):
        print(f"\n{question}")
        for system, label in LABELS.items():
            print(f"  {label:{width}}  {answer[system] or '(nothing)'}")
        print(f"  {'document':{width}}  {answer['document']}")


if __name__ == "__main__":
    app.run(main)
