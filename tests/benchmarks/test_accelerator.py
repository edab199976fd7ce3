"""The benchmark for one GPU or TPU chip: its counts by hand, and all of it with a tiny model on the CPU."""

import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from extras import require

from benchmarks import accelerator
from selfparam_jax.distributed import mesh
from selfparam_jax.models.decoder import param_shapes
from selfparam_jax.models.masks import visible

TINY = accelerator.TINY
FLAGS = ["--shape=tiny", "--steps=2", "--batch_size=2", "--seq_len=32", "--context_tokens=24"]
SETTINGS = accelerator.Settings(
    shape="tiny", steps=2, batch_size=2, seq_len=32, context_tokens=24, dtype="bfloat16", loss_chunk=128,
    remat="none", attention="blocks", peak_flops=None,
)  # fmt: skip


def test_flops_by_hand():
    # A layer: q and o 32 x 32, k and v 32 x 16, three times 32 x 48 in the MLP: 7680.
    assert accelerator.kernel_parameters(TINY) == 2 * 7680
    # Two texts of 3 and 5 tokens: 8 tokens, 6 + 15 pairs; 2 layers x 4 heads x 8 x 2 products x 2.
    layers, attention = 2 * 15360 * 8, 256 * 21
    head = 2 * 32 * 256 * 6  # one product at 6 positions
    step = accelerator.model_flops(TINY, [3, 5], 6)
    assert step == 2 * layers + 3 * attention + 3 * head == 802560
    with_teacher = accelerator.model_flops(TINY, [3, 5], 6, teacher_reads=[10])
    assert with_teacher - step == 2 * 15360 * 10 + 256 * 55


@pytest.mark.parametrize("window", [None, 1, 4, 9, 20])
def test_pairs_are_those_of_the_mask(window):
    positions = jnp.arange(9)[None]
    segments = jnp.ones_like(positions)
    mask = visible(positions, segments, positions, segments, window)
    assert accelerator.visible_pairs(9, window) == int(mask.sum())


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_published_peaks(kind, peak):
    assert accelerator.peak_flops(kind) == peak


@pytest.mark.parametrize(
    ("shape", "parameters"), [("llama3-8b", 8_030_261_248), ("mistral-7b", 7_241_732_096), ("tiny", None)]
)
def test_weights_have_the_tree_and_the_published_size(shape, parameters):
    settings = dataclasses.replace(SETTINGS, shape=shape)
    one = mesh.make_mesh(jax.local_devices()[:1])
    made = jax.eval_shape(functools.partial(accelerator.random_params, settings.config, jnp.bfloat16, one))
    expected = param_shapes(settings.config)
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    assert jax.tree.map(lambda x: x.shape, made) == jax.tree.map(lambda x: x.shape, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.bfloat16)}
    count = sum(leaf.size for leaf in jax.tree.leaves(made))
    assert parameters in (None, count) and settings.weights_bytes == 2 * count


def test_random_weights():
    one = mesh.make_mesh(jax.local_devices()[:1])
    params = accelerator.random_params(TINY, jnp.bfloat16, one)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert float(jnp.abs(params["norm"]["weight"] - 1).max()) == 0
    gate = np.asarray(params["layers"]["mlp"]["gate_proj"]["kernel"], np.float32)
    table = np.asarray(params["embed_tokens"]["embedding"], np.float32)
    head = np.asarray(params["lm_head"]["weight"], np.float32)
    for values in (gate[0], gate[1], table, head):
        assert values.std() == pytest.approx(0.02, rel=0.1) and abs(values.mean()) < 0.002
    # Layers, tables and the rows of one are drawn apart.
    assert not np.array_equal(gate[0], gate[1]) and not np.array_equal(table, head)
    assert len(np.unique(table, axis=0)) == len(table)


def test_workload_fills_the_steps():
    settings = dataclasses.replace(SETTINGS, steps=5, batch_size=3, seq_len=64)
    workload = accelerator.make_workload(settings)
    assert workload == accelerator.make_workload(settings)
    assert len(workload.context) == 24 and len(workload.rows) == 6
    members = [i for rows in workload.rows for row in rows for i in row]
    assert len(set(members)) == len(members)
    assert len({len(sentence.ids) for sentence in workload.sentences}) > 5
    assert {len(rows) for rows in workload.rows} == {3}
    for row in itertools.chain.from_iterable(workload.rows):
        assert row and sum(1 + len(workload.sentences[i].ids) for i in row) <= 64
    ids = [i for sentence in workload.sentences for i in sentence.ids]
    assert min(ids) >= 2 and max(ids) < TINY.vocab_size


def test_summary_by_hand():
    workload = accelerator.make_workload(SETTINGS)
    tokens = sum(map(sum, (workload.lengths(1), workload.lengths(2)))) / 2
    measured = {"step_s": [5.0, 0.2, 0.4], "flops": [3e12, 6e12], "fill": 0.9}
    got = accelerator.summary(SETTINGS, workload, {"platform": "gpu", "device": "NVIDIA H200"}, measured)
    assert got["step_s"] == pytest.approx(0.3) and got["compile_s"] == pytest.approx(4.7)
    assert got["sentence_tokens_per_s"] == pytest.approx(tokens / 0.3)
    assert got["flops_utilisation"] == pytest.approx(4.5e12 / 0.3 / 989e12)
    assert got["fill"] == 0.9 and got["steps_s"] == [0.2, 0.4]
    # The table's peaks are those of bfloat16; one that is given counts for any dtype.
    other = dataclasses.replace(SETTINGS, dtype="float32")
    assert accelerator.summary(other, workload, {"device": "NVIDIA H200"}, measured)["flops_utilisation"] is None
    given = dataclasses.replace(other, peak_flops=1e14)
    assert accelerator.summary(given, workload, {"device": "x"}, measured)["flops_utilisation"] == pytest.approx(0.15)


SHARED_KEYS = {
    "platform", "device", "step_s", "steps_s", "first_step_s", "compile_s", "teacher_s", "sentence_tokens_per_step",
    "sentence_tokens_per_s", "fill", "model_flops_per_step", "model_flops_per_s", "peak_flops", "flops_utilisation",
    "peak_device_bytes", "weights_bytes", "losses", "versions",
}  # fmt: skip
OUR_KEYS = {"batch_s", "teacher_first_s", "teacher_tokens"}


def check_report(report: dict, system: str, more_keys: set[str]) -> dict:
    """What holds for every system on the CPU; returns its part."""
    assert set(report) == {field.name for field in dataclasses.fields(SETTINGS)} | {"systems"}
    assert {name: value for name, value in report.items() if name != "systems"} == dataclasses.asdict(
        dataclasses.replace(SETTINGS, peak_flops=1e9)
    )
    result = report["systems"][system]
    assert set(result) == SHARED_KEYS | more_keys
    numbers = [value for value in result.values() if isinstance(value, float | int)]
    assert len(numbers) >= 11 and all(math.isfinite(number) and number >= 0 for number in numbers)
    assert len(result["losses"]) == 3 and all(0 < loss < 1 for loss in result["losses"])
    assert len(result["steps_s"]) == 2 and min(result["steps_s"]) > 0
    assert result["weights_bytes"] == SETTINGS.weights_bytes and 0.5 < result["fill"] <= 1
    assert result["flops_utilisation"] == pytest.approx(result["model_flops_per_s"] / 1e9)
    workload = accelerator.make_workload(SETTINGS)
    assert result["sentence_tokens_per_step"] == sum(workload.lengths(1) + workload.lengths(2)) / 2
    return result


@pytest.fixture
def on_cpu(monkeypatch):
    """The children find no accelerator, and begin with their imports done."""
    monkeypatch.setattr(accelerator.subprocess, "run", processes.run_command)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_ours_end_to_end(tmp_path, on_cpu, capsys):
    out = tmp_path / "report.json"
    accelerator.main([*FLAGS, "--systems=ours", "--peak_flops=1e9", f"--out={out}"])
    result = check_report(json.loads(out.read_text()), "ours", OUR_KEYS)
    workload = accelerator.make_workload(SETTINGS)
    lengths = [[1 + n for n in workload.lengths(step)] for step in (1, 2)]
    flops = [accelerator.model_flops(TINY, some, sum(some) - len(some)) for some in lengths]
    assert result["model_flops_per_step"] == sum(flops) / 2
    assert result["fill"] == pytest.approx(sum(map(sum, lengths)) / (2 * 2 * 32))
    assert result["teacher_tokens"] == 24 + sum(len(sentence.ids) for sentence in workload.sentences)
    assert 0 < result["teacher_s"] < result["teacher_first_s"]
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3 and table[2].startswith("| ours | cpu |") and len({row.count("|") for row in table}) == 1


@pytest.mark.parametrize("system", ["torch", "torch_cached"])
def test_torch_end_to_end(tmp_path, on_cpu, system):
    require("peft")
    out = tmp_path / "report.json"
    accelerator.main([*FLAGS, f"--systems={system}", "--peak_flops=1e9", f"--out={out}"])
    result = check_report(json.loads(out.read_text()), system, set())
    workload = accelerator.make_workload(SETTINGS)
    read = 24 if system == "torch" else None  # tokens of the context, in every step or before all
    flops = [
        accelerator.model_flops(
            TINY, [1 + n for n in lengths], sum(lengths), [read + n for n in lengths] if read else ()
        )
        for lengths in (workload.lengths(1), workload.lengths(2))
    ]
    assert result["model_flops_per_step"] == sum(flops) / 2
    assert (result["teacher_s"] == 0) == (system == "torch")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--systems=ours,jax"], r"unknown \['jax'\]"),
        (["--steps=0"], "--steps=0, expected at least 1"),
        (["--seq_len=8"], "--seq_len=8, expected more than 8"),
        (["--context_tokens=1000"], "make up to 1032 tokens, tiny takes 1024"),
        (["--out=/no/such/directory/report.json"], "its directory does not exist"),
        (["--shape=huge"], "invalid choice: 'huge'"),
    ],
)
def test_bad_flags_are_refused(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        accelerator.main([*FLAGS, "--systems=ours", f"--out={tmp_path / 'report.json'}", *flags])
    assert re.search(message, capsys.readouterr().err)


def test_missing_torch_is_said(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    out = f"--out={tmp_path / 'report.json'}"
    with pytest.raises(SystemExit):
        accelerator.main([*FLAGS, out])
    assert re.search("--systems=torch and torch_cached need .*peft", capsys.readouterr().err)
    assert accelerator.parse([*FLAGS, out, "--systems=ours"])[0].systems == ["ours"]


def test_what_does_not_fit_is_said(tmp_path, monkeypatch):
    large, out = dataclasses.replace(SETTINGS, shape="llama3-8b"), tmp_path / "out.json"
    with pytest.raises(accelerator.UnfitError, match=r"weights take 15\.0 GiB in bfloat16, NVIDIA T4 has 14\.6 GiB"):
        accelerator.check_device(large, "NVIDIA T4", False, round(14.6 * 2**30))
    with pytest.raises(accelerator.UnfitError, match="needs an accelerator, found only cpu"):
        accelerator.check_device(large, "cpu", True, None)
    accelerator.check_device(large, "NVIDIA H200", False, 139 << 30)

    def fails_with(text):
        def run(_):
            raise RuntimeError(text)

        monkeypatch.setattr(accelerator, "run_ours", run)
        accelerator.run_child("ours", large, str(out))

    fails_with("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore")
    error = json.loads(out.read_text())["error"]
    assert (
        "--batch_size=2 --seq_len=32" in error
        and "--remat=layers. RESOURCE_EXHAUSTED" in error
        and "more" not in error
    )
    with pytest.raises(RuntimeError, match="a fault of ours"):
        fails_with("a fault of ours")


def test_one_system_that_fails_does_not_lose_the_other(tmp_path, capsys, monkeypatch):
    workload, out = accelerator.make_workload(SETTINGS), tmp_path / "report.json"
    measured = {"step_s": [2.0, 1.0, 1.0], "flops": [1, 1], "fill": 1.0, "teacher_s": 1.0, "peak_device_bytes": None}
    done = accelerator.summary(SETTINGS, workload, {"device": "cpu"}, measured)
    monkeypatch.setattr(accelerator, "measure", lambda name, *_: done if name == "ours" else {"error": "too large"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(SystemExit, match="torch: too large\ntorch_cached: too large"):
        accelerator.main([*FLAGS, f"--out={out}"])
    assert json.loads(out.read_text())["systems"] == {
        "ours": done, "torch": {"error": "too large"}, "torch_cached": {"error": "too large"},
    }  # fmt: skip
    assert "| ours | cpu | 1000.0 ms |" in capsys.readouterr().out
