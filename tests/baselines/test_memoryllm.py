"""MemoryLLM as a system: a tiny checkpoint in the published layout is loaded, written into and asked."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from job_inputs import documents
from safetensors.numpy import save_file

from selfparam_jax.baselines.memoryllm import SYSTEM, MemoryLLMOptions
from selfparam_jax.checkpoints.memoryllm import load_memoryllm
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.systems import Setup
from selfparam_jax.inference.memory_pool import write
from selfparam_jax.models.architecture import PROJECTIONS

BLOCKS, BLOCK, RANK = 4, 6, 3
TARGETS = ("q_proj", "v_proj", "k_proj", "up_proj", "down_proj", "gate_proj")
FIELDS = {"num_blocks": BLOCKS, "num_tokens": BLOCK, "add_bos_embedding": True, "drop_memory_per_layer": True}
LORA = {"r": RANK, "lora_alpha": 6, "lora_dropout": 0.1, "inference_mode": False, "target_modules": list(TARGETS)}


def published(directory, adapters=True, change=lambda tensors: None, **fields):
    """Writes a random MemoryLLM as the published one is; returns its tensors."""
    made = tiny.checkpoint("gqa", max_position_embeddings=512)
    tiny.save_config(directory, made.config, "float32")
    path, rng = directory / "config.json", np.random.default_rng(1)
    settings = json.loads(path.read_text()) | FIELDS
    if adapters:
        settings |= {"lora_config": LORA, "add_decoder_lora": True}
    settings |= {"rope_theta": 10000.0, "rope_scaling": {"factor": 1.8125, "type": "linear"}} | fields
    settings.pop("rope_parameters")
    path.write_text(json.dumps(settings))

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    tensors = {}
    for name, value in made.tensors.items():
        projection = name.split(".")[-2]
        if adapters and projection in TARGETS:
            module, (size_out, size_in) = name.removesuffix(".weight"), value.shape
            tensors[f"{module}.base_layer.weight"] = value
            for adapter in ("default", "decoder_adapter"):
                tensors[f"{module}.lora_A.{adapter}.weight"] = 0.1 * draw(RANK, size_in)
                tensors[f"{module}.lora_B.{adapter}.weight"] = 0.1 * draw(size_out, RANK)
        else:
            tensors[name] = value
    layers, hidden = made.config.num_hidden_layers, made.config.hidden_size
    tensors["memory"] = draw(layers, BLOCKS * BLOCK, hidden)
    tensors["bos_embedding"], tensors["new_memory_positional_emb"] = draw(layers, 1, hidden), draw(1, 1, hidden)
    tensors["initialized"] = np.array(1, np.uint8)
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return tensors


def make(tiny_model, directory, seed=0):
    prompt = Prompt("plain", tiny_model.tokenizer, tiny_model.end_ids)
    return SYSTEM.make(Setup(tiny_model, prompt, options=MemoryLLMOptions(str(directory), seed)))


def test_the_published_layout(tmp_path):
    tensors = published(tmp_path)
    loaded = load_memoryllm(tmp_path)
    np.testing.assert_array_equal(loaded.pool.vectors, tensors["memory"])
    np.testing.assert_array_equal(loaded.pool.bos, tensors["bos_embedding"])
    np.testing.assert_array_equal(loaded.pool.positional, tensors["new_memory_positional_emb"][0, 0])
    assert (loaded.pool.block, loaded.pool.drop_per_layer, loaded.lora_scale) == (BLOCK, True, 2.0)
    assert loaded.model.config.max_position_embeddings == 512 + 1 + BLOCKS * BLOCK
    assert loaded.model.config.rope_scaling.factor == 1.8125
    for name in TARGETS:
        module = f"model.layers.2.{PROJECTIONS[name]}.{name}"
        kernel = loaded.model.params["layers"][PROJECTIONS[name]][name]["kernel"][2]
        np.testing.assert_array_equal(kernel, tensors[f"{module}.base_layer.weight"].T)
        for adapter, ours in (("default", loaded.writer), ("decoder_adapter", loaded.reader)):
            pair = ours["layers"][PROJECTIONS[name]][name]
            np.testing.assert_array_equal(pair["a"][2], tensors[f"{module}.lora_A.{adapter}.weight"].T)
            np.testing.assert_array_equal(pair["b"][2], tensors[f"{module}.lora_B.{adapter}.weight"].T)


def test_the_prompt_has_the_positions_that_the_stretched_ones_leave(tmp_path):
    """As 14,848 = 8,192 * 1.8125 of the published model, of which 12,801 are the memory's."""
    published(tmp_path, rope_scaling={"factor": 1.03125, "type": "linear"})
    assert load_memoryllm(tmp_path).model.config.max_position_embeddings == 528 < 512 + 1 + BLOCKS * BLOCK


def test_a_checkpoint_without_adapters(tmp_path):
    published(tmp_path, adapters=False, drop_memory_per_layer=False)
    loaded = load_memoryllm(tmp_path)
    assert (loaded.writer, loaded.reader, loaded.pool.drop_per_layer) == ({}, {}, False)


@pytest.mark.parametrize("name", ["memory", "bos_embedding", "new_memory_positional_emb", "initialized",
                                  "model.layers.1.mlp.up_proj.base_layer.weight",
                                  "model.layers.1.mlp.up_proj.lora_B.decoder_adapter.weight"])  # fmt: skip
def test_a_missing_tensor_is_named(tmp_path, name):
    published(tmp_path, change=lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=rf"tensor '{name.replace('base_layer.', '')}' is missing"):
        load_memoryllm(tmp_path)


@pytest.mark.parametrize("name, value, message", [
    ("ltm_keys", np.zeros(3, np.float32), "tensor 'ltm_keys' is unexpected"),
    ("memory", np.zeros((3, 5, 32), np.float32), r"'memory' has shape \(3, 5, 32\), expected \(3, 24, 32\)"),
    ("bos_embedding", np.full((3, 1, 32), np.nan, np.float32), "'bos_embedding' holds NaN"),
    ("initialized", np.array(0, np.uint8), "the memory was never filled"),
])  # fmt: skip
def test_a_wrong_tensor_is_named(tmp_path, name, value, message):
    published(tmp_path, change=lambda tensors: tensors.update({name: value}))
    with pytest.raises(ValueError, match=message):
        load_memoryllm(tmp_path)


@pytest.mark.parametrize("fields, message", [
    ({"num_blocks": None}, "num_blocks = None, expected a number"),
    ({"add_bos_embedding": False}, "add_bos_embedding is false"),
    ({"lora_config": {**LORA, "target_modules": ["w_proj"]}}, "target_modules has w_proj"),
    ({"lora_config": {"target_modules": ["q_proj"]}}, "lora_config has r = None and lora_alpha = None, expected"),
    ({"lora_config": {**LORA, "r": 0}}, "lora_config has r = 0 and lora_alpha = 6, expected"),
    ({"lora_config": [LORA]}, "lora_config has r = None"),
    ({"drop_memory_per_layer": "yes"}, "drop_memory_per_layer = 'yes', expected true or false"),
    ({"num_memory_tokens": 25}, r"num_memory_tokens = 25, expected num_blocks \* num_tokens = 24"),
    ({"interpolate_position_ids": True}, "interpolate_position_ids = True, expected none; it is of another release"),
    ({"num_ltm_blocks": 150}, "num_ltm_blocks = 150, expected none"),
    ({"model_type": "memoryllm"}, "model_type"),
    ({"rope_scaling": {"factor": 2.0, "type": "dynamic"}}, "dynamic"),
])  # fmt: skip
def test_a_wrong_config_is_refused(tmp_path, fields, message):
    published(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        load_memoryllm(tmp_path)


def test_no_weights_no_score(tiny_model):
    prompt = Prompt("plain", tiny_model.tokenizer)
    without = Setup(tiny_model, prompt, options=MemoryLLMOptions())
    assert "set baselines.memoryllm.model" in SYSTEM.unavailable(without)
    assert SYSTEM.unavailable(Setup(tiny_model, prompt, options=MemoryLLMOptions("somewhere"))) == ""


def test_the_system(tmp_path, tiny_model):
    tensors, docs = published(tmp_path), documents(2)
    system = make(tiny_model, tmp_path)
    untouched = system.answer(docs)
    system.prepare(docs)
    loaded = load_memoryllm(tmp_path)
    model, variables = loaded.model.decoder(lora_scale=2.0), {"params": loaded.model.params, "lora": loaded.writer}
    # The tokenizer's BOS is neither written nor read.
    texts = [tuple(loaded.model.tokenizer(document.text, add_special_tokens=False)["input_ids"]) for document in docs]
    expected = write(model, variables, loaded.pool, texts)
    np.testing.assert_array_equal(system.pool.vectors, expected.vectors)
    answers = system.answer(docs)
    assert [len(group) for group in answers] == [len(document.questions) for document in docs]
    assert answers[0][0]["tokens"] == len(
        Prompt("plain", loaded.model.tokenizer).question(docs[0].questions[0].question)
    )
    assert answers != untouched
    # Answering leaves the memory as it is; preparing begins with the trained one again.
    assert system.answer(docs) == answers
    system.prepare(docs[1:])
    assert not np.array_equal(system.pool.vectors, expected.vectors)
    system.prepare(docs)
    np.testing.assert_array_equal(system.pool.vectors, expected.vectors)
    other = make(tiny_model, tmp_path, seed=1)
    other.prepare(docs)
    assert not np.array_equal(other.pool.vectors, expected.vectors)
    beside = [value for name, value in tensors.items() if "lora_" in name or name in ("memory", "bos_embedding")]
    assert system.cost() == {
        "storage_bytes": tensors["memory"].nbytes,
        "extra_parameters": sum(value.size for value in beside) + jnp.size(loaded.pool.positional),
    }
