"""A training step of a large model on one GPU or TPU chip, timed: ours and PyTorch, with random weights.

    python -m benchmarks.accelerator --shape=llama3-8b --out=accelerator.json
    python -m benchmarks.accelerator --shape=mistral-7b --systems=ours --out=accelerator.json

Nothing is downloaded: weights, context and sentences are drawn at random, the sentences with a seed, so all systems
train on the same ones in the same order. `torch` and `torch_cached` (the teacher's log-probabilities of all sentences
kept on the device) need torch, transformers and PEFT (`pip install -e '.[bench]'`). Each system is a process of its
own, so none holds the device while another runs.

What the JSON says of each system:
  step_s: the median of `--steps` steps, each waited for. Ours starts from a batch on the device (`batch_s` is
    what making one on the host takes, beside the step before it in training) and has the teacher's states. The
    peers are loops of `benchmarks.peer_torch`: `torch` the obvious one, whose step reads context and sentence
    anew as the teacher, `torch_cached` the one that has read them before.
  first_step_s, compile_s: the first step, and what it took beyond the median. Nothing is compiled before.
  teacher_s: what our teacher took for all sentences, its programs compiled (`teacher_first_s`: with compilation);
    0 for `torch`, whose steps include it.
  sentence_tokens_per_s: tokens of a step's sentences, without padding and head, by step_s; means over the steps.
  fill: share of the student's positions that hold a token (the peer pads to its longest sentence).
  flops_utilisation: `model_flops` of a step by step_s and the device's peak. null: the peak is not known.
  peak_device_bytes: the most device memory held, weights included; null where the backend does not tell.
"""

import argparse
import dataclasses
import functools
import importlib.util
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfparam_jax.checkpoints.load import read_architecture
from selfparam_jax.data.packing import fill_rate
from selfparam_jax.distributed import files, mesh
from selfparam_jax.models.attention import ATTENTION, BLOCKS
from selfparam_jax.models.decoder import REMAT, Decoder, ModelConfig, param_shapes
from selfparam_jax.models.lora import LoraConfig, init_lora
from selfparam_jax.plan.machines import CHIPS
from selfparam_jax.targets.sentences import Sentence, first_slots
from selfparam_jax.training import losses, teacher, teacher_states, train_step
from selfparam_jax.training.batches import Plan, make_batch, student_rows
from selfparam_jax.training.optimizer import TrainConfig, make_optimizer

PEERS = {"torch": "obvious", "torch_cached": "cached"}  # and their modes in `benchmarks.peer_torch`
SYSTEMS = ("ours", *PEERS)
DTYPES = ("bfloat16", "float32")
LORA = LoraConfig(rank=8, alpha=16.0, dropout=0.0)  # as in benchmarks/workload.py, whose imports load checkpoints
LEARNING_RATE = 1e-3
HEAD = (1,)  # what the student reads before a sentence: a beginning-of-text token
WEIGHT_SCALE = 0.02
SHORTEST, MEDIAN_LENGTH, LENGTH_SPREAD = 8, 40, 0.5  # tokens of a sentence: log-normal, as questions with answers are

SHAPES = ("llama3-8b", "mistral-7b", "openllama-3b", "tiny")
MODELS = pathlib.Path(__file__).parents[1] / "configs" / "models"
TINY = ModelConfig(
    vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=1024,
)  # fmt: skip

# What JAX and torch call the devices of `plan.machines.CHIPS`. Cards of these names for other sockets (PCIe, NVL) and
# parts of a card (MIG) are slower and must not match.
DEVICE_KINDS = (
    (r"NVIDIA H100\b(?!.*(PCIe|NVL|MIG)).*", "h100"),
    (r"NVIDIA H200\b(?!.*(PCIe|NVL|MIG)).*", "h200"),
    (r"NVIDIA A100\b(?!.*MIG).*", "a100"),
    (r"NVIDIA B200\b(?!.*MIG).*", "b200"),
    (r"TPU v4", "v4"),
    (r"TPU v5 ?(lite|e)", "v5e"),
    (r"TPU v5p?", "v5p"),
    (r"TPU v6 ?(lite|e)", "v6e"),
)


class UnfitError(ValueError):
    """The device cannot run the shape."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured; the fields are the flags of the same names."""

    shape: str
    steps: int
    batch_size: int
    seq_len: int
    context_tokens: int
    dtype: str
    loss_chunk: int
    remat: str
    attention: str
    peak_flops: float | None

    def __post_init__(self):
        for name in ("steps", "batch_size", "seq_len", "context_tokens", "loss_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}={getattr(self, name)}, expected at least 1")
        if self.seq_len <= SHORTEST:
            raise ValueError(f"--seq_len={self.seq_len}, expected more than {SHORTEST} to hold a sentence")
        limit, longest = self.config.max_position_embeddings, self.context_tokens + self.seq_len
        if longest > limit:
            raise ValueError(
                f"--context_tokens={self.context_tokens} and --seq_len={self.seq_len} make up to {longest} "
                f"tokens, {self.shape} takes {limit}; lower one of them"
            )

    @functools.cached_property
    def config(self) -> ModelConfig:
        """The architecture."""
        if self.shape == "tiny":
            return TINY
        return read_architecture(MODELS / f"{self.shape.replace('-', '_')}.json")

    @property
    def weights_bytes(self) -> int:
        """Bytes of the frozen weights."""
        config = self.config
        tables = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
        norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
        return (kernel_parameters(config) + tables + norms) * jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Workload:
    """What both systems train on; `rows` are the sentences of every row of every step, the first one included."""

    context: tuple[int, ...]
    sentences: tuple[Sentence, ...]
    rows: tuple[tuple[tuple[int, ...], ...], ...]

    def lengths(self, step: int) -> list[int]:
        """Tokens of a step's sentences."""
        return [len(self.sentences[i].ids) for row in self.rows[step] for i in row]


def make_workload(settings: Settings) -> Workload:
    """Random context and sentences in packed rows: a function of the settings alone. Touches no device."""
    rng, vocabulary = np.random.default_rng(0), settings.config.vocab_size
    longest = settings.seq_len - len(HEAD)

    def draw(count: int) -> tuple[int, ...]:
        return (*HEAD, *rng.integers(HEAD[0] + 1, vocabulary, count - 1).tolist())

    context = draw(settings.context_tokens)
    median = min(MEDIAN_LENGTH, settings.seq_len / 4)
    sentences, room = [], (settings.steps + 1) * settings.batch_size * settings.seq_len
    while room > 0:  # rows cannot be fuller than full: so many tokens need at least the rows of all steps
        drawn = round(rng.lognormal(math.log(median), LENGTH_SPREAD))
        ids = draw(min(max(drawn, SHORTEST), longest) + 1)[1:]
        sentences.append(Sentence("qa", 0, ids, (1.0,) * len(ids), None, {}))
        room -= len(HEAD) + len(ids)
    config = TrainConfig(batch_size=settings.batch_size, seq_len=settings.seq_len)
    plan = Plan(sentences, first_slots(sentences), HEAD, config, 0)
    steps = [plan.assignment(step) for step in range(settings.steps + 1)]
    return Workload(context, tuple(sentences), tuple(tuple(map(tuple, rows)) for rows in steps))


def kernel_parameters(config: ModelConfig) -> int:
    """Parameters of all layers that tokens are multiplied with: neither embedding, head nor norms."""
    width, head_dim = config.hidden_size, config.head_dim
    attention = 2 * width * head_dim * (config.num_attention_heads + config.num_key_value_heads)
    return config.num_hidden_layers * (attention + 3 * width * config.intermediate_size)


def visible_pairs(length: int, window: int | None) -> int:
    """Pairs of query and key that see each other in a causal text read alone."""
    full = min(length, window or length)
    return full * (full + 1) // 2 + (length - full) * full


def model_flops(
    config: ModelConfig, student: Sequence[int], loss_tokens: int, teacher_reads: Sequence[int] = ()
) -> int:
    """FLOPs that a step of the method cannot do without; what an implementation does besides is not counted.

    A multiplication with an addition is 2. Counted, for real tokens and not for padding:
      layers, forward: 2 x parameters of the kernels per token;
      layers, gradient: the same again, of the activations; the kernels are frozen and get none;
      attention: scores and values, 2 x 2 x N x H per visible pair and layer; twice that for its gradient;
      head: 2 x D x V at every loss position for each of the student's logits, the teacher's, and the gradient.
    Not counted: the adapter's own products (under a hundredth at rank 8), norms, softmax, the optimizer,
    activations that are computed twice, masked scores.

    Args:
      student: lengths of the texts that the student reads, head included.
      loss_tokens: positions that carry loss.
      teacher_reads: lengths of the texts that the teacher reads within the step; none if its states are kept.
    """
    kernels = kernel_parameters(config)
    per_pair = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers

    def forward(lengths: Sequence[int]) -> tuple[int, int]:
        pairs = sum(visible_pairs(length, config.sliding_window) for length in lengths)
        return 2 * kernels * sum(lengths), per_pair * pairs

    products, attention = forward(student)
    head = 3 * 2 * config.hidden_size * config.vocab_size * loss_tokens
    return 2 * products + 3 * attention + head + sum(forward(teacher_reads))


def peak_flops(device_kind: str) -> float | None:
    """The device's published dense bfloat16 FLOP/s; None if it is not in the table."""
    return next((CHIPS[chip].flops for pattern, chip in DEVICE_KINDS if re.fullmatch(pattern, device_kind)), None)


def summary(settings: Settings, workload: Workload, device: dict, measured: dict) -> dict:
    """What the report says of one system.

    Args:
      device: 'platform' and 'device', its kind.
      measured: 'step_s' (seconds of all steps, the first included), 'flops' (of the steps after the first), and
        what is passed on as it is.
    """
    first, *rest = measured["step_s"]
    step_s = statistics.median(rest)
    tokens = [sum(workload.lengths(step)) for step in range(1, len(workload.rows))]
    flops = statistics.mean(measured["flops"])
    peak = settings.peak_flops
    if peak is None and settings.dtype == "bfloat16":  # the table's peaks are bfloat16's
        peak = peak_flops(device["device"])
    return device | {
        **{name: value for name, value in measured.items() if name not in ("step_s", "flops")},
        "step_s": step_s,
        "steps_s": rest,
        "first_step_s": first,
        "compile_s": max(first - step_s, 0.0),
        "sentence_tokens_per_step": statistics.mean(tokens),
        "sentence_tokens_per_s": statistics.mean(tokens) / step_s,
        "model_flops_per_step": flops,
        "model_flops_per_s": flops / step_s,
        "peak_flops": peak,
        "flops_utilisation": flops / step_s / peak if peak else None,
    }


def check_device(settings: Settings, kind: str, is_cpu: bool, limit: int | None) -> None:
    """Raises UnfitError if the weights alone do not fit, or a large shape would run on a CPU."""
    if is_cpu and settings.shape != "tiny":
        raise UnfitError(f"--shape={settings.shape} needs an accelerator, found only {kind}; --shape=tiny runs here")
    if limit is not None and settings.weights_bytes > limit:
        raise UnfitError(
            f"--shape={settings.shape} does not fit: its weights take {settings.weights_bytes / 2**30:.1f} GiB in "
            f"{settings.dtype}, {kind} has {limit / 2**30:.1f} GiB"
        )


# --- ours ---------------------------------------------------------------------------------------------


def random_params(config: ModelConfig, dtype, devices: Mesh, seed: int = 0) -> dict:
    """Random weights, made on the device in `dtype`: norms 1, all else normal with a standard deviation of 0.02."""
    shapes = param_shapes(config)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)

    def leaf(key, path, shape):
        name, parent = path[-1].key, path[-2].key
        if name == "weight" and parent != "lm_head":
            return jnp.ones(shape, dtype)
        # Part by part (a layer, some rows of a table), so that no leaf's random bits are all there at once.
        parts = math.gcd(shape[0], 256) if parent in ("embed_tokens", "lm_head") else shape[0]
        part = (shape[0] // parts, *shape[1:])
        drawn = jax.lax.map(lambda k: WEIGHT_SCALE * jax.random.normal(k, part, dtype), jax.random.split(key, parts))
        return drawn.reshape(shape)

    def draw(key):
        keys = jax.random.split(key, len(leaves))
        return tree.unflatten([leaf(k, path, x.shape) for k, (path, x) in zip(keys, leaves, strict=True)])

    return jax.jit(draw, out_shardings=mesh.replicated(devices))(jax.random.key(seed))


def time_teacher(reader: teacher.Reader, workload: Workload) -> tuple[teacher_states.Store, float]:
    """The states of all sentences, in memory, and the seconds that it took to make, write and read them."""
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        store = teacher_states.teacher_store(
            reader, [workload.context], workload.sentences, pathlib.Path(scratch), memory_limit=sys.maxsize
        )
        return store, time.perf_counter() - began


def time_steps(
    settings: Settings, workload: Workload, devices: Mesh, params: dict, store: teacher_states.Store
) -> dict:
    """All steps of our student."""
    model = Decoder(
        settings.config, jnp.dtype(settings.dtype), settings.remat, LORA.scale, attention=settings.attention
    )
    optimizer = make_optimizer(
        TrainConfig(learning_rate=LEARNING_RATE, schedule="constant", warmup=0.0, clip_norm=0.0, beta2=0.999),
        settings.steps + 1,
    )
    step = train_step.compile_step(model, optimizer, devices, train_step.LossConfig(chunk=settings.loss_chunk))
    state = train_step.init_state(init_lora(jax.random.key(0), params, LORA), optimizer)
    state = mesh.put_same(devices, state)
    first, key = first_slots(workload.sentences), jax.random.key(0)
    measured: dict = {"step_s": [], "flops": [], "losses": []}
    batch_s = []
    for number, rows in enumerate(workload.rows):
        began = time.perf_counter()
        packed = student_rows(workload.sentences, first, HEAD, rows, settings.seq_len)
        batch = jax.block_until_ready(make_batch(packed, store, devices, supervised=False))
        batch_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, params, batch, key))
        measured["step_s"].append(time.perf_counter() - began)
        measured["losses"].append(float(metrics["loss"]))
        if number:
            lengths = workload.lengths(number)
            with_head = [len(HEAD) + length for length in lengths]
            measured["flops"].append(model_flops(settings.config, with_head, sum(lengths)))
    return measured | {"batch_s": statistics.median(batch_s[1:])}


def run_ours(settings: Settings) -> dict:
    """This program on the first device."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    check_device(settings, device.device_kind, device.platform == "cpu", limit)
    workload, devices, config = make_workload(settings), mesh.make_mesh([device]), settings.config
    dtype = jnp.dtype(settings.dtype)
    params = jax.block_until_ready(random_params(config, dtype, devices))
    reader = teacher.Reader(
        Decoder(config, dtype), {"params": params}, "random", HEAD, devices, settings.batch_size, settings.seq_len
    )
    _, teacher_first_s = time_teacher(reader, workload)
    store, teacher_s = time_teacher(reader, workload)
    measured = time_steps(settings, workload, devices, params, store)
    positions = settings.steps * settings.batch_size * settings.seq_len
    lengths = [len(HEAD) + length for step in range(1, settings.steps + 1) for length in workload.lengths(step)]
    measured |= {
        "teacher_s": teacher_s,
        "teacher_first_s": teacher_first_s,
        "teacher_tokens": len(store) + len(workload.context),
        "fill": fill_rate(lengths, positions, 1),
        "weights_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "peak_device_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "versions": {"jax": jax.__version__},
    }
    return summary(settings, workload, {"platform": device.platform, "device": device.device_kind}, measured)


# --- the peer -----------------------------------------------------------------------------------------


def hf_config(config: ModelConfig):
    """The architecture as transformers has it."""
    import transformers

    shared = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("rope_theta", "rope_scaling", "sliding_window")
    }
    shared["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.sliding_window is None:
        return transformers.LlamaConfig(**shared)
    return transformers.MistralConfig(sliding_window=config.sliding_window, **shared)


def random_student(settings: Settings, device):
    """transformers' model under PEFT's adapter, made on the device; `peer_torch.load_student` makes it of files."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    with torch.device(device):
        base = transformers.AutoModelForCausalLM.from_config(
            hf_config(settings.config), dtype=getattr(torch, settings.dtype), attn_implementation="sdpa"
        )
    config = peft.LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, lora_dropout=0.0, target_modules=list(LORA.target_modules), bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip

    def to_device(_, args, kwargs):
        return args, {name: x.to(device) if torch.is_tensor(x) else x for name, x in kwargs.items()}

    # The peer's loop makes its ids on the host.
    base.model.register_forward_pre_hook(to_device, with_kwargs=True)
    return peft.get_peft_model(base, config)


def peer_workload(workload: Workload):
    """The workload as `benchmarks.peer_torch` takes it."""
    from benchmarks import peer_torch

    sentences = tuple(peer_torch.Sentence(s.context, s.ids, tuple(s.loss_tokens)) for s in workload.sentences)
    steps = tuple(tuple(i for row in rows for i in row) for rows in workload.rows)
    return peer_torch.Workload(
        LORA.rank, LORA.alpha, LORA.target_modules, LEARNING_RATE, HEAD, (workload.context,), sentences, steps
    )


def run_torch(settings: Settings, mode: str) -> dict:
    """A loop of `benchmarks.peer_torch` on the GPU; without one, on the CPU (tiny shapes only)."""
    import peft
    import torch
    import transformers

    from benchmarks import peer_torch

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda:0" if on_gpu else "cpu")
    kind = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    check_device(settings, kind, not on_gpu, torch.cuda.mem_get_info(device)[1] if on_gpu else None)
    if on_gpu:  # the adapter's float32 products in TF32, as XLA has them by default
        torch.set_float32_matmul_precision("high")
    workload = make_workload(settings)
    model = random_student(settings, device)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    optimizer = peer_torch.make_optimizer(model, LEARNING_RATE)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    trained = peer_torch.train(model, optimizer, peer_workload(workload), mode)
    flops, real, padded = [], 0, 0
    for step in range(1, settings.steps + 1):
        lengths = workload.lengths(step)
        student = [len(HEAD) + length for length in lengths]
        read = [len(workload.context) + length for length in lengths] if mode == "obvious" else ()
        flops.append(model_flops(settings.config, student, sum(lengths), read))
        real, padded = real + sum(student), padded + len(student) * max(student)
    measured = {name: trained[name] for name in ("step_s", "losses", "teacher_s")} | {
        "flops": flops,
        "fill": real / padded,
        "weights_bytes": sum(parameter.nbytes for parameter in frozen),
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, peft)},
    }
    return summary(settings, workload, {"platform": device.type, "device": kind}, measured)


# --- the driver ---------------------------------------------------------------------------------------


def run_child(system: str, settings: Settings, out: str) -> None:
    """Measures one system in this process; what does not fit is written to `out` as {'error'}."""
    try:
        result = run_torch(settings, PEERS[system]) if system in PEERS else run_ours(settings)
    except UnfitError as error:
        result = {"error": str(error)}
    except RuntimeError as error:  # both frameworks' errors of memory are of this class
        if not re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
            raise
        result = {
            "error": f"out of device memory with --batch_size={settings.batch_size} --seq_len="
            f"{settings.seq_len} (the weights take {settings.weights_bytes / 2**30:.1f} GiB); lower one of them"
            + (", or give --remat=layers" if system == "ours" and settings.remat != "layers" else "")
            + f". {str(error).splitlines()[0]}"
        }
    files.write_json(out, result)


def measure(system: str, argv: Sequence[str], directory: pathlib.Path) -> dict:
    """One system's measurements, from a process of its own; {'error'} if there are none."""
    out = directory / f"{system}.json"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    if system in PEERS:
        environment["JAX_PLATFORMS"] = "cpu"  # imported for the workload; must never take the GPU
    else:
        # Memory as it is needed, and nearly all of it if it is: torch may have as much.
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    command = [sys.executable, "-m", "benchmarks.accelerator", *argv, f"--out={out}", f"--child={system}"]
    root = pathlib.Path(__file__).resolve().parent.parent
    done = subprocess.run(command, env=environment, cwd=root, stdin=subprocess.DEVNULL)
    if done.returncode or not out.exists():
        return {"error": f"its process ended with status {done.returncode}; what it printed is above"}
    return files.read_json(out)


def print_table(results: dict) -> None:
    """The main numbers, as Markdown."""
    print("| system | device | step | compilation | teacher | sentence tokens/s | fill | utilisation | peak memory |")
    print("| " + " | ".join(["---"] * 9) + " |")
    for name, r in results.items():
        if "error" in r:
            continue
        used = "unknown" if r["flops_utilisation"] is None else f"{100 * r['flops_utilisation']:.1f} %"
        peak = "unknown" if r["peak_device_bytes"] is None else f"{r['peak_device_bytes'] / 2**30:.1f} GiB"
        read = f"{r['teacher_s']:.2f} s" if r["teacher_s"] else "in the step"
        print(
            f"| {name} | {r['device']} | {1000 * r['step_s']:.1f} ms | {r['compile_s']:.1f} s | {read} | "
            f"{r['sentence_tokens_per_s']:.0f} | {100 * r['fill']:.1f} % | {used} | {peak} |"
        )


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Settings]:
    """The flags. Not absl's, which are one set for all modules: `benchmarks.peer_torch` has an --out too."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", required=True, choices=SHAPES, help="The architecture.")
    parser.add_argument("--out", required=True, help="Where the results go (JSON).")
    parser.add_argument("--steps", type=int, default=20, help="Steps to measure, after the first.")
    parser.add_argument("--batch_size", type=int, default=4, help="Rows per step.")
    parser.add_argument("--seq_len", type=int, default=512, help="Tokens per row.")
    parser.add_argument("--context_tokens", type=int, default=512, help="Tokens of the context.")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=f"Which of {', '.join(SYSTEMS)}, in order.")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="Of weights and activations.")
    parser.add_argument("--loss_chunk", type=int, default=losses.DEFAULT_CHUNK, help="Ours: train.loss_chunk.")
    parser.add_argument("--remat", choices=REMAT, default="none", help="Ours: config.remat.")
    parser.add_argument("--attention", choices=ATTENTION, default=BLOCKS, help="Ours: config.attention.")
    parser.add_argument("--peak_flops", type=float, help="The device's peak FLOP/s, where the table has none.")
    parser.add_argument("--child", choices=SYSTEMS, help=argparse.SUPPRESS)  # set by the driver
    args = parser.parse_args(argv)
    args.systems = args.systems.split(",")
    if unknown := set(args.systems) - set(SYSTEMS):
        parser.error(f"--systems={','.join(args.systems)}: unknown {sorted(unknown)}, expected some of {SYSTEMS}")
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if set(PEERS) & set(args.systems) and missing:
        parser.error(
            f"--systems=torch and torch_cached need {', '.join(missing)}: pip install -e '.[bench]', or ask for ours"
        )
    if not pathlib.Path(args.out).absolute().parent.is_dir():
        parser.error(f"--out={args.out}: its directory does not exist")
    try:
        return args, Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)})
    except ValueError as error:
        parser.error(str(error))


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes; what one system could not do does not lose what the other did."""
    args, settings = parse(argv)
    if args.child:
        return run_child(args.child, settings, args.out)
    results: dict = {}
    with tempfile.TemporaryDirectory() as scratch:
        for system in args.systems:
            results[system] = measure(system, argv, pathlib.Path(scratch))
            files.write_json(args.out, dataclasses.asdict(settings) | {"systems": results})
    print_table(results)
    if errors := [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]:
        sys.exit("\n".join(errors))


if __name__ == "__main__":
    main(sys.argv[1:])
