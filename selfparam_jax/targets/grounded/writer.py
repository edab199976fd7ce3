"""The writer "grounded": pairs by rules from a document's own sentences, chosen by the model that will learn them."""

import zlib
from collections.abc import Callable, Sequence

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.passages import Passage
from selfparam_jax.targets.config import GeneratorConfig
from selfparam_jax.targets.grounded.facts import choose_pairs, find_facts

RULES = 3  # counts up when the rules change: pairs of other rules are not mixed in one file
KIND = "grounded."  # what the kinds of its pairs begin with

# The teacher's likelihood of each pair's answer with the document in the prompt, and without it.
Score = Callable[[Document, Sequence[QAPair]], Sequence[tuple[float, float]]]


class GroundedWriter:
    """Makes pairs from the sentences of a document; a teacher may choose among their wordings.

    Attributes:
      name: of the writer, for the pairs file.
      concurrency: how many documents may be worked on at a time.
    """

    name = "grounded"
    concurrency = 1  # the teacher's devices are shared

    def __init__(self, config: GeneratorConfig):
        """`config` gives the wordings of a fact and the seed of what is held out."""
        self._config = config

    def settings(self, scored: bool) -> dict:
        """What decides which pairs are made; the first line of a pairs file."""
        return {
            "model": self.name,
            "rules": RULES,
            "wordings": self._config.wordings,
            "seed": self._config.seed,
            "teacher_scores": scored,
        }

    def write_about(self, document: Document, score: Score | None = None) -> tuple[dict, list[dict]]:
        """Makes the pairs of one document.

        Args:
          document: its questions decide whether some pairs are held out: only where it has none.
          score: the teacher.

        Returns:
          what was covered ("sentences", "covered", "facts", "uncovered": the sentences without a question), and a
          line per pair: "prompt", "question", "answer", perhaps "likelihood", "likelihood_without" and "held_out".
        """
        if isinstance(document, Passage) and document.parts:
            # Each of its parts is a document of its own, and the rules see nothing beyond a sentence.
            return {"sentences": 0, "covered": 0, "facts": 0, "uncovered": []}, []
        facts = find_facts(document)
        judge = None if score is None else lambda pairs: score(document, pairs)
        seed = zlib.crc32(f"{self._config.seed}".encode())
        chosen, likelihoods = choose_pairs(facts, self._config.wordings, judge, not document.questions, seed)
        lines = []
        for each, both in zip(chosen, likelihoods, strict=True):
            line = {"prompt": KIND + each.kind, "question": each.pair.question, "answer": each.pair.answer}
            if both is not None:
                line["likelihood"], line["likelihood_without"] = (round(value, 5) for value in both)
            lines.append({**line, "sentence": each.sentence, **({"held_out": True} if each.held_out else {})})
        asked = {each.sentence for each in chosen if each.kind != "completion"}
        uncovered = [sentence.text for n, sentence in enumerate(facts.sentences) if n not in asked]
        summary = {
            "sentences": len(facts.sentences),
            "covered": len(asked),
            "facts": len({(each.sentence, each.pair.answer) for each in chosen if each.kind != "completion"}),
            "uncovered": uncovered,
        }
        return summary, lines
