"""How much of what stands in the prompt a model answers, per prompt format, on the development documents.

    python -m benchmarks.prompt_formats

Prints a Markdown table. The format was chosen on these documents, never on those that are reported on.
"""

from absl import app, flags

from configs.base import EXAMPLES
from selfparam_jax import evaluate, hub
from selfparam_jax.contexts import load_contexts
from selfparam_jax.model import Decoder
from selfparam_jax.prompts import FORMATS, Prompt

MODEL = flags.DEFINE_string("model", hub.DEFAULT_MODEL, "What a configuration's `model` may be.")
CONTEXTS = flags.DEFINE_string("contexts", str(EXAMPLES / "development.jsonl"), "Contexts with questions.")
FORMAT_NAMES = flags.DEFINE_list("formats", list(FORMATS), "Which formats.")


def main(_) -> None:
    """Base Q and Base C+Q for every format."""
    base = hub.load_pretrained(MODEL.value)
    model, variables = Decoder(base.config), {"params": base.params}
    contexts = load_contexts(CONTEXTS.value)
    print("| format | Base Q F1 | Base C+Q F1 | gold contained | F1, paper's protocol |")
    print("| --- | --- | --- | --- | --- |")
    for name in FORMAT_NAMES.value:
        prompt = Prompt(name, base.tokenizer)
        without, with_context = (
            evaluate.summarize(evaluate.answer_questions(model, variables, prompt, contexts, with_context))
            for with_context in (False, True)
        )
        row = [with_context[key] for key in ("f1", "contains", "f1_paper")]
        print(f"| {name} | {without['f1']:.3f} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
