import builtins
import json
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from selfparam_jax import weights
from selfparam_jax.model import Decoder, RopeScaling, apply_head, head_weight, param_shapes


def leaves(tree):
    return {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def config_of(case, **changes):
    return weights.model_config_from_hf(tiny.hf_config(case, **changes))


def our_logits(params, config, ids):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    hidden, _ = Decoder(config).apply({"params": params}, jnp.asarray(ids), positions, jnp.ones_like(positions))
    return np.asarray(apply_head(hidden, head_weight(params)))


class Recording:
    """A source that remembers what was read of it."""

    def __init__(self, source):
        self.source, self.reads = source, []
        self.names, self.shape = source.names, source.shape

    def read(self, name, index):
        self.reads.append((name, index))
        return self.source.read(name, index)


def random_tensors(config, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(entry.hf_shape).astype(np.float32)
        for entry in weights.parameter_table(config)
        for name in entry.hf_names()
    }


def save_random(directory, config, seed=0, change=lambda tensors: None):
    """A checkpoint without config or tokenizer, made without torch."""
    tensors = random_tensors(config, seed)
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return tensors


def check_params(params, tensors, config, dtype=np.float32):
    """Every tensor is where the table says, transposed where our name says kernel."""
    for entry in weights.parameter_table(config):
        leaf = np.asarray(leaves(params)[entry.path])
        assert leaf.dtype == dtype
        for layer, name in enumerate(entry.hf_names()):
            ours = leaf[layer] if entry.path[0] == "layers" else leaf
            expected = tensors[name].astype(dtype)
            np.testing.assert_array_equal(ours, expected.T if entry.path[-1] == "kernel" else expected)


# --- table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", tiny.CASES)
def test_table_is_the_parameter_tree(case):
    config = config_of(case)
    table = weights.parameter_table(config)
    expected = {path: leaf.shape for path, leaf in leaves(param_shapes(config)).items()}
    assert {entry.path: entry.shape for entry in table} == expected
    assert len(table) == len(expected)


@pytest.mark.parametrize("case", tiny.CASES)
def test_table_is_the_hf_state_dict(case):
    pytest.importorskip("torch")
    found = {name: value.shape for name, value in tiny.hf_tensors(tiny.hf_model(case)).items()}
    table = weights.parameter_table(config_of(case))
    assert {name: entry.hf_shape for entry in table for name in entry.hf_names()} == found


# --- configs ------------------------------------------------------------------------------------------


def test_config_fields():
    config = config_of("llama3", rms_norm_eps=1e-4, mlp_bias=True)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (272, 32, 48)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (3, 4, 2)
    assert (config.head_dim, config.rms_norm_eps, config.rope_theta) == (8, 1e-4, 10000.0)
    assert (config.max_position_embeddings, config.mlp_bias, config.attention_bias) == (64, True, False)
    assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 32)
    assert config_of("linear").rope_scaling == RopeScaling("linear", 4.0)
    assert config_of("linear").rope_theta == 5000.0
    assert config_of("head_dim").head_dim == 12
    assert config_of("tied").tie_word_embeddings
    assert config_of("mistral").sliding_window == 5
    assert config_of("mistral_full").sliding_window is None


@pytest.mark.parametrize("type_key", ["type", "rope_type"])
@pytest.mark.parametrize("through_transformers", [True, False])
def test_old_config_layout(type_key, through_transformers):
    from transformers import LlamaConfig

    fields = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-6, **tiny.SIZES}
    fields |= {"rope_theta": 5e5, "rope_scaling": {type_key: "linear", "factor": 2.0}, "head_dim": None}
    del fields["num_key_value_heads"]  # Llama 1
    made = LlamaConfig.from_dict(fields) if through_transformers else types.SimpleNamespace(**fields)
    config = weights.model_config_from_hf(made)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert config.num_key_value_heads == 4
    assert config.head_dim == 8


def test_old_config_without_scaling():
    fields = {"model_type": "mistral", "hidden_act": "silu", "rms_norm_eps": 1e-6, **tiny.SIZES}
    made = types.SimpleNamespace(**fields, rope_theta=1e6, rope_scaling=None, sliding_window=None)
    config = weights.model_config_from_hf(made)
    assert (config.rope_theta, config.rope_scaling, config.sliding_window) == (1e6, None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "model_type = 'gemma'.*expected 'llama' or 'mistral'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type = 'yarn'.*expected"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type = 'longrope'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "got no factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor, high_freq_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"pretraining_tp": 2}, "pretraining_tp = 2.*expected 1"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ],
)
def test_refused_configs(changes, message):
    fields = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-6, **tiny.SIZES, **changes}
    with pytest.raises(ValueError, match=message):
        weights.model_config_from_hf(types.SimpleNamespace(**fields))


# --- reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", tiny.CASES)
def test_logits_equal_transformers(tmp_path, case):
    pytest.importorskip("torch")
    model = tiny.save_checkpoint(tmp_path, case)
    config = weights.model_config_from_hf(model.config)
    params = weights.load_params(weights.SafetensorsSource(tmp_path), config, jnp.float32)
    check_params(params, tiny.hf_tensors(model), config)
    ids = tiny.token_ids(13)
    expected = tiny.hf_logits(model, ids)
    assert expected.std() > 0.5  # not degenerate
    assert np.abs(our_logits(params, config, ids) - expected).max() < 1e-4


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_dtypes(tmp_path, stored, wanted):
    pytest.importorskip("torch")
    model = tiny.save_checkpoint(tmp_path, "gqa", dtype=stored)
    config = weights.model_config_from_hf(model.config)
    params = weights.load_params(weights.SafetensorsSource(tmp_path), config, wanted)
    check_params(params, tiny.hf_tensors(model), config, wanted)


def test_shards(tmp_path):
    pytest.importorskip("torch")
    model = tiny.save_checkpoint(tmp_path, "gqa", shards=3)
    assert len(list(tmp_path.glob("model-*.safetensors"))) >= 3
    config = weights.model_config_from_hf(model.config)
    params = weights.load_params(weights.SafetensorsSource(tmp_path), config, jnp.float32)
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
    source = Recording(weights.SafetensorsSource(tmp_path))
    shardings = jax.tree.map(lambda _: plain, param_shapes(config))
    shardings["layers"]["mlp"]["gate_proj"]["kernel"] = split
    params = weights.load_params(source, config, jnp.float32, shardings)
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
    source = Recording(weights.SafetensorsSource(tmp_path))
    shardings = jax.tree.map(lambda _: whole, param_shapes(config)) | {"lm_head": {"weight": sharding}}
    params = weights.load_params(source, config, jnp.float32, shardings)
    check_params(params, tensors, config)
    reads = [index for name, index in source.reads if name == "lm_head.weight"]
    assert sorted(index[0].start for index in reads) == [0, 136]


# --- refusing damaged checkpoints ---------------------------------------------------------------------


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
        weights.load_params(weights.SafetensorsSource(tmp_path), config, jnp.float32)


def test_ignorable_tensors(tmp_path):
    config = config_of("tied")

    def change(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    tensors = save_random(tmp_path, config, change=change)
    params = weights.load_params(weights.SafetensorsSource(tmp_path), config, jnp.float32)
    check_params(params, tensors, config)
    assert "lm_head" not in params


def test_truncated_and_corrupt_files(tmp_path):
    save_random(tmp_path, config_of("gqa"))
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:50], whole[:4], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
            weights.SafetensorsSource(tmp_path)


def test_broken_index(tmp_path):
    config = config_of("gqa")
    tensors = random_tensors(config)
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(ValueError, match=r"no model\.safetensors and no model\.safetensors\.index\.json"):
        weights.SafetensorsSource(tmp_path)
    index.write_text("{")
    with pytest.raises(ValueError, match="is not an index"):
        weights.SafetensorsSource(tmp_path)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "one.safetensors")}))
    with pytest.raises(ValueError, match=r"one\.safetensors is missing"):
        weights.SafetensorsSource(tmp_path)
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' is only in the index"):
        weights.SafetensorsSource(tmp_path)


# --- pytorch_model.bin --------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "shards"), [("float32", 1), ("bfloat16", 1), ("float32", 3)])
def test_torch_bin(tmp_path, dtype, shards):
    pytest.importorskip("torch")
    model = tiny.save_torch_checkpoint(tmp_path, "gqa", dtype=dtype, shards=shards)
    config = weights.model_config_from_hf(model.config)
    params = weights.load_params(weights.TorchBinSource(tmp_path), config, jnp.float32)
    check_params(params, tiny.hf_tensors(model), config)


def test_torch_bin_damaged(tmp_path):
    pytest.importorskip("torch")
    tiny.save_torch_checkpoint(tmp_path, "gqa")
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is not a whole file of torch tensors"):
        weights.TorchBinSource(tmp_path)


def test_torch_bin_runs_no_code(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "created"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        weights.TorchBinSource(tmp_path)
    assert not (tmp_path / "created").exists()


def test_torch_bin_without_torch(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    real = builtins.__import__

    def no_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    with pytest.raises(ValueError, match=r"pip install 'selfparam-jax\[torch\]'"):
        weights.TorchBinSource(tmp_path)


# --- writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("case", "max_shard_bytes"), [("gqa", 5e9), ("tied", 5e9), ("biases", 20_000)])
def test_save_and_load(tmp_path, dtype, case, max_shard_bytes):
    config = config_of(case)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    tensors = save_random(source, config)
    params = weights.load_params(weights.SafetensorsSource(source), config, dtype)
    weights.save_safetensors(params, config, target, dtype, max_shard_bytes)
    written = {}
    for path in sorted(target.glob("*.safetensors")):
        shard = load_file(path)
        size = sum(value.nbytes for value in shard.values())
        assert size <= max_shard_bytes or len(shard) == 1
        written |= shard
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(written[name], value.astype(dtype))
    again = weights.load_params(weights.SafetensorsSource(target), config, dtype)
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
    params = weights.load_params(weights.SafetensorsSource(tmp_path), config, jnp.float32)
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    for limit in (30_000, 5e9, 30_000):
        weights.save_safetensors(changed, config, tmp_path, np.float32, limit)
        again = weights.load_params(weights.SafetensorsSource(tmp_path), config, jnp.float32)
        jax.tree.map(np.testing.assert_array_equal, again, changed)
        single, index = ((tmp_path / f"model.safetensors{end}").exists() for end in ("", ".index.json"))
        assert (single, index) == (limit == 5e9, limit != 5e9)


def test_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    config = config_of("gqa")
    tensors = save_random(tmp_path, config)
    params = weights.load_params(weights.SafetensorsSource(tmp_path), config, jnp.float32)

    def full_disk(content, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        weights.save_safetensors(params, config, tmp_path, np.float32)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == tensors.keys()


def test_export_refuses_another_tree(tmp_path):
    config = config_of("gqa")
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), param_shapes(config))
    without = {name: leaf for name, leaf in params.items() if name != "norm"}
    with pytest.raises(ValueError, match="norm/weight is missing"):
        weights.save_safetensors(without, config, tmp_path, np.float32)
    with pytest.raises(ValueError, match="lm_head/weight is unexpected"):
        weights.save_safetensors(params, config_of("tied"), tmp_path, np.float32)
    with pytest.raises(ValueError, match=r"norm/weight has shape \(3,\), expected \(32,\)"):
        weights.save_safetensors(params | {"norm": {"weight": np.zeros(3)}}, config, tmp_path, np.float32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("max_shard_bytes", [5e9, 20_000])
@pytest.mark.parametrize("case", ["gqa", "tied", "biases", "mistral"])
def test_transformers_loads_the_export(tmp_path, case, max_shard_bytes):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config = config_of(case)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    save_random(source, config, change=lambda t: t.update({n: 0.2 * v for n, v in t.items()}))
    params = weights.load_params(weights.SafetensorsSource(source), config, jnp.float32)
    weights.save_safetensors(params, config, target, np.float32, max_shard_bytes)
    tiny.hf_config(case).save_pretrained(target)
    model, info = AutoModelForCausalLM.from_pretrained(
        target, dtype="float32", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    ids = tiny.token_ids(13)
    expected = tiny.hf_logits(model.eval(), ids)
    assert expected.std() > 0.1
    assert np.abs(our_logits(params, config, ids) - expected).max() < 1e-4


# --- fingerprint --------------------------------------------------------------------------------------


def test_fingerprint(tmp_path):
    config = config_of("gqa")
    seen = set()
    name = "model.layers.2.self_attn.k_proj.weight"

    def nudge(tensors):
        tensors[name][0, 0] += 1

    for number, change in enumerate((lambda t: None, nudge)):
        directory = tmp_path / str(number)
        directory.mkdir()
        save_random(directory, config, change=change)
        seen.add(weights.fingerprint(weights.SafetensorsSource(directory), config))
    source = Recording(weights.SafetensorsSource(tmp_path / "0"))
    again = weights.fingerprint(source, config)
    assert again in seen
    assert len(seen) == 2
    other = config_of("gqa", rms_norm_eps=1e-3)
    assert weights.fingerprint(source, other) not in seen
    assert all(len(value) == 64 and int(value, 16) for value in seen)
    # Cheap: of the embedding [272, 32] just the rows that hold 4096 elements.
    assert ("model.embed_tokens.weight", (slice(0, 128), slice(0, 32))) in source.reads


def test_fingerprint_does_not_depend_on_the_file_format(tmp_path):
    pytest.importorskip("torch")
    one, other = tmp_path / "one", tmp_path / "other"
    model = tiny.save_checkpoint(one, "gqa", shards=2)
    tiny.save_torch_checkpoint(other, "gqa")
    config = weights.model_config_from_hf(model.config)
    first = weights.fingerprint(weights.SafetensorsSource(one), config)
    assert first == weights.fingerprint(weights.TorchBinSource(other), config)
