"""The base model's own answers to unrelated questions and instructions, for examples/general_chat.jsonl.

    python -m benchmarks.general_chat --questions=examples/general_chat.jsonl --out=/tmp/general_chat.jsonl

`targets.chat_per_epoch` reads them, so that a model keeps its manner in conversations.
"""

import json
import pathlib

from absl import app, flags

from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.inference.decoding import generate

MODEL = flags.DEFINE_string("model", DEFAULT_MODEL, "What a configuration's `model` may be.")
QUESTIONS = flags.DEFINE_string("questions", "examples/general_chat.jsonl", 'JSON lines with "question".')
OUT = flags.DEFINE_string("out", None, "Where the questions with the answers are written.", required=True)
TOKENS = flags.DEFINE_integer("tokens", 40, "The longest answer; a longer one ends with its last whole sentence.")


def main(_) -> None:
    """Asks the base every question through its chat template, greedily."""
    model = load_model(MODEL.value)
    chat = Prompt("chat", model.tokenizer, model.end_ids)
    lines = pathlib.Path(QUESTIONS.value).read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines]
    rows = [chat.exchanges([(question, "x")])[0].question for question in questions]
    variables = {"params": model.params}
    made = generate(model.decoder(), variables, chat.start_ids, rows, TOKENS.value, chat.end_ids, batch_size=32)
    with open(OUT.value, "w", encoding="utf-8") as file:
        for question, ids in zip(questions, made, strict=True):
            answer, ended = chat.reply(ids)
            if not ended:
                answer = answer[: max(answer.rfind(". "), answer.rfind(".\n"), answer.rfind("\n")) + 1] or answer
            file.write(json.dumps({"question": question, "answer": answer.strip()}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    app.run(main)
