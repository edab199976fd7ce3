"""How much of what stands in the prompt a model answers, per prompt format, on the development documents.

    python -m benchmarks.prompt_formats

Prints a Markdown table. The format was chosen on these documents, never on those that are reported on.
"""

from absl import app, flags

from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.data.documents import read_document_files
from selfparam_jax.data.prompts import FORMATS, Prompt
from selfparam_jax.data.resources import resource
from selfparam_jax.evaluation.questions import answer_questions, summarize
from selfparam_jax.models.decoder import Decoder

MODEL = flags.DEFINE_string("model", DEFAULT_MODEL, "What a configuration's `model` may be.")
CONTEXTS = flags.DEFINE_string("contexts", "", "Documents with questions; the development documents by default.")
FORMAT_NAMES = flags.DEFINE_list("formats", list(FORMATS), "Which formats.")


def main(_) -> None:
    """Base Q and Base C+Q for every format."""
    base = load_model(MODEL.value)
    model, variables = Decoder(base.config), {"params": base.params}
    contexts = read_document_files(CONTEXTS.value or resource("examples", "development.jsonl"))
    print("| format | Base Q F1 | Base C+Q F1 | gold contained | F1, paper's protocol |")
    print("| --- | --- | --- | --- | --- |")
    for name in FORMAT_NAMES.value:
        prompt = Prompt(name, base.tokenizer)
        without, with_context = (
            summarize(answer_questions(model, variables, prompt, contexts, with_context))
            for with_context in (False, True)
        )
        row = [with_context[key] for key in ("f1", "contains", "f1_paper")]
        print(f"| {name} | {without['f1']:.3f} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
