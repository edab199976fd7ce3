"""The same training in PyTorch, as a competent user writes it with transformers and PEFT: what ours is timed against.

    python -m benchmarks.peer_torch --workload=DIR --mode=obvious --out=result.json

Runs on the CPU with torch's own number of threads. The workload directory has `workload.json`, the model in
Hugging Face's layout in `model/` (Llama or Mistral), and the adapter to start from in `adapter.safetensors`.

Modes:
  obvious: each step runs the teacher (adapter off) on prefix + sentence, then the student on start_ids + sentence.
  cached: the teacher reads every sentence once, before training, and its log-probabilities stay in memory.
  released: the order of the paper's code: as `obvious`, but each sentence is an optimizer step of its own.
"""

import time

# Read before the imports below: they take seconds, and `start_s` counts them.
STARTED = time.perf_counter()

import dataclasses  # noqa: E402
import json  # noqa: E402
import pathlib  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from absl import app, flags  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402

from benchmarks.memory import peak_memory  # noqa: E402

MODES = ("obvious", "cached", "released")
DTYPES = ("float32", "bfloat16")
TEACHER_BATCH = 8  # sentences of one teacher pass in mode `cached`

WORKLOAD = flags.DEFINE_string("workload", None, "Directory of the workload.")
MODE = flags.DEFINE_enum("mode", None, MODES, "How teacher and student take turns.")
OUT = flags.DEFINE_string("out", None, "Where the measurements go (JSON).")
DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Of the frozen weights and the activations.")
LIMIT_STEPS = flags.DEFINE_integer("limit_steps", None, "At most this many optimizer steps.", lower_bound=1)
flags.mark_flags_as_required(["workload", "mode", "out"])


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A target sentence: its ids, which of them carry loss, and what the teacher reads first (None: start_ids)."""

    context: int | None
    ids: tuple[int, ...]
    loss: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is trained on; every field is one of workload.json. `steps` are indices of sentences."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    learning_rate: float
    start_ids: tuple[int, ...]
    prefixes: tuple[tuple[int, ...], ...]
    sentences: tuple[Sentence, ...]
    steps: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        if not self.start_ids or not all(self.prefixes):
            raise ValueError("workload.json: got an empty start_ids or prefix, expected at least one token in each")
        for i, sentence in enumerate(self.sentences):
            _check_sentence(f"workload.json: sentences[{i}]", sentence, len(self.prefixes))
        for i, step in enumerate(self.steps):
            if not step or not all(0 <= j < len(self.sentences) for j in step):
                raise ValueError(
                    f"workload.json: steps[{i}] = {list(step)}, expected one or more indices of the "
                    f"{len(self.sentences)} sentences"
                )
        if not self.steps:
            raise ValueError("workload.json: steps is empty, expected at least one step")

    def largest_id(self) -> int:
        """The largest token id anywhere; the model's vocabulary must have it."""
        return max(max(ids) for ids in (self.start_ids, *self.prefixes, *(s.ids for s in self.sentences)))


def _check_sentence(where: str, sentence: Sentence, contexts: int) -> None:
    if sentence.context is not None and not 0 <= sentence.context < contexts:
        raise ValueError(
            f"{where}.context = {sentence.context}, expected null or one of {contexts} prefixes' indices"
        )
    if not sentence.loss or not all(0 <= j < len(sentence.ids) for j in sentence.loss):
        raise ValueError(
            f"{where}.loss = {list(sentence.loss)}, expected one or more indices of its {len(sentence.ids)} tokens"
        )


def load_workload(directory: str | pathlib.Path) -> Workload:
    """Reads and checks workload.json.

    Raises:
      ValueError: the file is missing, no JSON, lacks a field or has one too many, or an index has no meaning.
    """
    path = pathlib.Path(directory) / "workload.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; --workload must be a directory with a workload.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values |= {name: tuple(values[name]) for name in ("targets", "start_ids")}
        values |= {name: tuple(map(tuple, values[name])) for name in ("prefixes", "steps")}
        values["sentences"] = tuple(
            Sentence(s["context"], tuple(s["ids"]), tuple(s["loss"])) for s in values["sentences"]
        )
        return Workload(**values)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has not the fields of a workload: {error}") from error


def load_student(directory: str | pathlib.Path, workload: Workload, dtype: str) -> peft.PeftModel:
    """The model under the workload's adapter: frozen weights in `dtype`, adapter float32 (PEFT's default).

    Raises:
      ValueError: a file is missing, the adapter does not fit, or the vocabulary is too small.
    """
    directory = pathlib.Path(directory)
    for name in ("model/config.json", "adapter.safetensors"):
        if not (directory / name).is_file():
            raise ValueError(f"{directory / name} does not exist")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        directory / "model", dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
    )
    if workload.largest_id() >= base.config.vocab_size:
        raise ValueError(
            f"workload.json has token id {workload.largest_id()}, the model's vocabulary has {base.config.vocab_size}"
        )
    config = peft.LoraConfig(
        r=workload.rank,
        lora_alpha=workload.alpha,
        lora_dropout=0.0,
        target_modules=list(workload.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base, config)
    load_adapter(model, load_file(directory / "adapter.safetensors"))
    return model


def load_adapter(model: peft.PeftModel, tensors: dict[str, torch.Tensor]) -> None:
    """Copies our adapter into PEFT's.

    Args:
      tensors: `layers.<module>.<projection>.a` [L, D, R] and `.b` [L, R, F], the layers stacked. PEFT keeps
        each layer's transpose: `lora_A.weight` [R, D], `lora_B.weight` [F, R].

    Raises:
      ValueError: a tensor is missing, has another shape, or belongs to no layer of the model.
    """
    depth, used = model.get_base_model().config.num_hidden_layers, set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, module, factor = re.search(r"\.layers\.(\d+)\.(.+)\.lora_([AB])\.default\.weight$", name).groups()
        key = f"layers.{module}.{factor.lower()}"
        if key not in tensors:
            raise ValueError(f"adapter.safetensors has no {key}; it must have a and b of every target")
        expected = (depth, *reversed(parameter.shape))
        if tuple(tensors[key].shape) != expected:
            raise ValueError(f"adapter.safetensors: {key} is {tuple(tensors[key].shape)}, expected {expected}")
        with torch.no_grad():
            parameter.copy_(tensors[key][int(layer)].T)
        used.add(key)
    if left := sorted(set(tensors) - used):
        raise ValueError(f"adapter.safetensors has {left}, which no target of the model takes")


def make_optimizer(model: peft.PeftModel, learning_rate: float) -> torch.optim.AdamW:
    """AdamW on the adapter at a constant rate."""
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # `fused` computes the same as the default, which walks over hundreds of small tensors in Python.
    return torch.optim.AdamW(adapter, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)


def log_probabilities(
    model: peft.PeftModel, before: Sequence[Sequence[int]], sentences: Sequence[Sentence]
) -> torch.Tensor:
    """What the model predicts for every loss token.

    Args:
      model: teacher or student, depending on whether the adapter is on.
      before: for each sentence the ids read before it.

    Returns:
      float32 [M, V], M the number of loss tokens of all sentences, in their order.
    """
    rows = [torch.tensor([*first, *s.ids]) for first, s in zip(before, sentences, strict=True)]
    # Padding is on the right: a causal model then needs no other positions than 0, 1, ... in every row.
    ids = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    row = [i for i, s in enumerate(sentences) for _ in s.loss]
    # Token j is predicted one position before it; for j = 0 that is the last of the ids before the sentence.
    column = [len(first) + j - 1 for first, s in zip(before, sentences, strict=True) for j in s.loss]
    network = model.get_base_model()
    hidden = network.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    # The head is the costliest product per position, so only positions that carry loss go through it.
    logits = network.lm_head(hidden[row, column])
    return torch.nn.functional.log_softmax(logits, dim=-1, dtype=torch.float32)


def teacher_log_probabilities(model: peft.PeftModel, workload: Workload, members: Sequence[int]) -> torch.Tensor:
    """Float32 [M, V] of the sentences `members` under the model without its adapter, prefixes in view."""
    sentences = [workload.sentences[i] for i in members]
    before = [workload.start_ids if s.context is None else workload.prefixes[s.context] for s in sentences]
    with torch.no_grad(), model.disable_adapter():
        return log_probabilities(model, before, sentences)


def read_all_teachers(model: peft.PeftModel, workload: Workload, members: Sequence[int]) -> dict[int, torch.Tensor]:
    """For each sentence of `members` the teacher's log-probabilities, float32 [its loss tokens, V]."""
    cache: dict[int, torch.Tensor] = {}
    for begin in range(0, len(members), TEACHER_BATCH):
        batch = members[begin : begin + TEACHER_BATCH]
        counts = [len(workload.sentences[i].loss) for i in batch]
        cache |= zip(batch, teacher_log_probabilities(model, workload, batch).split(counts), strict=True)
    return cache


def train(
    model: peft.PeftModel,
    optimizer: torch.optim.Optimizer,
    workload: Workload,
    mode: str,
    limit_steps: int | None = None,
) -> dict:
    """Trains the adapter and takes the time.

    Args:
      mode: one of MODES.
      limit_steps: at most this many optimizer steps; all if None.

    Returns:
      'teacher_s' (seconds of the teacher pass before training; 0 where the steps include it), and per
      optimizer step 'step_s' (seconds), 'losses' (mean KL per loss token, before the update), 'loss_tokens'.
    """
    if mode not in MODES:
        raise ValueError(f"mode = {mode!r}, expected one of {MODES}")
    steps = [[i] for step in workload.steps for i in step] if mode == "released" else workload.steps
    steps, began = steps[:limit_steps], time.perf_counter()
    cache = read_all_teachers(model, workload, sorted({i for s in steps for i in s})) if mode == "cached" else None
    measured = {"teacher_s": time.perf_counter() - began if cache else 0.0}
    measured |= {"step_s": [], "losses": [], "loss_tokens": []}
    for step in steps:
        began = time.perf_counter()
        if cache is None:
            teacher = teacher_log_probabilities(model, workload, step)
        else:
            teacher = torch.cat([cache[i] for i in step])
        sentences = [workload.sentences[i] for i in step]
        student = log_probabilities(model, [workload.start_ids] * len(step), sentences)
        total = torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="sum")
        loss = total / len(student)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        measured["losses"].append(loss.item())
        measured["step_s"].append(time.perf_counter() - began)
        measured["loss_tokens"].append(len(student))
    return measured


def main(argv: list[str]) -> None:
    """Trains as the flags say and writes the measurements."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not pathlib.Path(OUT.value).absolute().parent.is_dir():
        raise app.UsageError(f"--out={OUT.value}: its directory does not exist")
    transformers.utils.logging.disable_progress_bar()
    try:
        workload = load_workload(WORKLOAD.value)
        model = load_student(WORKLOAD.value, workload, DTYPE.value)
    except (OSError, ValueError) as error:  # OSError: transformers finds no weights
        sys.exit(f"--workload={WORKLOAD.value}: {error}")
    optimizer = make_optimizer(model, workload.learning_rate)
    result = {"mode": MODE.value, "dtype": DTYPE.value, "start_s": time.perf_counter() - STARTED}
    result |= train(model, optimizer, workload, MODE.value, LIMIT_STEPS.value)
    result["threads"] = torch.get_num_threads()
    result |= {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    # Not by our package: that would import JAX, which this process must not pay for.
    text = json.dumps(result | {"peak_rss_bytes": peak_memory()}, indent=2)
    pathlib.Path(OUT.value).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
