"""Exports: what is written is read again, by us and by transformers."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from extras import require
from safetensors.numpy import load_file
from saved_weights import (
    config_of,
    our_logits,
    save_random,
)

from selfparam_jax.checkpoints import export
from selfparam_jax.checkpoints.export import (
    check_saved,
    check_weights,
    merge_for_export,
    save_model,
    save_safetensors,
)
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.tensors import load_params
from selfparam_jax.checkpoints.weight_files import SafetensorsSource
from selfparam_jax.distributed.files import StorageError
from selfparam_jax.jobs.candidates import load_model_set
from selfparam_jax.jobs.served import open_source
from selfparam_jax.models.decoder import param_shapes
from selfparam_jax.models.lora import LoraConfig, init_lora, merge_adapters


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("case", "max_shard_bytes"), [("gqa", 5e9), ("tied", 5e9), ("biases", 20_000)])
def test_save_and_load(tmp_path, dtype, case, max_shard_bytes):
    config = config_of(case)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    tensors = save_random(source, config)
    params = load_params(SafetensorsSource(source), config, dtype)
    save_safetensors(params, config, target, dtype, max_shard_bytes)
    written = {}
    for path in sorted(target.glob("*.safetensors")):
        shard = load_file(path)
        size = sum(value.nbytes for value in shard.values())
        assert size <= max_shard_bytes or len(shard) == 1
        written |= shard
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(written[name], value.astype(dtype))
    again = load_params(SafetensorsSource(target), config, dtype)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    names = sorted(path.name for path in target.iterdir())
    if max_shard_bytes == 5e9:
        assert names == ["model.safetensors"]
    else:
        index = json.loads((target / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in written.values())
        assert set(index["weight_map"].values()) == {n for n in names if n.endswith(".safetensors")}
        assert len(names) > 3


def test_export_into_the_same_directory_leaves_one_layout(tmp_path):
    config = config_of("gqa")
    save_random(tmp_path, config, seed=1)
    params = load_params(SafetensorsSource(tmp_path), config, jnp.float32)
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    for limit in (30_000, 5e9, 30_000):
        save_safetensors(changed, config, tmp_path, np.float32, limit)
        again = load_params(SafetensorsSource(tmp_path), config, jnp.float32)
        jax.tree.map(np.testing.assert_array_equal, again, changed)
        single, index = ((tmp_path / f"model.safetensors{end}").exists() for end in ("", ".index.json"))
        assert (single, index) == (limit == 5e9, limit != 5e9)


def test_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    config = config_of("gqa")
    tensors = save_random(tmp_path, config)
    params = load_params(SafetensorsSource(tmp_path), config, jnp.float32)

    def full_disk(content, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_safetensors(params, config, tmp_path, np.float32)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == tensors.keys()


def test_a_saved_model_that_was_damaged_is_named(tmp_path):
    tiny.save_checkpoint(tmp_path / "base", "gqa")
    base = load_model(tmp_path / "base")
    check_saved(tmp_path / "out", "merge it again")  # there is none
    save_model(base.params, base, tmp_path / "out", "float32")
    check_saved(tmp_path / "out", "merge it again")
    for name in ("model.safetensors", "config.json"):
        whole = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=rf"{name} is missing or not as it was written; merge it again$"):
            check_saved(tmp_path / "out", "merge it again")
        (tmp_path / "out" / name).write_bytes(whole)
    (tmp_path / "out" / "README.md").write_text("mine")
    check_saved(tmp_path / "out", "merge it again")


def test_damaged_weights_of_an_export_are_named(tmp_path):
    """A flipped bit is a number like any other; what people change in other files is theirs to change."""
    tiny.save_checkpoint(tmp_path / "base", "gqa")
    base = load_model(tmp_path / "base")
    save_model(base.params, base, tmp_path / "out", "float32")
    (tmp_path / "out" / "generation_config.json").write_text("{}")
    for source in (tmp_path / "out", tmp_path / "base", "org/name"):
        check_weights(source)
    path = tmp_path / "out" / "model.safetensors"
    values = bytearray(path.read_bytes())
    values[-10] ^= 4
    path.write_bytes(values)
    match = r"model\.safetensors is missing or not as it was written; write it again with selfparam export"
    with pytest.raises(ValueError, match=match):
        check_weights(tmp_path / "out")
    with pytest.raises(ValueError, match=match):
        open_source(str(tmp_path / "out"))
    with pytest.raises(ValueError, match=match):
        load_model_set([str(tmp_path / "base"), str(tmp_path / "out")], str(tmp_path / "base"))


def test_export_refuses_another_tree(tmp_path):
    config = config_of("gqa")
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), param_shapes(config))
    without = {name: leaf for name, leaf in params.items() if name != "norm"}
    with pytest.raises(ValueError, match="norm/weight is missing"):
        save_safetensors(without, config, tmp_path, np.float32)
    with pytest.raises(ValueError, match="lm_head/weight is unexpected"):
        save_safetensors(params, config_of("tied"), tmp_path, np.float32)
    with pytest.raises(ValueError, match=r"norm/weight has shape \(3,\), expected \(32,\)"):
        save_safetensors(params | {"norm": {"weight": np.zeros(3)}}, config, tmp_path, np.float32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("max_shard_bytes", [5e9, 20_000])
@pytest.mark.parametrize("case", ["gqa", "tied", "biases", "mistral"])
def test_transformers_loads_the_export(tmp_path, case, max_shard_bytes):
    require("torch")
    from transformers import AutoModelForCausalLM

    config = config_of(case)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    save_random(source, config, change=lambda t: t.update({n: 0.2 * v for n, v in t.items()}))
    params = load_params(SafetensorsSource(source), config, jnp.float32)
    save_safetensors(params, config, target, np.float32, max_shard_bytes)
    tiny.hf_config(case).save_pretrained(target)
    model, info = AutoModelForCausalLM.from_pretrained(
        target, dtype="float32", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    ids = tiny.token_ids(13)
    expected = tiny.hf_logits(model.eval(), ids)
    assert expected.std() > 0.1
    assert np.abs(our_logits(params, config, ids) - expected).max() < 1e-4


# --- whole models -------------------------------------------------------------------------------------


def adapter_for(model, seed=0, **changes):
    """An adapter whose factors are all random."""
    lora = init_lora(jax.random.key(seed), model.params, LoraConfig(rank=2, **changes))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(seed + 1), leaf.shape), lora)


def test_save_model(tiny_model, tmp_path):
    adapters = [(adapter_for(tiny_model), 0.5)]
    target = tmp_path / "new" / "merged"
    assert save_model(merge_for_export(tiny_model, adapters), tiny_model, target, "bfloat16") == target
    loaded = load_model(target)
    expected = merge_adapters(tiny_model.params, adapters)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), loaded.params, expected)
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    assert getattr(tiny_model.hf_config, "dtype", None) is None  # the model in memory is not changed
    assert loaded.tokenizer.get_vocab() == tiny_model.tokenizer.get_vocab()
    record = json.loads((target / "export.json").read_text())
    assert record.keys() == {"base_fingerprint", "adapters_digest", "dtype", "files"}
    assert record["files"].keys() == {path.name for path in target.iterdir()} - {"export.json"}
    assert (record["base_fingerprint"], record["dtype"]) == (tiny_model.fingerprint, "bfloat16")
    assert [path.name for path in target.parent.iterdir()] == ["merged"]


def test_the_same_export_is_kept(tiny_model, tmp_path):
    adapters = [(adapter_for(tiny_model), 0.5)]
    save_model(merge_for_export(tiny_model, adapters), tiny_model, tmp_path, "float32")  # an empty directory is fine
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    save_model(merge_for_export(tiny_model, adapters), tiny_model, tmp_path, jnp.float32)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_export_is_not_kept(tiny_model, tmp_path, damage):
    """It would be taken for the whole one; a README.md, on the other hand, is there to be edited."""
    write = functools.partial(save_model, merge_for_export(tiny_model, []), tiny_model, tmp_path / "out", "float32")
    write()
    (tmp_path / "out" / "README.md").write_text("Mine.")
    write()
    path = tmp_path / "out" / ("tokenizer.json" if damage == "gone" else "model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    if damage == "gone":
        path.unlink()
    with pytest.raises(ValueError, match=rf"{path.name} is missing or not as it was written; delete {path.parent}"):
        write()


@pytest.mark.parametrize("eager", [False, True])
def test_another_export_is_refused(tiny_model, tmp_path, eager):
    lora = adapter_for(tiny_model)

    def merge(lora, scale):
        return (
            merge_adapters(tiny_model.params, [(lora, scale)])
            if eager
            else merge_for_export(tiny_model, [(lora, scale)])
        )

    target = tmp_path / "merged"
    save_model(merge(lora, 0.5), tiny_model, target, "float32")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    other = dataclasses.replace(tiny_model, fingerprint="other")
    nudged = jax.tree.map(lambda leaf: leaf, lora)
    nudged["layers"]["mlp"]["up_proj"]["b"] = nudged["layers"]["mlp"]["up_proj"]["b"].at[-1, -1, -1].add(1e-2)
    for params, model, dtype, what in (
        (merge(lora, 0.25), tiny_model, "float32", "adapters_digest: .* there, .* now"),
        (merge(nudged, 0.5), tiny_model, "float32", "adapters_digest"),
        (merge(lora, 0.5), other, "float32", "base_fingerprint: 'tiny' there, 'other' now"),
        (merge(lora, 0.5), tiny_model, "bfloat16", "dtype: 'float32' there, 'bfloat16' now"),
    ):
        with pytest.raises(ValueError, match=f"merged holds another export .*{what}.*delete this one"):
            save_model(params, model, target, dtype)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_directory_that_is_no_export_is_refused(tiny_model, tmp_path, content):
    (tmp_path / "notes.txt").write_text("mine")
    if content:
        (tmp_path / "export.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"has no readable export\.json, expected a new directory or the same export"
    ):
        save_model(tiny_model.params, tiny_model, tmp_path, "float32")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    file = tmp_path / "notes.txt"
    with pytest.raises(ValueError, match=r"notes\.txt exists"):
        save_model(tiny_model.params, tiny_model, file, "float32")


def test_an_interrupted_export_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    def full_disk(content, path, metadata):
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "save_file", full_disk)
    with pytest.raises(StorageError, match="merged: no space is left on its disk; nothing of it was left there"):
        save_model(tiny_model.params, tiny_model, tmp_path / "merged", "float32")
    assert list(tmp_path.iterdir()) == []


def test_a_base_in_8_bits_is_loaded_again_for_export(tmp_path):
    require("qwix")
    tiny.save_checkpoint(tmp_path / "base", "gqa")
    rounded = load_model(str(tmp_path / "base"), int8=True)
    plain = load_model(str(tmp_path / "base"))
    assert rounded.fingerprint == plain.fingerprint
    adapters = [(adapter_for(plain), 0.5)]
    with pytest.raises(ValueError, match="is in 8 bits, expected floats; load the model without int8"):
        save_model(rounded.params, rounded, tmp_path / "merged", "float32")
    save_model(merge_for_export(rounded, adapters), rounded, tmp_path / "merged", "float32")
    expected = merge_adapters(plain.params, adapters)
    jax.tree.map(np.testing.assert_array_equal, load_model(str(tmp_path / "merged")).params, expected)
    tiny.save_checkpoint(tmp_path / "base", "gqa", seed=1)
    with pytest.raises(ValueError, match="base has changed since it was loaded"):
        merge_for_export(rounded, adapters)
