"""Adapters in PEFT's layout: PEFT reads ours, we read PEFT's, and what would compute something else is refused."""

import copy
import dataclasses
import json

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from extras import require
from safetensors.numpy import load_file, save_file

from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.peft import load_adapter, save_adapter
from selfparam_jax.models.decoder import apply_head, head_weight
from selfparam_jax.models.lora import MODULES, LoraConfig, compose_lora, init_lora

PREFIX = "base_model.model.model.layers"


def random_adapter(model, rank=3, seed=0, modules=tuple(MODULES)):
    lora = init_lora(jax.random.key(seed), model.params, LoraConfig(rank=rank, target_modules=modules))
    leaves, tree = jax.tree.flatten(lora)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten([0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


def logits_of(model, lora, scale, ids):
    ids = jnp.asarray(ids)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    variables = {"params": model.params, "lora": lora}
    hidden, _ = model.decoder(lora_scale=scale).apply(variables, ids, positions, jnp.ones_like(ids))
    return np.asarray(apply_head(hidden, head_weight(model.params)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny checkpoint (as tensors) and the model that we load from it."""
    directory = tmp_path_factory.mktemp("base")
    made = tiny.save_checkpoint(directory, "gqa")
    return made, load_model(str(directory))


@pytest.mark.parametrize("modules", [tuple(MODULES), ("q_proj", "down_proj")])
@pytest.mark.parametrize("scale", [2.0, 1 / 3])
def test_peft_reads_our_adapter(base, tmp_path, modules, scale):
    peft = require("peft")
    made, model = base
    lora = random_adapter(model, modules=modules)
    save_adapter(lora, scale, model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(tiny.with_torch(made), str(tmp_path / "adapter")).eval()
    ids = tiny.token_ids(11)
    expected = tiny.hf_logits(theirs, ids)
    ours = logits_of(model, lora, scale, ids)
    assert np.abs(ours - logits_of(model, {"layers": {}}, 1.0, ids)).max() > 0.1  # the adapter matters
    assert np.abs(ours - expected).max() < 1e-5


def test_peft_reads_an_adapter_of_several_ranks(base, tmp_path):
    peft = require("peft")
    made, model = base
    parts = [(random_adapter(model, 3, 0), 0.5), (random_adapter(model, 2, 5, ("q_proj", "up_proj")), 0.7)]
    lora = compose_lora(parts)
    save_adapter(lora, 1.0, model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(tiny.with_torch(made), str(tmp_path / "adapter")).eval()
    ids = tiny.token_ids(11)
    assert np.abs(logits_of(model, lora, 1.0, ids) - tiny.hf_logits(theirs, ids)).max() < 1e-5
    again, scale, _ = load_adapter(tmp_path / "adapter", model)
    assert scale == 1.0
    jax.tree.map(np.testing.assert_array_equal, again, lora)
    # llama.cpp's converter knows one alpha, which it divides by each tensor's own rank: so all have the same.
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert not config.keys() & {"rank_pattern", "alpha_pattern"} and config["lora_alpha"] == config["r"] == 5
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.shape["lora_B" in name] for name, tensor in tensors.items()} == {5}
    path = tmp_path / "adapter" / "selfparam.json"
    for value in (1, 9):
        record = json.loads(path.read_text())
        record["ranks"]["v_proj"] = value
        path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=f"says that v_proj has rank {value}, but"):
            load_adapter(tmp_path / "adapter", model)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2.5),
        ({"use_rslora": True}, 5.0),
        ({"rank_pattern": {"v_proj": 2}}, 1.0),
        ({"alpha_pattern": {"gate_proj": 3}}, 1.0),
        ({"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 6}, "use_rslora": True}, 1.0),
        ({"layers_to_transform": [0, 2]}, 2.5),
        (
            {
                "target_modules": r".*layers\.[12]\..*v_proj|.*layers\.0\.mlp\.gate_proj",
                "rank_pattern": {r"layers\.1\.self_attn\.v_proj": 3, "^v_proj": 1},
                "alpha_pattern": {r"(0\.mlp|2\.self_attn)\.\w+": 7.5},
            },
            1.0,
        ),
    ],
    ids=["plain", "rslora", "ranks", "alphas", "all", "some layers", "layer by layer"],
)
def test_we_read_an_adapter_that_peft_wrote(base, tmp_path, options, expected):
    peft, torch = require("peft"), require("torch")
    made, model = base
    modules = ["v_proj", "gate_proj"]
    options = {"target_modules": modules, **options}
    config = peft.LoraConfig(r=4, lora_alpha=10, task_type="CAUSAL_LM", **options)
    theirs = peft.get_peft_model(tiny.with_torch(made), config).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    theirs.save_pretrained(tmp_path)
    lora, scale, record = load_adapter(tmp_path, model)
    assert (scale, record) == (expected, {})
    assert {name for block in lora["layers"].values() for name in block} == {"v_proj", "gate_proj"}
    ids = tiny.token_ids(11)
    assert np.abs(logits_of(model, lora, scale, ids) - tiny.hf_logits(theirs, ids)).max() < 1e-5


def test_an_adapter_of_an_older_peft_is_named(base, tmp_path):
    _, model = base
    target = save_adapter(random_adapter(model), 2.0, model, tmp_path / "adapter")
    (target / "adapter_model.safetensors").rename(target / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"holds adapter_model\.bin of an older PEFT; load it with PEFT and save it"):
        load_adapter(target, model)


# --- projections that the checkpoint holds as one ---------------------------------------------------------


@pytest.fixture(scope="module")
def phi3(tmp_path_factory):
    """A tiny Phi-3: transformers' model, and ours."""
    directory = tmp_path_factory.mktemp("phi3")
    made = families.hf_model(families.hf_config("Phi3Config"))
    made.save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return made, load_model(str(directory))


@pytest.mark.parametrize("modules", [tuple(MODULES), ("k_proj", "gate_proj", "down_proj")])
def test_peft_reads_our_adapter_of_fused_projections(phi3, tmp_path, modules):
    peft = require("peft")
    made, model = phi3
    lora = random_adapter(model, modules=modules)
    save_adapter(lora, 0.6, model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) <= {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(made), str(tmp_path / "adapter")).eval()
    ids = tiny.token_ids(11)
    ours = logits_of(model, lora, 0.6, ids)
    assert np.abs(ours - logits_of(model, {"layers": {}}, 1.0, ids)).max() > 0.1
    assert np.abs(ours - tiny.hf_logits(theirs, ids)).max() < 1e-5
    again, scale, _ = load_adapter(tmp_path / "adapter", model)
    assert scale == 0.6
    jax.tree.map(np.testing.assert_array_equal, again, lora)


def test_we_read_an_adapter_of_fused_projections_that_peft_wrote(phi3, tmp_path):
    peft, torch = require("peft"), require("torch")
    made, model = phi3
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=["qkv_proj", "down_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(copy.deepcopy(made), config).eval()
    fresh = theirs.save_pretrained(tmp_path / "fresh") or load_adapter(tmp_path / "fresh", model)[0]
    assert {name for block in fresh["layers"].values() for name in block} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "down_proj",
    }
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    theirs.save_pretrained(tmp_path / "trained")
    lora, scale, _ = load_adapter(tmp_path / "trained", model)
    ids = tiny.token_ids(11)
    assert np.abs(logits_of(model, lora, scale, ids) - tiny.hf_logits(theirs, ids)).max() < 1e-5
    # Written again it is the same file: the parts still share their first factor.
    save_adapter(lora, scale, model, tmp_path / "again")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("trained", "again"))
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_files(base, tmp_path):
    _, model = base
    lora = random_adapter(model, modules=("q_proj", "down_proj"))
    target = save_adapter(lora, 0.75, model, tmp_path / "adapter", {"recipe": {"epochs": 5, "names": ("a", "b")}})
    assert sorted(path.name for path in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "selfparam.json",
    ]
    config = json.loads((target / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 2.25)
    assert config["base_model_name_or_path"] == model.source
    assert config["target_modules"] == ["down_proj", "q_proj"]
    tensors = load_file(target / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * model.config.num_hidden_layers
    a, b = (tensors[f"{PREFIX}.1.mlp.down_proj.lora_{letter}.weight"] for letter in "AB")
    assert (a.shape, b.shape, a.dtype) == ((3, 48), (32, 3), np.float32)
    pair = lora["layers"]["mlp"]["down_proj"]
    np.testing.assert_array_equal(b @ a, (np.asarray(pair["b"][1]).T @ np.asarray(pair["a"][1]).T))
    again, scale, record = load_adapter(target, model)
    jax.tree.map(np.testing.assert_array_equal, again, lora)
    assert scale == 0.75
    assert record["base_fingerprint"] == model.fingerprint
    assert record["extra"] == {"recipe": {"epochs": 5, "names": ["a", "b"]}}


def test_the_scale_returns_to_the_bit(base, tmp_path):
    _, model = base
    for number, scale in enumerate((1 / 3, 0.1, 16 / 7)):
        target = save_adapter(random_adapter(model), scale, model, tmp_path / str(number))
        assert load_adapter(target, model)[1] == scale


def test_the_same_adapter_is_kept_and_another_is_refused(base, tmp_path):
    _, model = base
    lora, target = random_adapter(model), tmp_path / "adapter"
    save_adapter(lora, 2.0, model, target)
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    save_adapter(lora, 2.0, model, target)
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before
    with pytest.raises(ValueError, match=r"adapter holds another export .*scale: 2\.0 there, 1\.0 now"):
        save_adapter(lora, 1.0, model, target)
    with pytest.raises(ValueError, match="adapter_digest"):
        save_adapter(random_adapter(model, seed=9), 2.0, model, target)
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before


def test_weights_that_are_not_those_that_were_written(base, tmp_path):
    """One changed number is found by the digest beside it; integers are parts of a quantisation."""
    _, model = base
    target = save_adapter(random_adapter(model), 2.0, model, tmp_path / "adapter")
    weights = target / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = min(tensors)
    tensors[name][0, 0] += 1
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is not what was written with selfparam\.json"):
        load_adapter(target, model)
    (target / "selfparam.json").unlink()  # the change is meant
    assert load_adapter(target, model)
    save_file({**tensors, name: tensors[name].astype(np.int8)}, weights)
    with pytest.raises(ValueError, match=r"has type int8, expected floats: .* parts of a quantisation"):
        load_adapter(target, model)


@pytest.mark.parametrize("content", ["", "[]", '{"scale": 2', "[" * 30_000])
@pytest.mark.parametrize("name", ["adapter_config.json", "selfparam.json"])
def test_a_damaged_json_file_is_named(base, tmp_path, name, content):
    _, model = base
    target = save_adapter(random_adapter(model, modules=("up_proj",)), 2.0, model, tmp_path / "adapter")
    (target / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read: .*Copy the adapter again") as refused:
        load_adapter(target, model)
    assert len(str(refused.value).splitlines()) == 1


def test_an_adapter_of_another_model(base, tmp_path):
    _, model = base
    target = save_adapter(random_adapter(model), 2.0, model, tmp_path / "adapter")
    other = dataclasses.replace(model, name="other", fingerprint="f" * 64)
    with pytest.raises(ValueError, match=r"belongs to a base with fingerprint .*'other' has ffff.*Load the base"):
        load_adapter(target, other)
    wide = dataclasses.replace(model, config=dataclasses.replace(model.config, intermediate_size=50))
    with pytest.raises(ValueError, match=r"up_proj\.b of the adapter has shape \(3, 3, 48\), .* wants \(3, 3, 50\)"):
        save_adapter(random_adapter(model, modules=("up_proj",)), 2.0, wide, tmp_path / "new")
    with pytest.raises(ValueError, match=r"lora_B\.weight' has shape \(48, 3\), expected \(50, 3\)"):
        load_adapter(save_adapter(random_adapter(model, modules=("up_proj",)), 2.0, model, tmp_path / "up"), wide)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported, expected 'LORA'"),
        ({"use_dora": True}, "use_dora = True is not supported, expected it unset"),
        ({"use_rslora": True}, "says scale 2.0, but lora_alpha / r is 3.46"),
        ({"bias": "all"}, "bias = 'all' is not supported, expected 'none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"layers_to_transform": [1]}, r"layers\.0\.mlp\.down_proj\.lora_A\.weight' is unexpected"),
        ({"something_new": {"x": 1}}, "something_new"),
        ({"r": None}, "r = None, expected a number"),
        ({"lora_alpha": "8"}, "lora_alpha = '8', expected a number"),
        ({"r": 0}, "r = 0, expected a whole number from 1"),
        ({"rank_pattern": {"q_proj": 10**9}}, "r = 1000000000, expected a whole number from 1 to"),
        ({"r": 4}, r"has shape \(3, 32\), expected \(4, 32\)"),
        ({"lora_alpha": 7}, "says scale 2.0, but lora_alpha / r is 2.33"),
        ({"alpha_pattern": {"q_proj": 1}}, "says scale 2.0, but lora_alpha / r is 1.0"),
        ({"rank_pattern": {"layers.1.self_attn.q_proj": 1}}, r"layers\.1\.self_attn\.q_proj.* expected \(1, 32\)"),
        ({"rank_pattern": {"(": 1}}, r"rank_pattern has a pattern that cannot be read: missing \)"),
    ],
)
def test_adapters_that_compute_something_else(base, tmp_path, changes, message):
    _, model = base
    target = save_adapter(random_adapter(model), 2.0, model, tmp_path / "adapter")
    path = target / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        load_adapter(target, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{PREFIX}.1.mlp.up_proj.lora_B.weight"), r"up_proj\.lora_B\.weight' is missing"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), "'extra' is unexpected"),
        (
            lambda t: t.update({f"{PREFIX}.7.mlp.up_proj.lora_A.weight": np.zeros((3, 32), np.float32)}),
            r"layers\.7\..* is unexpected",
        ),
        (lambda t: t[f"{PREFIX}.0.self_attn.q_proj.lora_A.weight"].fill(np.nan), "q_proj.* holds NaN or infinity"),
        (lambda t: t.clear(), "tensor 'any' is missing"),
    ],
)
def test_wrong_tensors(base, tmp_path, change, message):
    _, model = base
    target = save_adapter(random_adapter(model), 2.0, model, tmp_path / "adapter")
    path = target / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        load_adapter(target, model)


def test_damaged_files(base, tmp_path):
    _, model = base
    target = save_adapter(random_adapter(model), 2.0, model, tmp_path / "adapter")
    weights = target / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors cannot be read"):
        load_adapter(target, model)
    (target / "selfparam.json").write_text("{")
    with pytest.raises(ValueError, match=r"selfparam\.json cannot be read"):
        load_adapter(target, model)
    (target / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"adapter_config\.json cannot be read: .* got a list"):
        load_adapter(target, model)
    with pytest.raises(ValueError, match=r"has no adapter_config\.json"):
        load_adapter(tmp_path, model)
