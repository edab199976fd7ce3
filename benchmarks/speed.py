"""How long the same training takes: ours, ours done naively, and PyTorch with and without a kept teacher.

    python -m benchmarks.speed --out=speed.json            (1, 4 and 16 contexts)
    python -m benchmarks.speed --quick --out=speed.json    (1 context, few steps; under five minutes on two cores)

Needs `pip install -e '.[bench]'`. All train the embedded model from the same adapter on the same sentences in the
same order, with loss on every sentence token (as published), in float32 unless `--matmul_precision` (ours) and
`--torch_dtype` say otherwise: the rows of this program's packing, unpacked for the others. Every candidate is a
process of its own; they take turns. A run's time is that of starting up, the teacher, the first step (compilation)
and the rest of `--epochs` epochs at the median step measured; steps of the slow ones are measured for
`--slow_steps` only, and the kept teacher's pass is scaled from the sentences of those steps to all. Nothing is
compiled before: each process of ours starts with an empty compilation cache, unless it is the `warm` one.
"""

import pathlib
import statistics
import tempfile
from collections.abc import Sequence

from absl import app, flags

from benchmarks import workload as workloads
from benchmarks.workload import run_child
from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.models.decoder import REMAT as REMATS
from selfparam_jax.models.rounding import PRECISIONS

OUT = flags.DEFINE_string("out", None, "Where the results go (JSON).", required=True)
QUICK = flags.DEFINE_bool("quick", False, "One context and few steps.")
CONTEXTS = flags.DEFINE_list("contexts", ["1", "4", "16"], "Numbers of contexts (at most 16).")
EPOCHS = flags.DEFINE_integer("epochs", 8, "Epochs that a run's time is given for.")
STEPS = flags.DEFINE_integer("steps", 12, "Steps to measure.")
SLOW_STEPS = flags.DEFINE_integer("slow_steps", 4, "Steps to measure of those that run the teacher in every step.")
REPEATS = flags.DEFINE_integer("repeats", 3, "How often the candidates take their turns.")
PROMPT = flags.DEFINE_string("prompt", "few_shot", "Prompt format.")
BATCH_ROWS = flags.DEFINE_integer("batch_size", 2, "Rows per step, as in configs/base.py.")
ROW_LENGTH = flags.DEFINE_integer("seq_len", 128, "Tokens per row, as in configs/base.py.")
REMAT = flags.DEFINE_enum("remat", "layers", list(REMATS), "Ours: config.remat.")
MATMUL = flags.DEFINE_enum("matmul_precision", "float32", PRECISIONS, "Ours: config.matmul_precision.")
TORCH_DTYPE = flags.DEFINE_enum(
    "torch_dtype", "float32", ["float32", "bfloat16"], "PyTorch: weights and activations."
)

# Name, module, mode, and whether it runs the teacher in every step.
CONTENDERS = (
    ("ours", "benchmarks.ours", "ours", False),
    ("torch_cached", "benchmarks.peer_torch", "cached", False),
    ("torch", "benchmarks.peer_torch", "obvious", True),
    ("naive", "benchmarks.ours", "naive", True),
)


def total_seconds(name: str, measured: dict, workload: dict) -> float:
    """Start to end of all steps, from what was measured of them."""
    steps = len(workload["steps"])
    teacher_s = measured["teacher_s"]
    if name == "torch_cached":
        read = {i for step in workload["steps"][: len(measured["step_s"])] for i in step}
        teacher_s *= len({i for step in workload["steps"] for i in step}) / len(read)
    first, *rest = measured["step_s"]
    return measured["start_s"] + teacher_s + first + (steps - 1) * statistics.median(rest)


def largest_difference(runs: dict[str, list[dict]]) -> float:
    """Largest relative difference between the loss of a candidate and ours at the same step."""
    ours = runs["ours"][0]["losses"]
    pairs = [(a, b) for name in runs for run in runs[name] for a, b in zip(ours, run["losses"], strict=False)]
    return max(abs(a - b) / abs(a) for a, b in pairs)


def measure(
    directory: pathlib.Path,
    workload: dict,
    repeats: int,
    steps: int,
    slow_steps: int,
    own_flags: Sequence[str] = (),
    torch_flags: Sequence[str] = (),
) -> dict:
    """All candidates on one workload, taking turns; `own_flags` are for ours, `torch_flags` for PyTorch."""
    runs: dict[str, list[dict]] = {name: [] for name, *_ in CONTENDERS}
    pairs, warm = [], []
    cache = directory / "compiled"
    for _ in range(repeats):
        for name, module, mode, slow in CONTENDERS:
            more = own_flags if module == "benchmarks.ours" else torch_flags
            runs[name].append(run_child(module, mode, directory, slow_steps if slow else steps, *more))
        more = (*own_flags, f"--compilation_cache={cache}")
        pairs.append(run_child("benchmarks.ours", "pair", directory, steps, *more))
        warm.append(run_child("benchmarks.ours", "ours", directory, steps, *more))

    def median(values) -> float:
        return statistics.median(list(values))

    seconds = {f"{name}_s": median(total_seconds(name, run, workload) for run in runs[name]) for name in runs}
    # Ratios of steps that followed one another, so that what else the machine does hits both.
    ratios = [
        kl / ce for pair in pairs for kl, ce in zip(pair["kl_step_s"][1:], pair["finetune_step_s"][1:], strict=True)
    ]
    ours = runs["ours"]
    whole = [run["teacher_s"] + len(workload["steps"]) * median(run["step_s"][1:]) for run in ours]
    return seconds | {
        # The first of two runs fills the compilation cache, so the first measurement is left out if there are more.
        "ours_warm_s": median(total_seconds("ours", run, workload) for run in warm[1:] or warm),
        "obvious_ratio": seconds["torch_s"] / seconds["ours_s"],
        "cached_ratio": seconds["torch_cached_s"] / seconds["ours_s"],
        "naive_ratio": seconds["naive_s"] / seconds["ours_s"],
        "student_step_s": median(s for pair in pairs for s in pair["kl_step_s"][1:]),
        "finetune_step_s": median(s for pair in pairs for s in pair["finetune_step_s"][1:]),
        "student_over_finetune": median(ratios),
        "step_s": {name: median(s for run in runs[name] for s in run["step_s"][1:]) for name in runs},
        "start_s": {name: median(run["start_s"] for run in runs[name]) for name in runs},
        "teacher_s": median(run["teacher_s"] for run in ours),
        "teacher_share": median(run["teacher_s"] / total for run, total in zip(ours, whole, strict=True)),
        "max_loss_difference": largest_difference(runs),
        "peak_rss_bytes": {name: max(run["peak_rss_bytes"] for run in runs[name]) for name in runs},
        "compiled_programs": ours[0]["compiled_programs"],
        "steps": len(workload["steps"]),
        "measured_steps": {name: len(runs[name][0]["step_s"]) for name in runs},
        "sentences": len(workload["sentences"]),
        "fill": workload["fill"],
    }


def released_seconds_per_sentence(directory: pathlib.Path, sentences: int) -> float:
    """The released recipe's order in PyTorch: one sentence a step, teacher first."""
    return statistics.median(run_child("benchmarks.peer_torch", "released", directory, sentences)["step_s"][1:])


def print_table(results: dict) -> None:
    """The ratios, as Markdown."""
    print("| contexts | ours | PyTorch, obvious | ratio | PyTorch, teacher kept | ratio | ours, naive | "
          "KL step / fine-tuning step | teacher's share | loss differs by |")  # fmt: skip
    print("| " + " | ".join(["---"] * 10) + " |")
    for count, r in results.items():
        print(
            f"| {count} | {r['ours_s']:.0f} s | {r['torch_s']:.0f} s | {r['obvious_ratio']:.1f} | "
            f"{r['torch_cached_s']:.0f} s | {r['cached_ratio']:.2f} | {r['naive_s']:.0f} s | "
            f"{r['student_over_finetune']:.2f} | {100 * r['teacher_share']:.1f} % | {r['max_loss_difference']:.1e} |"
        )


def main(_) -> None:
    """Measures, prints and writes."""
    counts = [1] if QUICK.value else [int(count) for count in CONTEXTS.value]
    repeats, steps, slow = (1, 4, 2) if QUICK.value else (REPEATS.value, STEPS.value, SLOW_STEPS.value)
    base = load_model(DEFAULT_MODEL)
    prompt = Prompt(PROMPT.value, base.tokenizer)
    config = workloads.train_config(EPOCHS.value, BATCH_ROWS.value, ROW_LENGTH.value)
    results, released = {}, None
    with tempfile.TemporaryDirectory() as scratch:
        model = pathlib.Path(scratch) / "model"
        workloads.write_model(model, base)
        written = {}
        for count in counts:
            directory = pathlib.Path(scratch) / f"contexts-{count}"
            contexts = workloads.example_contexts(count)
            written[count] = directory, workloads.write_workload(directory, base, contexts, prompt, config)
            (directory / "model").symlink_to(model)
        del base, prompt  # the candidates need the memory
        for count, (directory, workload) in written.items():
            own = [f"--remat={REMAT.value}", f"--matmul_precision={MATMUL.value}"]
            torch = [f"--dtype={TORCH_DTYPE.value}"]
            results[str(count)] = measure(directory, workload, repeats, steps, slow, own, torch)
            files.write_json(OUT.value, results[str(counts[0])] | {"by_contexts": results})
        directory, workload = written[counts[0]]
        released = released_seconds_per_sentence(directory, 2 * slow)
    sentences = sum(map(len, workload["steps"]))
    extra = {"torch_released_s_per_sentence": released, "torch_released_s": released * sentences}
    files.write_json(OUT.value, results[str(counts[0])] | extra | {"by_contexts": results})
    print_table(results)
    print(f"\nThe released order: {released:.2f} s a sentence, {released * sentences:.0f} s in all.")


if __name__ == "__main__":
    app.run(main)
