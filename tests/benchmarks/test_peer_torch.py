"""The PyTorch peer of the speed benchmark trains what ours trains: same losses, step by step."""

import copy
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from extras import Later, need
from safetensors.numpy import save_file

from selfparam_jax.models.decoder import Decoder, apply_head, head_weight
from selfparam_jax.models.lora import MODULES
from selfparam_jax.training.losses import kl_from_logits

torch = need("torch")
need("peft")
peer_torch = Later(lambda: tiny.benchmark("peer_torch"))

# PEFT asks for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROOT = pathlib.Path(__file__).resolve().parents[2]
RATE, RANK, ALPHA = 0.01, 2, 3.0
TARGETS = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
# (context, tokens, which carry loss): contexts of different lengths, one token alone, no context, token 0.
SENTENCES = [(0, 4, [0, 2, 3]), (1, 1, [0]), (None, 6, [1, 5]), (1, 5, [0, 1, 2, 3, 4]), (0, 3, [2])]
STEPS = [[0, 1, 2], [3, 4, 1], [2, 0, 3]]


def draw_workload() -> dict:
    """The content of a workload.json."""
    rng = np.random.default_rng(3)

    def ids(length):
        return rng.integers(3, tiny.SIZES["vocab_size"], length).tolist()

    return {
        "rank": RANK,
        "alpha": ALPHA,
        "targets": TARGETS,
        "learning_rate": RATE,
        "start_ids": [0, *ids(1)],
        "prefixes": [[0, *ids(11)], [0, *ids(7)]],
        "sentences": [{"context": c, "ids": ids(n), "loss": list(loss)} for c, n, loss in SENTENCES],
        "steps": [list(step) for step in STEPS],
    }


def draw_adapter(model) -> dict[str, np.ndarray]:
    """Random a and b of every target, names and layout ours; b is not zero, so the adapter matters at once."""
    rng, tensors, depth = np.random.default_rng(4), {}, model.config.num_hidden_layers
    for name in TARGETS:
        module = f"{MODULES[name]}.{name}"
        outputs, inputs = model.get_submodule(f"model.layers.0.{module}").weight.shape
        a = rng.standard_normal((depth, inputs, RANK)) * inputs**-0.5
        b = rng.standard_normal((depth, RANK, outputs)) * 0.2
        tensors |= {f"layers.{module}.a": a.astype(np.float32), f"layers.{module}.b": b.astype(np.float32)}
    return tensors


def write_workload(directory, model, workload: dict, adapter: dict[str, np.ndarray]) -> None:
    model.save_pretrained(directory / "model")
    (directory / "workload.json").write_text(json.dumps(workload))
    save_file(adapter, directory / "adapter.safetensors")


@pytest.fixture(scope="module", params=["gqa", "mistral"])  # mistral: a window of 5, shorter than the prefixes
def case(request, tmp_path_factory):
    model = tiny.hf_model(request.param)
    workload, adapter = draw_workload(), draw_adapter(model)
    directory = tmp_path_factory.mktemp(request.param)
    write_workload(directory, model, workload, adapter)
    return SimpleNamespace(directory=directory, model=model, workload=workload, adapter=adapter)


@pytest.fixture(scope="module")
def obvious(case):
    return run(case.directory, "obvious")


def start(directory):
    workload = peer_torch.load_workload(directory)
    model = peer_torch.load_student(directory, workload, "float32")
    return model, peer_torch.make_optimizer(model, workload.learning_rate), workload


def run(directory, mode, **arguments) -> dict:
    return peer_torch.train(*start(directory), mode, **arguments)


def merged_copy(case):
    """The case's model with the adapter's first values added to its weights."""
    student = copy.deepcopy(case.model)
    for key, a in case.adapter.items():
        if key.endswith(".a"):
            delta = ALPHA / RANK * a @ case.adapter[key[:-1] + "b"]
            for layer, change in enumerate(delta):
                module = student.get_submodule(f"model.layers.{layer}.{key[len('layers.') : -len('.a')]}")
                module.weight.data += torch.from_numpy(change.T.copy())
    return student


def prefix_of(workload: dict, sentence: dict) -> list[int]:
    return workload["start_ids"] if sentence["context"] is None else workload["prefixes"][sentence["context"]]


def test_first_loss_by_hand(case, obvious):
    """One sentence at a time, no padding, the adapter merged, KL written out."""
    student, total, count = merged_copy(case), 0.0, 0
    for i in STEPS[0]:
        sentence = case.workload["sentences"][i]
        rows = []
        for model, before in (
            (case.model, prefix_of(case.workload, sentence)),
            (student, case.workload["start_ids"]),
        ):
            logits = tiny.hf_logits(model, [before + sentence["ids"]])[0].astype(np.float64)
            chosen = logits[[len(before) + j - 1 for j in sentence["loss"]]]
            rows.append(chosen - np.log(np.exp(chosen).sum(axis=-1, keepdims=True)))
        teacher, learner = rows
        total += (np.exp(teacher) * (teacher - learner)).sum()
        count += len(sentence["loss"])
    assert obvious["loss_tokens"][0] == count == 6
    assert obvious["losses"][0] == pytest.approx(total / count, rel=1e-5)


def test_cached_teacher_gives_the_same_losses(case, obvious):
    cached = run(case.directory, "cached")
    np.testing.assert_allclose(cached["losses"], obvious["losses"], rtol=1e-5)
    assert cached["loss_tokens"] == obvious["loss_tokens"] == [6, 7, 10]
    assert len(cached["step_s"]) == 3 and min(cached["step_s"]) > 0
    assert cached["teacher_s"] > 0 and obvious["teacher_s"] == 0.0


def test_a_cached_batch_is_cut_at_the_right_sentences(case, monkeypatch):
    """More sentences than one teacher pass takes."""
    model, _, workload = start(case.directory)
    whole = peer_torch.read_all_teachers(model, workload, [0, 1, 2, 3, 4])
    monkeypatch.setattr(peer_torch, "TEACHER_BATCH", 2)
    parts = peer_torch.read_all_teachers(model, workload, [0, 1, 2, 3, 4])
    assert list(parts) == list(whole) == [0, 1, 2, 3, 4]
    for i, (_, _, loss) in enumerate(SENTENCES):
        assert parts[i].shape == (len(loss), tiny.SIZES["vocab_size"])
        torch.testing.assert_close(parts[i], whole[i], rtol=1e-4, atol=1e-4)


def jax_losses(case, from_hf) -> list[float]:
    """Losses of our model under our objective: one row a sentence, padded to one length, and optax's AdamW."""
    config, params = from_hf(case.model)
    model, workload = Decoder(config, lora_scale=ALPHA / RANK), case.workload
    length = max(map(len, workload["prefixes"])) + max(len(s["ids"]) for s in workload["sentences"])
    optimizer = optax.adamw(RATE, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)

    @jax.jit
    def logits(variables, ids, segments):
        positions = jnp.broadcast_to(jnp.arange(length)[None], ids.shape)
        return apply_head(model.apply(variables, ids, positions, segments)[0], head_weight(params))

    @jax.jit
    def step(lora, opt_state, ids, segments, teacher, weights):
        def loss(lora):
            student = logits({"params": params, "lora": lora}, ids, segments)
            return jnp.sum(kl_from_logits(teacher, student) * weights) / jnp.sum(weights)

        value, gradient = jax.value_and_grad(loss)(lora)
        updates, opt_state = optimizer.update(gradient, opt_state, lora)
        return value, optax.apply_updates(lora, updates), opt_state

    def rows(before, sentences):
        ids, segments = np.zeros((2, len(sentences), length), np.int32)
        for row, (first, sentence) in enumerate(zip(before, sentences, strict=True)):
            read = first + sentence["ids"]
            ids[row, : len(read)], segments[row, : len(read)] = read, 1
        return ids, segments

    lora: dict = {}
    for key, value in case.adapter.items():
        layers, module, name, factor = key.split(".")
        lora.setdefault(layers, {}).setdefault(module, {}).setdefault(name, {})[factor] = jnp.asarray(value)
    losses, opt_state, head = [], optimizer.init(lora), workload["start_ids"]
    for members in STEPS:
        sentences = [workload["sentences"][i] for i in members]
        before = [prefix_of(workload, sentence) for sentence in sentences]
        seen = np.asarray(logits({"params": params}, *rows(before, sentences)))
        teacher, weights = np.zeros_like(seen), np.zeros(seen.shape[:2], np.float32)
        for row, sentence in enumerate(sentences):  # the teacher's logits move to where the student predicts the same
            for j in sentence["loss"]:
                teacher[row, len(head) + j - 1] = seen[row, len(before[row]) + j - 1]
                weights[row, len(head) + j - 1] = 1.0
        student = rows([head] * len(members), sentences)
        value, lora, opt_state = step(lora, opt_state, *student, teacher, weights)
        losses.append(float(value))
    return losses


def test_our_steps_give_the_same_losses(case, obvious, from_hf):
    ours = jax_losses(case, from_hf)
    np.testing.assert_allclose(obvious["losses"], ours, rtol=1e-4)


def test_released_takes_one_step_per_sentence(case):
    model, optimizer, workload = start(case.directory)
    released = peer_torch.train(model, optimizer, workload, "released")
    assert released["loss_tokens"] == [len(SENTENCES[i][2]) for members in STEPS for i in members]
    assert len(released["step_s"]) == 9 and released["teacher_s"] == 0.0
    states = optimizer.state_dict()["state"].values()
    assert len(states) == 2 * len(TARGETS) * case.model.config.num_hidden_layers
    assert {int(state["step"]) for state in states} == {9}
    model, optimizer, workload = start(case.directory)
    single = dataclasses.replace(workload, steps=tuple((i,) for members in STEPS for i in members))
    np.testing.assert_allclose(
        released["losses"], peer_torch.train(model, optimizer, single, "obvious")["losses"], rtol=1e-5
    )


def test_limit_counts_optimizer_steps(case, obvious):
    limited = run(case.directory, "obvious", limit_steps=2)
    np.testing.assert_allclose(limited["losses"], obvious["losses"][:2], rtol=1e-5)
    assert len(run(case.directory, "released", limit_steps=4)["losses"]) == 4


def test_only_the_adapter_changes(case):
    model, optimizer, workload = start(case.directory)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    peer_torch.train(model, optimizer, workload, "obvious", limit_steps=1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".lora_" in name}


def test_bfloat16_keeps_adapter_and_loss_in_float32(case, obvious):
    workload = peer_torch.load_workload(case.directory)
    model = peer_torch.load_student(case.directory, workload, "bfloat16")
    kinds = {".lora_" in name: value.dtype for name, value in model.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert peer_torch.teacher_log_probabilities(model, workload, [0]).dtype == torch.float32
    measured = peer_torch.train(model, peer_torch.make_optimizer(model, RATE), workload, "cached")
    np.testing.assert_allclose(measured["losses"], obvious["losses"], rtol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w["steps"].append([5]), r"steps\[3\] = \[5\], expected one or more indices of the 5"),
        (lambda w: w["steps"].clear(), "steps is empty"),
        (lambda w: w["sentences"][1]["loss"].append(1), r"sentences\[1\]\.loss = \[0, 1\]"),
        (lambda w: w["sentences"][1]["loss"].clear(), r"sentences\[1\]\.loss = \[\]"),
        (lambda w: w["sentences"][2].update(context=2), r"sentences\[2\]\.context = 2"),
        (lambda w: w["start_ids"].clear(), "empty start_ids or prefix"),
        (lambda w: w.pop("rank"), "has not the fields of a workload.*rank"),
        (lambda w: w.update(temperature=2), "has not the fields of a workload.*temperature"),
    ],
)
def test_bad_workloads_are_refused(tmp_path, change, message):
    workload = draw_workload()
    change(workload)
    (tmp_path / "workload.json").write_text(json.dumps(workload))
    with pytest.raises(ValueError, match=message):
        peer_torch.load_workload(tmp_path)


def test_files_that_are_missing_or_broken(tmp_path):
    with pytest.raises(ValueError, match=r"workload\.json does not exist"):
        peer_torch.load_workload(tmp_path)
    (tmp_path / "workload.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        peer_torch.load_workload(tmp_path)
    (tmp_path / "workload.json").write_text(json.dumps(draw_workload()))
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        peer_torch.load_student(tmp_path, peer_torch.load_workload(tmp_path), "float32")


def first_tensor(adapter):
    return "layers.self_attn.q_proj.a", adapter["layers.self_attn.q_proj.a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("layers.mlp.up_proj.b"), r"has no layers\.mlp\.up_proj\.b"),
        (
            lambda a: a.update(dict([first_tensor(a)]) | {"layers.self_attn.o_proj.a": np.zeros(1)}),
            "o_proj.a.*no target",
        ),
        (
            lambda a: a.update({first_tensor(a)[0]: first_tensor(a)[1][:2]}),
            r"q_proj\.a is \(2, 32, 2\), expected \(3",
        ),
    ],
)
def test_every_tensor_of_the_adapter_must_fit(case, change, message):
    model, _, _ = start(case.directory)
    adapter = dict(case.adapter)
    change(adapter)
    with pytest.raises(ValueError, match=message):
        peer_torch.load_adapter(model, {key: torch.from_numpy(value) for key, value in adapter.items()})


def test_as_a_child_process(tmp_path):
    model, workload = tiny.hf_model("gqa"), draw_workload()
    write_workload(tmp_path, model, workload, draw_adapter(model))
    out = tmp_path / "result.json"
    arguments = [f"--workload={tmp_path}", "--mode=released", f"--out={out}", "--limit_steps=2"]
    command = [sys.executable, "-X", "importtime", "-m", "benchmarks.peer_torch", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "import time" not in line)
    # The peer's start must not pay for JAX.
    assert not re.search(r"\| +jax(lib)?$", done.stderr, re.MULTILINE)
    result = json.loads(out.read_text())
    numbers = ["start_s", "teacher_s", "step_s", "losses", "loss_tokens", "threads", "peak_rss_bytes"]
    assert sorted(result) == sorted(["mode", "dtype", *numbers, "torch", "transformers", "peft"])
    assert result["mode"] == "released" and result["dtype"] == "float32" and result["loss_tokens"] == [3, 1]
    assert result["torch"] == torch.__version__
    assert 0.1 < result["start_s"] < 600 and 1e7 < result["peak_rss_bytes"] < 4e9
