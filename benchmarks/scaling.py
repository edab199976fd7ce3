"""How cost and memory grow with the number of contexts and with the positions of a step.

    python -m benchmarks.scaling --out=scaling.json [--contexts=1,4,16,64] [--repeats=3] [--steps=12] [--epochs=8]

Cost: for each number of contexts a process trains the embedded model on that many, each with `--pairs` training
pairs and a tenth of that of unrelated texts. The teacher reads all of them; of the steps `--steps` are measured, and
their median stands for the rest of `--epochs` epochs. Start-up and compilation are left out (the first context is
used once before anything is timed): they are paid once, however many contexts there are. The processes take turns
`--repeats` times; what is written are medians. Contexts are of different lengths: time per token of their
sentences compares better than time per context.

Memory: the most that a process has held, when the model is loaded and at the end; and what XLA reserves for one
training step beside its arguments, which is exact and needs no run: for the step with every layer recomputed and
without, and for the loss alone in chunks and in one piece.
"""

import itertools
import pathlib
import statistics
import tempfile

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import workload as workloads
from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.models.decoder import Decoder, apply_head, param_shapes
from selfparam_jax.models.lora import init_lora
from selfparam_jax.training import train_step
from selfparam_jax.training.losses import Signal, chunked_loss, kl_from_logits
from selfparam_jax.training.optimizer import TrainConfig, make_optimizer

OUT = flags.DEFINE_string("out", None, "Where the results go (JSON).", required=True)
CONTEXTS = flags.DEFINE_list("contexts", ["1", "4", "16", "64"], "Numbers of contexts.")
PAIRS = flags.DEFINE_integer("pairs", 16, "Training pairs per context.")
EPOCHS = flags.DEFINE_integer("epochs", 8, "Epochs that the cost is given for.")
REPEATS = flags.DEFINE_integer("repeats", 3, "How often the numbers of contexts take their turns.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 12, "Steps to measure.")
POSITIONS = flags.DEFINE_list("positions", ["256", "1024", "4096"], "Loss positions of a step, for the memory.")
BATCH_ROWS, ROW_LENGTH = 2, 128  # as in configs/base.py


def cost_per_context(runs: list[dict], workload: dict, contexts: int) -> dict:
    """Seconds per context, and what they are made of, from the measurements of some processes: medians of theirs."""
    step_s = statistics.median(statistics.median(run["step_s"][1:]) for run in runs)
    teacher_s = statistics.median(run["teacher_s"] for run in runs)
    train_s = step_s * len(workload["steps"])
    sentences = workload["sentences"]
    tokens = sum(len(sentences[i]["ids"]) for step in workload["steps"] for i in step)
    return {
        "teacher_s_per_context": teacher_s / contexts,
        "train_s_per_context": train_s / contexts,
        "s_per_context": (teacher_s + train_s) / contexts,
        "ms_per_token": 1000 * (teacher_s + train_s) / tokens,
        "step_s": step_s,
        "steps": len(workload["steps"]),
        "sentences": len(sentences),
        "sentence_tokens": tokens,
        "fill": workload["fill"],
        "loaded_rss_bytes": statistics.median(run["loaded_rss_bytes"] for run in runs),
        "peak_rss_bytes": statistics.median(run["peak_rss_bytes"] for run in runs),
    }


def loss_memory(config, positions: int, chunked: bool) -> int:
    """Bytes that XLA reserves for the loss and its gradient, arguments and results not counted."""
    states = jax.ShapeDtypeStruct((1, positions, config.hidden_size), jnp.float32)
    head = jax.ShapeDtypeStruct((config.vocab_size, config.hidden_size), jnp.float32)
    weights, used = jax.ShapeDtypeStruct((1, positions), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)

    def in_chunks(student, teacher, weights, used, head):
        return chunked_loss(student, head, Signal(used, teacher, weights))[0]

    def in_one_piece(student, teacher, weights, used, head):
        return jnp.sum(weights * kl_from_logits(apply_head(teacher, head), apply_head(student, head)))

    function = jax.jit(jax.value_and_grad(in_chunks if chunked else in_one_piece))
    return function.lower(states, states, weights, used, head).compile().memory_analysis().temp_size_in_bytes


def step_memory(config, remat: str) -> dict:
    """Bytes of a training step: weights, adapter with optimizer, and what XLA reserves beside them."""
    mesh = meshes.make_mesh(jax.devices()[:1])
    model = Decoder(config, remat=remat, lora_scale=workloads.LORA.scale)
    optimizer = make_optimizer(TrainConfig(clip_norm=0.0), 1)
    params = param_shapes(config)

    def initial(key):
        return train_step.init_state(init_lora(key, params, workloads.LORA), optimizer)

    state = jax.eval_shape(initial, jax.random.key(0))
    positions = BATCH_ROWS * ROW_LENGTH
    rows = jax.ShapeDtypeStruct((BATCH_ROWS, ROW_LENGTH), jnp.int32)
    signal = Signal(
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, positions, config.hidden_size), jnp.float32),
        jax.ShapeDtypeStruct((1, positions), jnp.float32),
    )
    batch = train_step.Batch(rows, rows, rows, jax.ShapeDtypeStruct((1, positions), jnp.int32), signal)
    step = train_step.compile_step(model, optimizer, mesh)
    compiled = step.lower(state, params, batch, jax.eval_shape(jax.random.key, 0)).compile()

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    chunk = train_step.LossConfig().chunk * config.vocab_size * 4
    counted = size(params) + size(state) + chunk
    reserved = compiled.memory_analysis().temp_size_in_bytes
    return {
        "weights_bytes": size(params),
        "adapter_and_optimizer_bytes": size(state),
        "chunk_bytes": chunk,
        "reserved_bytes": reserved,
        "over_weights_optimizer_chunk": (size(params) + size(state) + reserved) / counted,
    }


def measure_contexts(scratch: pathlib.Path) -> dict:
    """The cost per context of every number of contexts."""
    base = load_model(DEFAULT_MODEL)
    prompt = Prompt("few_shot", base.tokenizer)
    config = workloads.train_config(EPOCHS.value, BATCH_ROWS, ROW_LENGTH)
    workloads.write_model(scratch / "model", base)
    written = {}
    for count in map(int, CONTEXTS.value):
        directory = scratch / f"contexts-{count}"
        contexts = workloads.example_contexts(count, PAIRS.value)
        written[count] = directory, workloads.write_workload(directory, base, contexts, prompt, config)
        (directory / "model").symlink_to(scratch / "model")
    del base, prompt  # the processes need the memory
    more, runs = (f"--compilation_cache={scratch / 'compiled'}", "--warm"), {count: [] for count in written}
    for _ in range(REPEATS.value):
        for count, (directory, _) in written.items():
            runs[count].append(workloads.run_child("benchmarks.ours", "ours", directory, STEPS.value, *more))
    return {str(count): cost_per_context(runs[count], written[count][1], count) for count in written}


def s_per_further_context(by_contexts: dict) -> dict[str, float]:
    """What a context costs beyond those of the number before: what is paid once drops out."""
    totals = [(count, int(count), r["s_per_context"] * int(count)) for count, r in by_contexts.items()]
    return {name: (s - less_s) / (n - less) for (_, less, less_s), (name, n, s) in itertools.pairwise(totals)}


def print_tables(results: dict) -> None:
    """The results, as Markdown."""
    print(
        "| contexts | s per context | teacher | training | ms per token | step | peak memory, loaded | at the end |"
    )
    print("| " + " | ".join(["---"] * 8) + " |")
    for count, r in results["by_contexts"].items():
        print(
            f"| {count} | {r['s_per_context']:.1f} | {r['teacher_s_per_context']:.2f} | "
            f"{r['train_s_per_context']:.1f} | {r['ms_per_token']:.2f} | "
            f"{r['step_s']:.2f} s | {r['loaded_rss_bytes'] / 1e6:.0f} MB | "
            f"{r['peak_rss_bytes'] / 1e6:.0f} MB |"
        )
    print("\n| loss positions | in chunks | in one piece |\n| --- | --- | --- |")
    for positions, r in results["loss_bytes"].items():
        print(f"| {positions} | {r['chunked'] / 1e6:.0f} MB | {r['direct'] / 1e6:.0f} MB |")
    print("\n| step | reserved beside weights, adapter and optimizer | all, over weights + optimizer + one chunk |")
    print("| --- | --- | --- |")
    for name, r in results["step"].items():
        print(f"| {name} | {r['reserved_bytes'] / 1e6:.0f} MB | {r['over_weights_optimizer_chunk']:.2f} |")


def main(_) -> None:
    """Measures, prints and writes."""
    with tempfile.TemporaryDirectory() as scratch:
        by_contexts = measure_contexts(pathlib.Path(scratch))
    config = load_model(DEFAULT_MODEL).config
    results = {
        "by_contexts": by_contexts,
        "loss_bytes": {
            positions: {
                "chunked": loss_memory(config, int(positions), True),
                "direct": loss_memory(config, int(positions), False),
            }
            for positions in POSITIONS.value
        },
        "step": {
            "remat=layers (configs/base.py)": step_memory(config, "layers"),
            "remat=none": step_memory(config, "none"),
        },
    }
    files.write_json(OUT.value, results)
    print_tables(results)


if __name__ == "__main__":
    app.run(main)
