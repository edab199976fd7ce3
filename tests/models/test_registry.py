"""Model families: the parameter table and the configs of Hugging Face."""

import dataclasses
import types
from pathlib import Path

import pytest
import tiny
from saved_weights import (
    config_of,
    leaves,
)

from selfparam_jax.models import architecture, families
from selfparam_jax.models.architecture import PROJECTIONS, RopeScaling
from selfparam_jax.models.decoder import param_shapes
from selfparam_jax.models.parameters import parameter_table
from selfparam_jax.models.registry import FAMILIES, family_of, gguf_family, model_config_from_hf, support_matrix


@pytest.mark.parametrize("case", tiny.CASES)
def test_table_is_the_parameter_tree(case):
    config = config_of(case)
    table = parameter_table(config)
    expected = {path: leaf.shape for path, leaf in leaves(param_shapes(config)).items()}
    assert {entry.path: entry.shape for entry in table} == expected
    assert len(table) == len(expected)


@pytest.mark.parametrize("case", tiny.CASES)
def test_table_is_the_hf_state_dict(case):
    found = {name: value.shape for name, value in tiny.hf_tensors(tiny.checkpoint(case)).items()}
    table = parameter_table(config_of(case))
    assert {name: entry.hf_shape for entry in table for name in entry.hf_names()} == found


# --- configs -----------------------------------------------------------------------------------------


def test_config_fields():
    config = config_of("llama3", rms_norm_eps=1e-4, mlp_bias=True)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (272, 32, 48)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (3, 4, 2)
    assert (config.head_dim, config.rms_norm_eps, config.rope_theta) == (8, 1e-4, 10000.0)
    assert (config.max_position_embeddings, config.biased_projections) == (64, ("gate_proj", "up_proj", "down_proj"))
    assert config_of("biases").biased_projections == tuple(PROJECTIONS)
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
    config = model_config_from_hf(made)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert config.num_key_value_heads == 4
    assert config.head_dim == 8


def test_old_config_without_scaling():
    fields = {"model_type": "mistral", "hidden_act": "silu", "rms_norm_eps": 1e-6, **tiny.SIZES}
    made = types.SimpleNamespace(**fields, rope_theta=1e6, rope_scaling=None, sliding_window=None)
    config = model_config_from_hf(made)
    assert (config.rope_theta, config.rope_scaling, config.sliding_window) == (1e6, None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "model_type = 'gemma' is not supported; expected 'gemma2.*'qwen3' or 'smollm3'"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "rope_type = 'proportional'.*expected 'default'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' got no original_max_position_embeddings"),
        (
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {}}},
            "settings for full_attention, sliding",
        ),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' got no short_factor, attention_factor"),
        ({"rope_parameters": {"rope_type": "linear"}}, "got no factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor, high_freq_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (
            {"model_type": "phi3", "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "rope_type = 'linear' is not supported for model_type 'phi3', expected one of default, longrope",
        ),
        ({"pretraining_tp": 2}, "pretraining_tp = 2.*expected 1"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ],
)
def test_refused_configs(changes, message):
    fields = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-6, **tiny.SIZES, **changes}
    with pytest.raises(ValueError, match=message):
        model_config_from_hf(types.SimpleNamespace(**fields))


# --- registry -----------------------------------------------------------------------------------------


def test_every_file_of_the_folder_is_a_family():
    files = {path.stem for path in Path(families.__path__[0]).glob("*.py")} - {"__init__"}
    assert set(FAMILIES) == files  # each file is named after its model_type
    assert all(family.model_type == name for name, family in FAMILIES.items())


def test_errors_list_the_registry(monkeypatch):
    monkeypatch.setitem(FAMILIES, "other", dataclasses.replace(FAMILIES["llama"], gguf_architecture="strange"))
    with pytest.raises(ValueError, match=r"expected 'gemma.*'llama', 'mistral', .* or 'other'"):
        family_of("gemma")
    with pytest.raises(ValueError, match=r"expected 'gemma2', .*'llama', .* or 'strange' \(files of mistral carry"):
        gguf_family("gemma")


def test_support_matrix():
    rows = support_matrix()
    assert [row["model_type"] for row in rows] == list(FAMILIES)
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert all(isinstance(value, str) for row in rows for value in row.values())
    found = {row["model_type"]: row for row in rows}
    assert found["phi3"]["RoPE types"] == "default, longrope"
    assert found["llama"]["RoPE types"] == "default, linear, llama3, yarn, longrope"
    assert (found["qwen3"]["HF class"], found["qwen3"]["GGUF architecture"]) == ("Qwen3ForCausalLM", "qwen3")
    assert found["mistral"]["GGUF architecture"] == "llama"
    assert found["phi3"]["GGUF architecture"] == "phi3"
    # What readers are told is what the decoder has.
    for name, row in found.items():
        assert row["family"]
        assert ("norms" in row["notes"]) == (name in ("qwen3", "olmo2", "gemma2", "gemma3_text"))


def test_classes_are_those_of_transformers():
    import transformers

    for family in FAMILIES.values():
        assert getattr(transformers, family.hf_config).model_type == family.model_type
        assert family.hf_model in dir(transformers)


def test_fingerprints_of_older_architectures_stay():
    """Fields added later count only where they say something."""
    config = config_of("llama3")
    older = {field.name for field in dataclasses.fields(config)} - set(architecture._ADDED)
    assert config.identity().keys() == older
    assert config.identity()["rope_scaling"].keys() == {
        *("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    }
    for name in architecture._ADDED:
        assert name in dataclasses.asdict(config)
    assert dataclasses.replace(config, qk_norm="head").identity()["qk_norm"] == "head"


def test_biased_projections():
    config = config_of("gqa")
    assert dataclasses.replace(config, biased_projections=("v_proj", "q_proj")) == dataclasses.replace(
        config, biased_projections=("q_proj", "v_proj")
    )
    with pytest.raises(ValueError, match=r"biased_projections got \['lm_head'\], expected some of q_proj, k_proj"):
        dataclasses.replace(config, biased_projections=("lm_head",))
    partly = dataclasses.replace(config, biased_projections=("k_proj", "up_proj"))
    assert {entry.path[-2] for entry in parameter_table(partly) if entry.path[-1] == "bias"} == {"k_proj", "up_proj"}
    expected = {path: leaf.shape for path, leaf in leaves(param_shapes(partly)).items()}
    assert {entry.path: entry.shape for entry in parameter_table(partly)} == expected
