"""What the options for precision and memory cost and change: one training step after the other, by turns.

    python -m benchmarks.options --out=options.json [--steps=6] [--rows=4 --seq_len=288] [--only=remat,int8]

Every option trains the embedded model on the same packed rows of one example document; the first keeps everything for
the backward pass, in float32. The table has the bytes of the base, what XLA reserves beside weights, adapter and
optimizer (exact, from the compiled program), the median time of a step over that of the first, and how far the losses
are from the first's. The options of matmul_precision have the layers apart, as jobs on one CPU device have them. A
base in other numbers (bfloat16, int8) is its own teacher; how far it is from the float32 base is the mean KL of its
next-token distribution on general text. With dtype=bfloat16 a CPU computes through float32: what it reserves and how
long it takes there says nothing about an accelerator.
"""

import dataclasses
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.workload import LORA, example_contexts, make_sentences, plan_of, train_config
from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import load_texts
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.resources import resource
from selfparam_jax.distributed import files, mesh
from selfparam_jax.evaluation.drift import measure_drift, read_general
from selfparam_jax.models.attention import runs_on
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.models.lora import init_lora
from selfparam_jax.models.unstacked import layers_apart
from selfparam_jax.targets.sentences import Sentence
from selfparam_jax.training import teacher, teacher_states, train_step
from selfparam_jax.training.batches import Plan, make_batch
from selfparam_jax.training.optimizer import TrainConfig, make_optimizer

OUT = flags.DEFINE_string("out", None, "Where the results go (JSON).", required=True)
STEPS = flags.DEFINE_integer("steps", 6, "Measured steps of every option.", lower_bound=2)
ONLY = flags.DEFINE_list("only", [], "Only options whose name has one of these in it (and the first).")
MODEL = flags.DEFINE_string("model", DEFAULT_MODEL, "The model.")
ROWS = flags.DEFINE_integer("rows", 4, "Rows of a step.", lower_bound=1)
LENGTH = flags.DEFINE_integer("seq_len", 288, "Tokens of a row.", lower_bound=1)

GENERAL = 24  # texts


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to run the step; the fields are those of a configuration, and `apart`: the base's layers apart.

    `matmul` is the setting matmul_precision.
    """

    dtype: str = "float32"
    int8: bool = False
    remat: str = "none"
    attention: str = "blocks"
    accumulate: int = 1
    apart: bool = False
    matmul: str = "float32"

    @property
    def base(self) -> tuple[str, bool, str]:
        """How the base is held, and multiplied with."""
        return self.dtype, self.int8, self.matmul


OPTIONS = {
    "remat=none": Option(),
    "layers apart": Option(apart=True),
    "matmul_precision=bfloat16": Option(apart=True, matmul="bfloat16"),
    "matmul_precision=bfloat16, base_weights=int8": Option(apart=True, matmul="bfloat16", int8=True),
    "remat=products": Option(remat="products"),
    "remat=layers": Option(remat="layers"),
    "train.accumulate=2": Option(accumulate=2),
    "train.accumulate=4": Option(accumulate=4),
    "attention=xla": Option(attention="xla"),
    "attention=cudnn, dtype=bfloat16": Option(attention="cudnn", dtype="bfloat16"),
    "attention=splash, dtype=bfloat16": Option(attention="splash", dtype="bfloat16"),
    "base_weights=int8": Option(int8=True),
    "dtype=bfloat16": Option(dtype="bfloat16"),
    "dtype=bfloat16, base_weights=int8": Option(dtype="bfloat16", int8=True),
    "dtype=bfloat16, base_weights=int8, remat=layers, train.accumulate=4": Option(
        "bfloat16", True, "layers", accumulate=4
    ),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What all options train on: the prefix of a document, its sentences, and in which rows they stand."""

    prefixes: list[tuple[int, ...]]
    sentences: list[Sentence]
    config: TrainConfig
    plan: Plan


class Trained:
    """One option on its way through the steps."""

    def __init__(self, option: Option, base: Model, work: Work, store: teacher_states.Store):
        plan = work.plan
        self.option, self.plan, self.store = option, plan, store
        self.params = (layers_apart(base.variables) if option.apart else base.variables)["params"]
        self.mesh = mesh.make_mesh(jax.devices()[:1])
        optimizer = make_optimizer(work.config, plan.steps)
        model = Decoder(base.config, jnp.dtype(option.dtype), option.remat, LORA.scale, attention=option.attention)
        parts, int8 = option.accumulate, option.int8
        step = train_step.compile_step(model, optimizer, self.mesh, accumulate=parts, int8=int8)
        lora = init_lora(jax.random.key(0), base.params, LORA)
        self.state = mesh.put_same(self.mesh, train_step.init_state(lora, optimizer))
        self.step = step.lower(self.state, self.params, self.batch(0), jax.random.key(0)).compile()
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def batch(self, step: int) -> train_step.Batch:
        """The rows of a step."""
        return make_batch(self.plan.rows(step), self.store, self.mesh, False, self.option.accumulate)

    def advance(self, step: int) -> None:
        """One step, timed once its rows are on the device."""
        batch = jax.block_until_ready(self.batch(step))
        began = time.perf_counter()
        self.state, metrics = self.step(self.state, self.params, batch, jax.random.key(0))
        self.losses.append(float(metrics["loss"]))
        self.seconds.append(time.perf_counter() - began)

    @property
    def reserved(self) -> int:
        """Bytes that XLA reserves beside what the step is given."""
        return self.step.memory_analysis().temp_size_in_bytes


def chosen(only: Sequence[str], rows: int) -> dict[str, Option]:
    """The options asked for that this backend has and that so many rows can be split for."""
    names = [
        name for number, name in enumerate(OPTIONS) if not number or not only or any(part in name for part in only)
    ]
    there = {name: OPTIONS[name] for name in names if runs_on(OPTIONS[name].attention, jax.default_backend())}
    return {name: option for name, option in there.items() if rows % option.accumulate == 0}


def read_work(prompt: Prompt, rows: int, length: int) -> Work:
    """One example document."""
    contexts = example_contexts(1)
    sentences, config = make_sentences(contexts, prompt), train_config(4, rows, length)
    prefixes = [prompt.context_prefix(context.text) for context in contexts]
    return Work(prefixes, sentences, config, plan_of(sentences, prompt, config))


def prepare(options: dict[str, Option], load: Callable, rows: int, length: int) -> tuple[dict[str, Trained], dict]:
    """Every option compiled, and how far each base is from the first on general text."""
    texts = load_texts(resource("examples", "general_eval.jsonl"))[:GENERAL]
    trained, bases, stores, drift = {}, {}, {}, {}
    for name, option in options.items():
        if option.base not in bases:
            base = bases[option.base] = load(option)
            model, variables = Decoder(base.config, jnp.dtype(option.dtype)), base.variables
            prompt = Prompt("plain", base.tokenizer)
            work = read_work(prompt, rows, length)
            one = mesh.make_mesh(jax.devices()[:1])
            reader = teacher.Reader(model, variables, base.fingerprint, tuple(prompt.start_ids), one, rows, length)
            with tempfile.TemporaryDirectory() as scratch:
                stores[option.base] = teacher_states.teacher_store(
                    reader, work.prefixes, work.sentences, pathlib.Path(scratch)
                )
            if not drift:
                general = read_general(model, variables, prompt, texts)
            drift[option.base] = measure_drift(model, general, variables)
        trained[name] = Trained(option, bases[option.base], work, stores[option.base])
    return trained, {name: drift[option.base] for name, option in options.items()}


def measure(options: dict[str, Option], load: Callable, steps: int, rows: int, length: int) -> list[dict]:
    """What each option holds, reserves and takes."""
    trained, drift = prepare(options, load, rows, length)
    if steps >= (most := next(iter(trained.values())).plan.steps):
        raise app.UsageError(f"--steps={steps}, expected fewer than {most}: one more is needed to warm up")
    for step, each in itertools.product(range(steps + 1), trained.values()):
        each.advance(step)
    first = next(iter(trained.values()))
    median = {name: statistics.median(each.seconds[1:]) for name, each in trained.items()}
    return [
        {
            "option": name,
            "base_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(each.params)),
            "reserved_bytes": each.reserved,
            "step_s": median[name],
            "step_ratio": statistics.median(
                mine / theirs for mine, theirs in zip(each.seconds[1:], first.seconds[1:], strict=True)
            ),
            "loss_difference": max(
                abs(mine - theirs) / theirs for mine, theirs in zip(each.losses, first.losses, strict=True)
            ),
            "kl_to_float32": drift[name]["kl"],
            "perplexity": drift[name]["perplexity_after"],
        }
        for name, each in trained.items()
    ]


def table(rows: Sequence[dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| option | base | reserved | step | losses off by | KL of the base to float32 | perplexity |",
        "| --- " * 7 + "|",
    ]
    for row in rows:
        lines.append(
            f"| {row['option']} | {row['base_bytes'] / 1e6:.0f} MB | {row['reserved_bytes'] / 1e6:.0f} MB | "
            f"{row['step_ratio']:.2f} | {row['loss_difference']:.1e} | {row['kl_to_float32']:.1e} | "
            f"{row['perplexity']:.2f} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures, writes and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")

    def load(option: Option) -> Model:
        return load_model(MODEL.value, jnp.dtype(option.dtype), int8=option.int8, matmul_precision=option.matmul)

    rows = measure(chosen(ONLY.value, ROWS.value), load, STEPS.value, ROWS.value, LENGTH.value)
    device = jax.devices()[0]
    files.write_json(OUT.value, {"device": device.device_kind, "jax": jax.__version__, "options": rows})
    print(table(rows))


if __name__ == "__main__":
    app.run(main)
