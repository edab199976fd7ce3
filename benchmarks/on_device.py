"""Everything there is to measure on one GPU, one part after another within a limit of time, as one JSON.

    benchmarks/on_device.sh on_device.json [--rehearse] [--dry-run] [--minutes=20] [--only=decoding,plan]

Weights are random and nothing is downloaded. Each part is a process of its own, so that none holds the device while
another runs. The JSON is rewritten after each part, so a crash loses at most the part that was running. A part that
fails, or that no time is left for, is recorded as such, and the others still run.

The parts:
  tests: those marked `gpu`; how many passed, failed and were skipped.
  step SHAPE ATTENTION REMAT: the training step, the teacher's reading and the memory (`benchmarks.accelerator`).
  peers SHAPE: PyTorch with PEFT on the same sentences, its teacher read in every step or kept.
  decoding SHAPE: greedy answers, new tokens per second by the number of rows.
  contexts SHAPE: seconds per context, of 1 to 64 contexts that are injected together.
  plan SHAPE ATTENTION REMAT: for each step that ran, the memory that `selfparam plan` predicts on the CPU
    ("said_bytes") and what the device used ("held_bytes").

`--rehearse` runs all of it with a tiny model on the CPU: it shows that the kit works, and its numbers say nothing.
"""

import argparse
import collections
import dataclasses
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator
from selfparam_jax.distributed import files, mesh
from selfparam_jax.inference.decoding import generate
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.plan.machines import CHIPS, Machine
from selfparam_jax.plan.plan import make_plan
from selfparam_jax.plan.workload import Workload
from selfparam_jax.targets.sentences import Sentence, first_slots
from selfparam_jax.training import teacher, teacher_states
from selfparam_jax.training.batches import Plan
from selfparam_jax.training.optimizer import TrainConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEAST_S = 30  # a part is not begun with less time than this left
PEERS = "torch,torch_cached"
# Attention and remat of the steps. cuDNN's attention needs a GPU.
CHOICES = (("blocks", "none"), ("blocks", "layers"), ("cudnn", "none"), ("cudnn", "layers"))
PROMPT_TOKENS, PAIRS = 32, 16  # of a question to be answered; sentences of each context


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is measured: `REAL` on a device, `TINY` in a rehearsal."""

    shapes: tuple[str, ...]
    choices: tuple[tuple[str, str], ...]
    step: tuple[str, ...]
    rows: tuple[int, ...]
    new_tokens: int
    contexts: tuple[int, ...]
    context_tokens: int


REAL = Scale(
    ("llama3-8b", "mistral-7b"), CHOICES, ("--steps=8", "--batch_size=4"), (1, 8, 64), 64, (1, 4, 16, 64), 512
)
TINY = Scale(
    ("tiny",),
    CHOICES[:2],
    ("--steps=2", "--batch_size=2", "--seq_len=64", "--context_tokens=24", "--dtype=float32", "--loss_chunk=16"),
    (1, 2),
    4,
    (1, 2),
    24,
)


@dataclasses.dataclass(frozen=True)
class Part:
    """One process of the kit.

    Attributes:
      name: in the JSON.
      arguments: of Python; it writes JSON to the file that is given as --out.
      limit_s: after which it is ended.
      on_cpu: whether it must leave the device alone.
    """

    name: str
    arguments: tuple[str, ...]
    limit_s: int
    on_cpu: bool = False


def parts_of(scale: Scale) -> Iterator[Part]:
    """The parts in their order: what matters most comes first, as time may run out."""

    def ours(kind: str, shape: str, limit_s: int) -> Part:
        words = ("-m", "benchmarks.on_device", f"--child={kind}", f"--shape={shape}")
        return Part(f"{kind} {shape}", words, limit_s)

    yield Part("tests", ("-m", "benchmarks.on_device", "--child=tests"), 240)
    for place, shape in enumerate(scale.shapes):
        measured = ("-m", "benchmarks.accelerator", f"--shape={shape}", *scale.step)
        # The second shape's step differs in its window alone; two choices tell.
        for attention, remat in scale.choices[: 2 if place else None]:
            chosen = "--systems=ours", f"--attention={attention}", f"--remat={remat}"
            yield Part(f"step {shape} {attention} {remat}", (*measured, *chosen), 180)
        if not place:
            yield ours("decoding", shape, 180)
            yield Part(f"peers {shape}", (*measured, f"--systems={PEERS}"), 240)
            yield ours("contexts", shape, 240)
    for place, shape in enumerate(scale.shapes):
        for attention, remat in scale.choices[: 2 if place else None]:
            words = ("-m", "benchmarks.on_device", "--child=plan", f"--shape={shape}")
            chosen = f"--attention={attention}", f"--remat={remat}"
            yield Part(f"plan {shape} {attention} {remat}", (*words, *chosen), 120, on_cpu=True)


# --- the processes that measure -----------------------------------------------------------------------


class Counter:
    """A plugin of pytest that counts how tests ended."""

    def __init__(self):
        self.outcomes: collections.Counter = collections.Counter()

    def pytest_runtest_logreport(self, report):
        """A test that passes is counted once; one that fails or is skipped may do so before it is called."""
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1


def run_tests() -> dict:
    """The tests marked `gpu`, in this process."""
    import pytest

    counter = Counter()
    code = pytest.main(["-q", "-n0", "-m", "gpu", str(ROOT / "tests")], plugins=[counter])
    outcomes = {name: counter.outcomes[name] for name in ("passed", "failed", "skipped")}
    return {"pytest_exit_code": int(code), **outcomes}


def measure_decoding(settings: accelerator.Settings, rows: Sequence[int], new_tokens: int) -> dict:
    """New tokens per second, greedy, after a context; compilation apart.

    Args:
      settings: shape, dtype and length of the context.
      rows: numbers of prompts that are continued together.
      new_tokens: of each prompt.

    Returns:
      by the number of rows: "tokens_per_s", "s", "first_s" (with compilation).
    """
    devices, config = mesh.make_mesh(jax.local_devices()[:1]), settings.config
    dtype, rng = jnp.dtype(settings.dtype), np.random.default_rng(0)
    variables = {"params": accelerator.random_params(config, dtype, devices)}
    context = rng.integers(2, config.vocab_size, settings.context_tokens).tolist()
    found = {}
    for count in rows:
        prompts = rng.integers(2, config.vocab_size, (count, PROMPT_TOKENS)).tolist()
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            made = generate(Decoder(config, dtype), variables, context, prompts, new_tokens, batch_size=count)
            seconds.append(time.perf_counter() - began)
        after = statistics.median(seconds[1:])
        found[str(count)] = {"tokens_per_s": sum(map(len, made)) / after, "s": after, "first_s": seconds[0]}
    return found


def several_contexts(settings: accelerator.Settings, count: int) -> tuple[list[tuple[int, ...]], list[Sentence]]:
    """Contexts, and `PAIRS` sentences of each, drawn as `accelerator.make_workload` draws them."""
    made = accelerator.make_workload(dataclasses.replace(settings, steps=1))
    lengths = [len(sentence.ids) for sentence in made.sentences]
    rng, vocabulary = np.random.default_rng(count), settings.config.vocab_size

    def draw(length: int) -> tuple[int, ...]:
        return tuple(rng.integers(accelerator.HEAD[0] + 1, vocabulary, length).tolist())

    contexts = [(*accelerator.HEAD, *draw(settings.context_tokens - 1)) for _ in range(count)]
    sentences = []
    for place in range(count * PAIRS):
        length = lengths[place % len(lengths)]
        sentences.append(Sentence("qa", place // PAIRS, draw(length), (1.0,) * length, None, {}))
    return contexts, sentences


def measure_contexts(settings: accelerator.Settings, counts: Sequence[int]) -> dict:
    """What a context costs, of several that are injected together: the teacher's reading, and one epoch of steps.

    Args:
      settings: shape, rows and lengths.
      counts: numbers of contexts.

    Returns:
      "step_s", and by the number of contexts: "teacher_s", "steps", "s_per_context".
    """
    devices, config, dtype = mesh.make_mesh(jax.local_devices()[:1]), settings.config, jnp.dtype(settings.dtype)
    params = accelerator.random_params(config, dtype, devices)
    rows = settings.batch_size, settings.seq_len
    reader = teacher.Reader(Decoder(config, dtype), {"params": params}, "random", accelerator.HEAD, devices, *rows)
    workload = accelerator.make_workload(settings)
    store, _ = accelerator.time_teacher(reader, workload)
    step_s = statistics.median(accelerator.time_steps(settings, workload, devices, params, store)["step_s"][1:])
    train = TrainConfig(batch_size=rows[0], seq_len=rows[1], epochs=1)
    found: dict = {"step_s": step_s}
    for count in counts:
        contexts, sentences = several_contexts(settings, count)
        began = time.perf_counter()
        teacher_states.teacher_store(reader, contexts, sentences, memory_limit=sys.maxsize)
        teacher_s = time.perf_counter() - began
        steps = Plan(sentences, first_slots(sentences), accelerator.HEAD, train, 0).steps
        each = (teacher_s + steps * step_s) / count
        found[str(count)] = {"teacher_s": teacher_s, "steps": steps, "s_per_context": each}
    return found


def say_memory(settings: accelerator.Settings) -> dict:
    """What `plan` says that the step of `benchmarks.accelerator` holds on one device."""
    train = TrainConfig(batch_size=settings.batch_size, seq_len=settings.seq_len, loss_chunk=settings.loss_chunk)
    workload = Workload(
        settings.dtype, settings.remat, settings.attention, supervised=False, lora=accelerator.LORA, train=train
    )
    found = make_plan(workload, settings.config, Machine("h200-1", CHIPS["h200"], 1), jax.devices()[:1])
    return {"said_bytes": found["total"], **{name: found[name] for name in ("parameters", "activations")}}


def run_child(args: argparse.Namespace, scale: Scale) -> None:
    """Measures one part in this process and writes what it found."""
    if args.child == "tests":
        found = run_tests()
        files.write_json(args.out, found)
        sys.exit(found["pytest_exit_code"])
    more = [f"--shape={args.shape}", f"--out={args.out}", "--systems=ours", *scale.step]
    more += [f"--attention={args.attention}", f"--remat={args.remat}"]
    settings = accelerator.parse(more)[1]
    if args.child == "plan":
        found = say_memory(settings)
    elif args.child == "decoding":
        found = measure_decoding(settings, scale.rows, scale.new_tokens)
    else:
        found = measure_contexts(settings, scale.contexts)
    files.write_json(args.out, found)


# --- the driver ---------------------------------------------------------------------------------------


def environment_of(part: Part, rehearse: bool) -> dict[str, str]:
    """The environment of a part's process: no memory is preallocated, and no compiled program is reused."""
    found = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    found.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    found["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if part.on_cpu or rehearse:
        found["JAX_PLATFORMS"] = "cpu"
    return found


def run_part(part: Part, rehearse: bool, left_s: float, directory: pathlib.Path) -> dict:
    """One part: "seconds" and its "result", or why there is none."""
    if left_s < LEAST_S:
        return {"left_out": "no time was left"}
    out = directory / "part.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, *part.arguments, f"--out={out}"]
    if rehearse and "benchmarks.on_device" in part.arguments:
        command.append("--rehearse")
    limit, began = min(part.limit_s, left_s), time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment_of(part, rehearse), cwd=ROOT, stdin=subprocess.DEVNULL, timeout=limit
        ).returncode
    except subprocess.TimeoutExpired:
        done = None
    found: dict = {"seconds": round(time.monotonic() - began, 1)}
    if out.exists():
        found["result"] = files.read_json(out)
    if done is None:
        found["error"] = f"ended after {limit:.0f} s"
    elif done:
        found["error"] = f"ended with status {done}; what it printed is above"
    return found


def compare_memory(parts: dict[str, dict]) -> None:
    """Writes beside what the plan says what the device held in the step that it is of."""
    for name, part in parts.items():
        kind, _, rest = name.partition(" ")
        step = parts.get(f"step {rest}", {}).get("result", {}).get("systems", {}).get("ours", {})
        if kind == "plan" and "result" in part and step.get("peak_device_bytes"):
            held = step["peak_device_bytes"]
            part["result"] |= {"held_bytes": held, "ratio": held / part["result"]["said_bytes"]}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; not absl's, as in `benchmarks.accelerator`."""
    parser = argparse.ArgumentParser(prog="benchmarks/on_device.sh", description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="Where the results go (JSON).")
    parser.add_argument("--rehearse", action="store_true", help="A tiny model on the CPU; the numbers say nothing.")
    parser.add_argument("--dry-run", action="store_true", help="Print what would be run.")
    parser.add_argument("--minutes", type=float, default=20.0, help="In all.")
    parser.add_argument("--only", default="", help="Only parts whose name begins with one of these, by commas.")
    for name in ("child", "shape"):  # set by the driver, as those after it are
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--attention", default="blocks", help=argparse.SUPPRESS)
    parser.add_argument("--remat", default="none", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not 0 < args.minutes <= 24 * 60:
        parser.error(f"--minutes={args.minutes}, expected a number from 0 to 1440")
    if not pathlib.Path(args.out).absolute().parent.is_dir():
        parser.error(f"--out={args.out}: its directory does not exist")
    return args


def main(argv: Sequence[str]) -> None:
    """Runs the parts and writes their results; ends with 1 if one of them failed."""
    args = parse(argv)
    scale = TINY if args.rehearse else REAL
    if args.child:
        return run_child(args, scale)
    chosen = tuple(args.only.split(",")) if args.only else ("",)
    parts = [part for part in parts_of(scale) if part.name.startswith(chosen)]
    if not parts:
        kinds = dict.fromkeys(part.name.split()[0] for part in parts_of(scale))
        sys.exit(f"--only={args.only}: no part's name begins like this, expected some of {', '.join(kinds)}")
    if args.dry_run:
        for part in parts:
            print(f"{part.name}, at most {part.limit_s} s: python {shlex.join(part.arguments)}")
        return None
    began, results = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            left_s = 60 * args.minutes - (time.monotonic() - began)
            print(f"--- {part.name}", flush=True)
            results[part.name] = run_part(part, args.rehearse, left_s, pathlib.Path(scratch))
            compare_memory(results)
            files.write_json(args.out, {"rehearsal": args.rehearse, "minutes": args.minutes, "parts": results})
    failed = [name for name, result in results.items() if "error" in result]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
