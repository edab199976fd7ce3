"""Reading: every tensor in its place, only what is needed, nothing damaged; and the fingerprint."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file
from saved_weights import (
    Recording,
    check_params,
    config_of,
    our_logits,
    random_tensors,
    save_random,
)

from selfparam_jax.checkpoints import tensors
from selfparam_jax.checkpoints.tensors import fingerprint, load_params, load_with_fingerprint
from selfparam_jax.checkpoints.weight_files import SafetensorsSource, TorchBinSource
from selfparam_jax.distributed.mesh import MeshConfig, make_mesh
from selfparam_jax.models.decoder import param_shapes
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.models.shardings import parameter_shardings


@pytest.mark.parametrize("case", tiny.CASES)
def test_logits_equal_transformers(tmp_path, case):
    model = tiny.save_checkpoint(tmp_path, case)
    config = model_config_from_hf(model.config)
    params = load_params(SafetensorsSource(tmp_path), config, jnp.float32)
    check_params(params, tiny.hf_tensors(model), config)
    ids = tiny.token_ids(13)
    expected = tiny.hf_logits(tiny.with_torch(model), ids)
    assert expected.std() > 0.5  # not degenerate
    assert np.abs(our_logits(params, config, ids) - expected).max() < 1e-4


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_dtypes(tmp_path, stored, wanted):
    model = tiny.save_checkpoint(tmp_path, "gqa", dtype=stored)
    config = model_config_from_hf(model.config)
    params = load_params(SafetensorsSource(tmp_path), config, wanted)
    check_params(params, tiny.hf_tensors(model), config, wanted)


def test_shards(tmp_path):
    model = tiny.save_checkpoint(tmp_path, "gqa", shards=3)
    assert len(list(tmp_path.glob("model-*.safetensors"))) >= 3
    config = model_config_from_hf(model.config)
    params = load_params(SafetensorsSource(tmp_path), config, jnp.float32)
    check_params(params, tiny.hf_tensors(model), config)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_reads_only_the_slices_of_its_devices(tmp_path, axis):
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip("needs two devices")
    config = config_of("gqa", num_hidden_layers=4)
    tensors = save_random(tmp_path, config)
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))
    plain = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * axis, "x"))
    source = Recording(SafetensorsSource(tmp_path))
    shardings = jax.tree.map(lambda _: plain, param_shapes(config))
    shardings["layers"]["mlp"]["gate_proj"]["kernel"] = split
    params = load_params(source, config, jnp.float32, shardings)
    check_params(params, tensors, config)
    assert params["layers"]["mlp"]["gate_proj"]["kernel"].sharding == split
    reads = [(name, index) for name, index in source.reads if "gate_proj" in name]
    sizes = {"rows": 48, "columns": 32}  # the checkpoint's orientation: [out, in]
    shape = (sizes["rows"], sizes["columns"])
    if axis == 0:  # layers: each tensor once, whole
        expected = [(layer, (slice(0, 48), slice(0, 32))) for layer in range(4)]
    elif axis == 1:  # our rows are the checkpoint's columns
        expected = [(layer, (slice(0, 48), part)) for part in (slice(0, 16), slice(16, 32)) for layer in range(4)]
    else:
        expected = [(layer, (part, slice(0, 32))) for part in (slice(0, 24), slice(24, 48)) for layer in range(4)]
    assert shape == source.shape("model.layers.0.mlp.gate_proj.weight")
    expected = [(f"model.layers.{layer}.mlp.gate_proj.weight", index) for layer, index in expected]
    assert sorted(map(repr, reads)) == sorted(map(repr, expected))
    # A replicated leaf is read once, not once for each device.
    assert sum(name == "model.embed_tokens.weight" for name, _ in source.reads) == 1


def test_partly_replicated_leaf_is_read_once_for_each_part(tmp_path):
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    config = config_of("gqa")
    tensors = save_random(tmp_path, config)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("tensor"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    source = Recording(SafetensorsSource(tmp_path))
    shardings = jax.tree.map(lambda _: whole, param_shapes(config)) | {"lm_head": {"weight": sharding}}
    params = load_params(source, config, jnp.float32, shardings)
    check_params(params, tensors, config)
    reads = [index for name, index in source.reads if name == "lm_head.weight"]
    assert sorted(index[0].start for index in reads) == [0, 136]


# --- refusing damaged checkpoints --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            "'model.layers.1.mlp.up_proj.weight' is missing",
        ),
        (lambda t: t.pop("lm_head.weight"), "'lm_head.weight' is missing"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), "'extra' is unexpected"),
        (
            lambda t: t.update({"model.layers.3.mlp.up_proj.weight": np.zeros((48, 32), np.float32)}),
            "'model.layers.3.mlp.up_proj.weight' is unexpected",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(31, np.float32)}),
            r"'model.norm.weight' has shape \(31,\), expected \(32,\)",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight": np.zeros((32, 48), np.float32)}),
            r"up_proj.weight' has shape \(32, 48\), expected \(48, 32\)",
        ),
    ],
)
def test_wrong_tensors(tmp_path, change, message):
    config = config_of("gqa")
    save_random(tmp_path, config, change=change)
    with pytest.raises(ValueError, match=message):
        load_params(SafetensorsSource(tmp_path), config, jnp.float32)


def test_ignorable_tensors(tmp_path):
    config = config_of("tied")

    def change(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    tensors = save_random(tmp_path, config, change=change)
    params = load_params(SafetensorsSource(tmp_path), config, jnp.float32)
    check_params(params, tensors, config)
    assert "lm_head" not in params


def test_truncated_and_corrupt_files(tmp_path):
    save_random(tmp_path, config_of("gqa"))
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:50], whole[:4], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
            SafetensorsSource(tmp_path)


def test_broken_index(tmp_path):
    config = config_of("gqa")
    tensors = random_tensors(config)
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(ValueError, match=r"no model\.safetensors and no model\.safetensors\.index\.json"):
        SafetensorsSource(tmp_path)
    for content in ("{", "", "[]", "[" * 30_000, '{"weight_map": 5}', '{"weight_map": {"a": 5}}'):
        index.write_text(content)
        with pytest.raises(ValueError, match="is not an index"):
            SafetensorsSource(tmp_path)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "one.safetensors")}))
    with pytest.raises(ValueError, match=r"one\.safetensors is missing"):
        SafetensorsSource(tmp_path)
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' is only in the index"):
        SafetensorsSource(tmp_path)


# --- fingerprint -------------------------------------------------------------------------------------


def test_fingerprint_covers_every_element(tmp_path):
    config = config_of("gqa")
    name = "model.layers.2.self_attn.k_proj.weight"

    def nudge(*index):
        def change(tensors):
            tensors[name][index] += 1

        return change

    def swap(tensors):
        tensors[name][0], tensors[name][1] = tensors[name][1].copy(), tensors[name][0].copy()

    found = set()
    for number, change in enumerate((lambda t: None, nudge(0, 0), nudge(-1, -1), nudge(7, 30), swap)):
        directory = tmp_path / str(number)
        directory.mkdir()
        save_random(directory, config, change=change)
        found.add(fingerprint(SafetensorsSource(directory), config))
    assert len(found) == 5
    source = SafetensorsSource(tmp_path / "0")
    assert fingerprint(source, config) in found
    assert fingerprint(source, config_of("gqa", rms_norm_eps=1e-3)) not in found
    assert all(len(value) == 64 and int(value, 16) for value in found)


def test_fingerprint_covers_what_lies_far_from_the_start(tmp_path, monkeypatch):
    """Tensors of more than one chunk, read in several pieces."""
    monkeypatch.setattr(tensors, "CHUNK", 100)
    config, found = config_of("gqa"), set()
    for number, place in enumerate((None, (271, 31), (3, 4), (100, 0))):

        def change(tensors, place=place):
            if place:
                tensors["model.embed_tokens.weight"][place] += 1

        (tmp_path / str(number)).mkdir()
        save_random(tmp_path / str(number), config, change=change)
        source = Recording(SafetensorsSource(tmp_path / str(number)))
        found.add(fingerprint(source, config))
        assert ("model.embed_tokens.weight", (slice(270, 272), slice(0, 32))) in source.reads  # the last rows alone
    assert len(found) == 4
    monkeypatch.undo()
    assert fingerprint(SafetensorsSource(tmp_path / "0"), config) in found  # it does not depend on the pieces


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("sizes", [None, (1, 1, 1), (2, 1, 1), (1, 2, 2)])
def test_fingerprint_depends_neither_on_the_dtype_nor_on_the_mesh(tmp_path, dtype, sizes):
    config = config_of("gqa")
    written = save_random(tmp_path, config)
    shardings = None
    if sizes:
        mesh = make_mesh(jax.devices()[: int(np.prod(sizes))], MeshConfig(*sizes))
        shardings = parameter_shardings(mesh, config)
    source = Recording(SafetensorsSource(tmp_path))
    params, found = load_with_fingerprint(source, config, dtype, shardings)
    check_params(params, written, config, dtype)
    assert found == fingerprint(SafetensorsSource(tmp_path), config)
    reads = [name for name, _ in source.reads]
    if sizes != (1, 2, 2):  # every device holds every tensor: nothing is read a second time
        assert len(reads) == len(set(reads)) == len(written)


@pytest.mark.parametrize("whole", [True, False])
def test_several_processes_share_the_fingerprint(tmp_path, monkeypatch, whole):
    """Each digests its share, and what the others found completes it."""
    config = config_of("gqa")
    save_random(tmp_path, config)
    expected = fingerprint(SafetensorsSource(tmp_path), config)
    shares = {}
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(tensors, "all_agree", lambda flags: np.asarray(flags))

    def read(index, total):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(
            tensors, "sum_of_shares", lambda own: shares.setdefault(index, own) if total is None else total
        )
        source = Recording(SafetensorsSource(tmp_path))
        if whole:
            return source, load_with_fingerprint(source, config, np.float32)[1]
        return source, fingerprint(source, config)

    sources = [read(index, None)[0] for index in range(3)]
    total = sum(shares.values())
    assert np.count_nonzero(np.stack(list(shares.values())).any(axis=2).sum(axis=0) != 1) == 0  # each tensor by one
    assert {read(index, total)[1] for index in range(3)} == {expected}
    if not whole:
        own = [{name for name, _ in source.reads} for source in sources]
        assert sum(map(len, own)) == len(set.union(*own)) == len(shares[0])


def test_fingerprint_does_not_depend_on_the_file_format(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    model = tiny.save_checkpoint(one, "gqa", shards=2)
    tiny.save_torch_checkpoint(other, "gqa")
    config = model_config_from_hf(model.config)
    first = fingerprint(SafetensorsSource(one), config)
    assert first == fingerprint(TorchBinSource(other), config)


# --- weights that are not finite ----------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e19, -1e30])
@pytest.mark.parametrize("split", [False, True])
def test_weights_that_are_not_finite(tmp_path, value, split):
    config = config_of("gqa")
    name = "model.layers.1.mlp.down_proj.weight"

    def change(tensors):
        tensors[name][20, 30] = value

    save_random(tmp_path, config, change=change)
    shardings = None
    if split:
        shardings = parameter_shardings(make_mesh(jax.devices()[:4], MeshConfig(1, 2, 2)), config)
    source = SafetensorsSource(tmp_path)
    for read in (
        lambda: load_params(source, config, np.float32, shardings),
        lambda: load_with_fingerprint(source, config, ml_dtypes.bfloat16, shardings),
        lambda: fingerprint(source, config),
    ):
        with pytest.raises(ValueError, match=f"tensor '{name}' holds NaN or infinity, expected finite"):
            read()


def test_bfloat16_weights_that_are_not_finite(tmp_path):
    config = config_of("gqa")
    tensors = {name: value.astype(ml_dtypes.bfloat16) for name, value in random_tensors(config).items()}
    tensors["lm_head.weight"][5, 6] = np.nan
    tensors["model.norm.weight"][3] = np.inf
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' holds NaN or infinity"):
        load_params(SafetensorsSource(tmp_path), config, np.float32)
    with pytest.raises(ValueError, match=r"'model.norm.weight' holds NaN or infinity \(and 1 more\)"):
        fingerprint(SafetensorsSource(tmp_path), config)


def test_of_several_processes_all_hear_of_weights_that_are_not_finite(tmp_path, monkeypatch):
    config = config_of("gqa")
    save_random(tmp_path, config)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    heard = []

    def all_agree(flags):  # the other process has found the last tensor damaged
        heard.append(list(flags))
        return np.asarray(flags) & (np.arange(len(flags)) < len(flags) - 1)

    monkeypatch.setattr(tensors, "all_agree", all_agree)
    with pytest.raises(ValueError, match=r"'lm_head\.weight' holds NaN"):
        load_params(SafetensorsSource(tmp_path), config, np.float32)
    assert heard and all(heard[0])
