"""How a step changes the adapter: the settings of training, the learning rate of every step, AdamW.

The learning rate is state of the optimizer, set on the host before each step (`optax.inject_hyperparams`). The number
of steps is therefore no constant of the compiled step, and all injections of one recipe share one program.
"""

import dataclasses
import functools
from typing import Annotated

import jax
import numpy as np
import optax

from selfparam_jax.distributed.ranges import FACTOR, LARGEST, SEED, SHARE, Range, check_ranges
from selfparam_jax.training.losses import DEFAULT_CHUNK

SCHEDULES = ("constant", "linear", "cosine")
TEACHERS = ("stored", "online")
MOST_TOKENS = 2**26  # of a step: 16 times what the largest models are trained with
DECAY = Range(0, 1, open_most=True)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Batches, optimizer and checkpoints of one injection.

    Attributes:
      epochs: passes over the QA pairs.
      batch_size: rows per optimizer step, rounded up to a multiple of the devices that rows are split over.
      accumulate: parts that the rows of a step are cut into, computed one after another to use less memory; a divisor
        of batch_size.
      seq_len: tokens per row; sentences are packed into rows.
      teacher: "stored": the teacher reads every sentence once, before training. "online": it reads each step's
        sentences again, unpacked and each after its whole context. That is the slow reference, and what a teacher
        that changes needs.
      loss_chunk: loss positions per device whose logits over the vocabulary are in memory at a time.
      pack: False puts one sentence into each row (the slow reference).
      learning_rate: peak of the schedule.
      loraplus_ratio: learning rate of LoRA's B relative to that of A (LoRA+, arXiv 2402.12354).
      schedule: "constant", "linear" or "cosine", after the warm-up.
      warmup: share of the steps over which the learning rate rises linearly to its peak.
      final_fraction: where a linear or cosine schedule ends, relative to the peak.
      clip_norm: global norm that gradients are clipped to; 0 turns clipping off.
      weight_decay: AdamW's decoupled weight decay.
      beta1: AdamW's decay rate of the mean of the gradients.
      beta2: AdamW's decay rate of the mean of their squares.
      temperature: of teacher and student in the KL; 1 is the paper's.
      checkpoint_every: steps from one checkpoint to the next; 0 saves only at the end.
      seed: of the order of the sentences; the run's seed.
    """

    epochs: Annotated[int, Range(1, 100_000)] = 4
    batch_size: Annotated[int, Range(1, 2**20)] = 2
    accumulate: Annotated[int, Range(1, 2**20)] = 1
    seq_len: Annotated[int, Range(1, 2**20)] = 128
    teacher: str = "stored"
    loss_chunk: Annotated[int, Range(1, 2**20)] = DEFAULT_CHUNK
    pack: bool = True
    learning_rate: Annotated[float, Range(1e-12, 1e3)] = 3e-3
    loraplus_ratio: Annotated[float, FACTOR] = 1.0
    schedule: str = "cosine"
    warmup: Annotated[float, SHARE] = 0.05
    final_fraction: Annotated[float, SHARE] = 0.05
    clip_norm: Annotated[float, Range(1e-6, LARGEST, also={0: "no clipping"})] = 1.0
    weight_decay: Annotated[float, Range(0, 1e3)] = 0.0
    beta1: Annotated[float, DECAY] = 0.9
    beta2: Annotated[float, DECAY] = 0.99
    temperature: Annotated[float, Range(1e-3, 1e3)] = 1.0
    checkpoint_every: Annotated[int, Range(1, 10**9, also={0: "at the end only"})] = 100
    seed: Annotated[int, SEED] = dataclasses.field(default=0, metadata={"derived": True})

    def __post_init__(self):
        check_ranges(self, "train")
        if self.batch_size * self.seq_len > MOST_TOKENS:
            raise ValueError(
                f"train.batch_size = {self.batch_size} with train.seq_len = {self.seq_len}, expected at most "
                f"{MOST_TOKENS} tokens together; lower one of them"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"train.accumulate = {self.accumulate}, expected a divisor of train.batch_size = {self.batch_size}"
            )
        for name, allowed in (("schedule", SCHEDULES), ("teacher", TEACHERS)):
            if getattr(self, name) not in allowed:
                choices = ", ".join(repr(choice) for choice in allowed[:-1]) + f" or {allowed[-1]!r}"
                raise ValueError(f"train.{name} = {getattr(self, name)!r}, expected {choices}")


def learning_rate_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup * steps`, then constant, or linear or cosine down to `final_fraction` of the peak.

    The first step already learns something: with a warm-up of w steps, step n of them (from 0) has (n + 1) / (w + 1)
    of the peak.
    """
    warmup = round(config.warmup * steps)
    shape = (config.schedule, config.learning_rate, config.final_fraction)
    return lambda step: _rate(shape, step, np.int32(warmup), np.int32(max(steps - warmup, 1)))


@functools.partial(jax.jit, static_argnums=0)  # one program for any number of steps
def _rate(shape, step, warmup, rest):
    kind, peak, final = shape
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, final * peak, 1),
        "cosine": optax.cosine_decay_schedule(peak, 1, final),
    }[kind]
    whole = [lambda step: peak * (step + 1) / (warmup + 1), lambda step: after(step / rest)]
    return optax.join_schedules(whole, [warmup])(step)


def learning_rates(config: TrainConfig, steps: int) -> np.ndarray:
    """The learning rate of every step, float32 [steps], on the host."""
    rate = learning_rate_schedule(config, steps)
    return np.asarray([rate(np.int32(step)) for step in range(steps)], np.float32)


def make_optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """AdamW on the adapter, with gradients clipped before it and LoRA+'s ratio applied after it.

    `update` is the same function for any number of steps and any schedule; `init` starts with the learning rate of
    step 0, and `set_learning_rate` sets that of the others.
    """
    chain = _optimizer(config.clip_norm, config.weight_decay, config.beta1, config.beta2, config.loraplus_ratio)
    first = learning_rate_schedule(config, steps)(np.int32(0))
    return optax.GradientTransformation(lambda lora: set_learning_rate(chain.init(lora), first), chain.update)


def set_learning_rate(opt_state: optax.OptState, rate: np.ndarray | float) -> optax.OptState:
    """The state of an optimizer of `make_optimizer` with this learning rate for its next update."""
    return opt_state._replace(hyperparams={"learning_rate": np.asarray(rate, np.float32)})


@functools.lru_cache(maxsize=8)
def _optimizer(clip_norm, weight_decay, beta1, beta2, loraplus_ratio) -> optax.GradientTransformation:
    def is_b(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "b", tree)

    @functools.partial(optax.inject_hyperparams, hyperparam_dtype=np.float32)
    def chain(learning_rate):
        return optax.chain(
            optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity(),
            optax.adamw(learning_rate, b1=beta1, b2=beta2, weight_decay=weight_decay),
            optax.masked(optax.scale(loraplus_ratio), is_b),
        )

    injected = chain(learning_rate=0.0)
    return optax.GradientTransformation(jax.jit(injected.init), injected.update)
