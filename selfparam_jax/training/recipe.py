"""How documents are written into a model: everything that decides the result beside the model and the texts."""

import dataclasses
import difflib
from typing import Annotated

from jax.sharding import Mesh

from selfparam_jax.data.passages import LEAST_TOKENS
from selfparam_jax.data.prompts import FORMATS
from selfparam_jax.distributed.mesh import round_up_rows
from selfparam_jax.distributed.ranges import SEED, Range, check_kinds, check_ranges
from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.decoder import REMAT
from selfparam_jax.models.lora import LoraConfig
from selfparam_jax.targets.config import EndpointConfig, GeneratorConfig, TargetConfig
from selfparam_jax.training.optimizer import TrainConfig

AUTO = "auto"
# With `remat` "auto": what a step may keep for its backward pass before it computes the layers again, and how many
# numbers a layer keeps of a token, by the width of the model and of its feed-forward part.
KEPT_BYTES = 2**30
KEPT_OF_HIDDEN, KEPT_OF_INTERMEDIATE = 16, 4
# The sections whose fields may be given by their own names.
_FLAT = ("targets", "lora", "train", "generator")
# The documents of all examples, of PwC and nearly all of SQuAD are shorter.
PASSAGE_TOKENS = 512
RELATED_SHARE = 0.2
PASSAGE_RANGE = Range(LEAST_TOKENS, 2**30, also={0: "split nothing"})
RELATED_RANGE = Range(0, 0.5)
# Adapter and optimizer of the code that the paper's authors released: AdamW as PyTorch has it, at a constant rate.
RELEASED = {
    "lora": {"rank": 8, "alpha": 32.0, "dropout": 0.1},
    "train": {
        "learning_rate": 2e-5,
        "schedule": "constant",
        "warmup": 0.0,
        "clip_norm": 0.0,
        "weight_decay": 0.01,
        "beta2": 0.999,
    },
}


@dataclasses.dataclass(frozen=True, init=False)
class Recipe:
    """Target sentences, adapter and training of an injection.

    A field of a section may be given by its own name where only one section has it: `Recipe(epochs=5, rank=16)` is
    `Recipe(train=TrainConfig(epochs=5), lora=LoraConfig(rank=16))`.

    Attributes:
      seed: of everything that is drawn, 0 to 2**32 - 1.
      prompt: how document, question and answer become text: "plain", "few_shot", "paper" or "chat".
      remat: what the backward pass computes again: "layers", "products", "none", or "auto" (`chosen_remat`).
      targets: which target sentences, and the loss on their tokens.
      generator: how pairs are written for documents that bring none.
      endpoint: the server that writes them, for `targets.generator` "endpoint".
      lora: shape of the adapter.
      train: optimizer, batches and epochs.
      passage_tokens: a document of more tokens than this is read as passages of at most as many; 0 splits none.
      related_share: of what a model or a server writes pairs about in a long document (targets.generator "local",
        "endpoint"), how much is two or three related passages that are read together, 0 to 0.5.

    Raises:
      ValueError: an unknown name, one that several sections have, or a value outside its range.
      TypeError: a section that is no instance of its class, or what is True or False is neither.
    """

    seed: Annotated[int, SEED] = 0
    prompt: str = "few_shot"
    remat: str = AUTO
    targets: TargetConfig = TargetConfig()
    generator: GeneratorConfig = GeneratorConfig()
    endpoint: EndpointConfig = EndpointConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    passage_tokens: Annotated[int, PASSAGE_RANGE] = PASSAGE_TOKENS
    related_share: Annotated[float, RELATED_RANGE] = RELATED_SHARE

    def __init__(self, **given):
        own = {field.name: field.default for field in dataclasses.fields(self)}
        flat: dict[str, dict] = {}
        for name in sorted(given.keys() - own.keys()):
            flat.setdefault(_section_of(name, own), {})[name] = given.pop(name)
        values = own | given
        check_kinds(type(self), values)
        for section, fields in flat.items():
            values[section] = dataclasses.replace(values[section], **fields)
        # Filled in from elsewhere, so that the parts that read them need nothing else.
        values["train"] = dataclasses.replace(values["train"], seed=values["seed"])
        values["generator"] = dataclasses.replace(
            values["generator"],
            generator=values["targets"].generator,
            answer_shape=values["targets"].answer_shape,
            seed=values["seed"],
        )
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        for name, value, allowed in (("prompt", self.prompt, FORMATS), ("remat", self.remat, (AUTO, *REMAT))):
            if value not in allowed:
                raise ValueError(f"{name} = {value!r}, expected one of {', '.join(allowed)}")
        check_ranges(self)
        targets = self.targets
        if self.generator.model and targets.generator != "local":
            raise ValueError(
                f"generator.model = {self.generator.model!r} with targets.generator = {targets.generator!r}, "
                "expected 'local', which alone asks it; set targets.generator=local, or take generator.model out"
            )
        if not targets.learns:
            raise ValueError(
                f"nothing of the documents would be learned: with targets.qa_weight = {targets.qa_weight}, "
                f"loss_tokens = {targets.loss_tokens!r} and answer_supervision = {targets.answer_supervision} no "
                f"pair has a loss, and with tails_per_context = {targets.tails_per_context} and tail_weight = "
                f"{targets.tail_weight} no tail has one; expected one of them with a weight above 0"
            )

    @property
    def supervised(self) -> bool:
        """Whether a next-token loss is taken beside the KL."""
        return self.targets.answer_supervision > 0

    def fit_to(self, mesh: Mesh) -> "Recipe":
        """The recipe with its batch size rounded up to what the mesh can split."""
        size = round_up_rows(mesh, self.train.batch_size, self.train.accumulate)
        return dataclasses.replace(self, train=dataclasses.replace(self.train, batch_size=size))

    def record(self) -> dict:
        """What makes the result, {"lora.rank": 8, ...}; without what only says how it is computed or written."""
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in ("targets", "lora", "train")}
        names = ("seed", "prompt", "passage_tokens", "related_share")
        found = {name: getattr(self, name) for name in names}
        for section, fields in sections.items():
            found |= {f"{section}.{name}": value for name, value in fields.items()}
        for name in ("train.seed", "train.checkpoint_every"):
            del found[name]
        return found


def chosen_remat(remat: str, config: ModelConfig, train: TrainConfig, item_bytes: int) -> str:
    """What the backward pass computes again.

    A function of the shapes alone, not of the memory that is free just now: a resumed job computes the same.

    Args:
      remat: of a recipe.
      config: the model's architecture.
      train: size of a step and number of its parts.
      item_bytes: bytes of an activation.

    Returns:
      a key of `decoder.REMAT`; for "auto" it is "none" if about 1 GiB is kept at most, else "layers".
    """
    if remat != AUTO:
        return remat
    numbers = KEPT_OF_HIDDEN * config.hidden_size + KEPT_OF_INTERMEDIATE * config.intermediate_size
    tokens = train.batch_size // train.accumulate * train.seq_len
    return "none" if tokens * config.num_hidden_layers * numbers * item_bytes <= KEPT_BYTES else "layers"


def _section_of(name: str, own: dict) -> str:
    """The section that has a field of this name."""
    fields = {
        section: [field.name for field in dataclasses.fields(own[section]) if not field.metadata.get("derived")]
        for section in _FLAT
    }
    having = [section for section, names in fields.items() if name in names]
    if len(having) == 1:
        return having[0]
    if having:
        raise ValueError(
            f"Recipe({name}=...): {' and '.join(having)} have a field of this name; give the section, as in "
            f"Recipe({having[-1]}={type(own[having[-1]]).__name__}({name}=...))"
        )
    known = sorted({*own, *(each for names in fields.values() for each in names)})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
    raise ValueError(f"Recipe got the unknown field {name!r}; {hint}")
