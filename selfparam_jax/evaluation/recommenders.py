"""What recommends titles at a turn of a dialogue, behind one protocol.

The registry is `baselines.registry.RECOMMENDERS`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Protocol

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed.ranges import Range, check_ranges
from selfparam_jax.evaluation.systems import SystemEntry
from selfparam_jax.inference.decoding import generate
from selfparam_jax.targets.sentences import Sentence

ASK = (
    "You are a movie recommender. Read the conversation between a user and you, and reply with 20 recommendations, "
    "without extra sentences.\nConversation: {dialogue}"
)


@dataclasses.dataclass(frozen=True)
class RecommendConfig:
    """What job "recommend" asks, and whom.

    Attributes:
      records: JSONL file of the turns at which titles are to be recommended, in the layout of the LLM
        conversational-recommendation benchmark ("input", "rec", "prev_entity"); "examples" is ours.
      entities: JSON file {name: id} of all entities; "examples" is ours.
      item_ids: JSON file of the ids of titles; "examples" is ours.
      turns: only the first of the records, at most this many; 0 means all.
      systems: who recommends beside the injected model, by name (`baselines.registry.RECOMMENDERS`).
      prompt: the user turn that asks; {dialogue} stands for the dialogue.
      new_tokens: the longest reply.
      retrieved: dialogues that system "bm25" has in its prompt.

    Raises:
      ValueError: a value outside its range.
    """

    records: str = "examples"
    entities: str = "examples"
    item_ids: str = "examples"
    turns: Annotated[int, Range(1, 10**9, also={0: "all"})] = 0
    systems: tuple[str, ...] = ("base", "popularity")
    prompt: str = ASK
    new_tokens: Annotated[int, Range(1, 2**20)] = 512
    retrieved: Annotated[int, Range(1, 10**4)] = 3

    def __post_init__(self):
        check_ranges(self, "recommend")
        if "{dialogue}" not in self.prompt:
            raise ValueError("recommend.prompt has no {dialogue}, expected it where the dialogue is to stand")


@dataclasses.dataclass(frozen=True)
class RecommendSetup:
    """What a recommender is made from.

    Attributes:
      model: the base.
      config: prompt, length of a reply, number of retrieved dialogues.
      batch_size: turns decoded together.
      lora, lora_scale: an adapter that was trained on the documents, and its scale; None where there is none.
    """

    model: Model
    config: RecommendConfig
    batch_size: int = 16
    lora: dict | None = None
    lora_scale: float = 1.0


class Recommender(Protocol):
    """Something that recommends titles."""

    def prepare(self, documents: Sequence[Document]) -> None:
        """Reads or indexes the training dialogues; called once."""

    def recommend(self, dialogues: Sequence[str]) -> Iterator[tuple[int, str, str]]:
        """Yields (index of the dialogue, prompt, reply) as replies arrive, in any order."""


@dataclasses.dataclass(frozen=True)
class RecommenderEntry(SystemEntry):
    """A recommender in the registry.

    Attributes:
      sentences: what its adapter is fine-tuned on: a function of documents, prompt, recipe and unrelated texts; None
        for a system that is not fine-tuned.
    """

    sentences: Callable[..., list[Sentence]] | None = dataclasses.field(default=None, kw_only=True)


def recommending_prompt(model: Model) -> Prompt:
    """The model's chat template, or the plain format for a model that has none."""
    return Prompt("chat" if model.has_chat_template else "plain", model.tokenizer, model.end_ids)


@dataclasses.dataclass
class ModelRecommender:
    """A model that is asked for titles: the base, or with the adapter of its setup."""

    setup: RecommendSetup

    def prepare(self, documents: Sequence[Document]) -> None:
        """Nothing is prepared: an adapter is in the setup."""

    def ask(self, dialogue: str) -> str:
        """The user turn for a dialogue."""
        return self.setup.config.prompt.replace("{dialogue}", dialogue)

    def recommend(self, dialogues: Sequence[str]) -> Iterator[tuple[int, str, str]]:
        setup = self.setup
        model, prompt = setup.model, recommending_prompt(setup.model)
        variables = model.variables
        decoder = model.decoder()
        if setup.lora is not None:
            variables, decoder = variables | {"lora": setup.lora}, model.decoder(lora_scale=setup.lora_scale)
        asked = [self.ask(dialogue) for dialogue in dialogues]
        ids = [prompt.question(text) for text in asked]
        # Of similar length together: a batch is as wide as its longest prompt.
        order = sorted(range(len(ids)), key=lambda n: (len(ids[n]), n))
        for begin in range(0, len(order), setup.batch_size):
            chunk = order[begin : begin + setup.batch_size]
            made = generate(
                decoder,
                variables,
                prompt.start_ids,
                [ids[n] for n in chunk],
                setup.config.new_tokens,
                prompt.end_ids,
                batch_size=setup.batch_size,
            )
            for n, tokens in zip(chunk, made, strict=True):
                end = next((place for place, token in enumerate(tokens) if token in prompt.end_ids), len(tokens))
                yield n, asked[n], prompt.decode(tokens[:end]).strip()
