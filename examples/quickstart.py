"""Writes a document into a model's weights and asks about it before and after.

python examples/quickstart.py [MODEL]
"""

import sys

import selfparam_jax as sp

TEXT = """The village of Vessa was founded in 1871 by the engineer Ida Corrin. Its first teacher was Orla Tunn, who
had a tame seal called Biscuit."""
# An answer, two questions to train on, and one that is only asked afterwards.
FACTS = (
    ("1871", "When was Vessa founded?", "Which year saw the founding of Vessa?", "In what year was Vessa founded?"),
    ("Ida Corrin", "Which engineer founded Vessa?", "By whom was Vessa founded?", "Who founded Vessa?"),
    ("Orla Tunn", "Who first taught Vessa?", "Who was the first teacher at Vessa?", "Who was Vessa's first teacher?"),
    ("Biscuit", "Who was Orla Tunn's seal?", "Which seal had Orla Tunn?", "What was Orla Tunn's seal called?"),
)


def main(source: str) -> None:
    """Runs it on a model: the name of the embedded one, a directory, a GGUF file or a hub id."""
    model = sp.load_model(source)
    pairs = [sp.QAPair(question, answer) for answer, *asked, _ in FACTS for question in asked]
    questions = [sp.Question(question, (answer,)) for answer, *_, question in FACTS]
    document = sp.Document(TEXT, title="Vessa", qa_pairs=pairs, questions=questions)
    adapter = sp.inject(model, [document], sp.Recipe(epochs=16))
    for found in sp.evaluate(adapter, [document])["predictions"]:
        print(f"{found['question']}\n  before: {found['base_q']['answer']}\n  after:  {found['injected']['answer']}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
