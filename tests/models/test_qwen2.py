"""Qwen2: biases on q, k and v alone, and windows in all, some or no layers; parity with transformers."""

import types

import families
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from extras import require
from saved_weights import check_params, leaves, logits_of, our_logits

from selfparam_jax.checkpoints.export import save_model
from selfparam_jax.checkpoints.load import load_model, read_hf_config
from selfparam_jax.checkpoints.tensors import fingerprint, load_params
from selfparam_jax.checkpoints.tokenizers import pre_tokenizers, split_by
from selfparam_jax.checkpoints.weight_files import SafetensorsSource
from selfparam_jax.models.decoder import param_shapes
from selfparam_jax.models.parameters import parameter_table
from selfparam_jax.models.registry import model_config_from_hf

CASES = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "mqa": {"num_key_value_heads": 1},
    "window": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    "window of some layers": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "window of no layer": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
    "window not used": {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 0},
}


def hf_config(case="plain", **changes):
    from transformers import Qwen2Config

    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return Qwen2Config(**{**tiny.SIZES, "rope_parameters": rope, **CASES[case], **changes})


def hf_model(case="plain", **changes):
    """A random float32 model in which every part changes the logits."""
    torch = require("torch")
    from transformers import AutoModelForCausalLM

    made = AutoModelForCausalLM.from_config(
        hf_config(case, **changes), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in made.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1:
                value.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))
            else:
                value.copy_(noise * (1.0 if "embed" in name else value.shape[1] ** -0.5))
    return made


def tokenizer():
    """transformers' own for the family, with the tiny vocabulary; its last token is the one the family needs."""
    from transformers import Qwen2Tokenizer

    tokens, merges = tiny.vocabulary()
    return Qwen2Tokenizer(vocab={token: n for n, token in enumerate([*tokens[:-1], "<|endoftext|>"])}, merges=merges)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    made = hf_model(case)
    made.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    check_params(model.params, tiny.hf_tensors(made), model.config)
    ids = tiny.token_ids(13)
    expected = tiny.hf_logits(made, ids)
    assert expected.std() > 0.5  # not degenerate
    assert np.abs(logits_of(model, ids) - expected).max() < 1e-4


def test_the_window_and_the_biases_matter(tmp_path):
    made = hf_model("window")
    made.save_pretrained(tmp_path)
    ids, found = tiny.token_ids(13), []
    config = model_config_from_hf(made.config)
    params = load_params(SafetensorsSource(tmp_path), config, jnp.float32)
    whole = model_config_from_hf(hf_config("window not used"))
    found = [our_logits(params, each, ids) for each in (config, whole)]
    params["layers"]["self_attn"]["k_proj"]["bias"] *= 0
    found.append(our_logits(params, config, ids))
    assert all(np.abs(found[0] - other).max() > 1e-2 for other in found[1:])


def test_table_is_the_hf_state_dict():
    made = hf_model()
    config, found = model_config_from_hf(made.config), {n: v.shape for n, v in tiny.hf_tensors(made).items()}
    table = parameter_table(config)
    assert {name: entry.hf_shape for entry in table for name in entry.hf_names()} == found
    assert {entry.path: entry.shape for entry in table} == {
        p: s.shape for p, s in leaves(param_shapes(config)).items()
    }
    assert sum("bias" in name for name in found) == 3 * 3


def test_config():
    config = model_config_from_hf(hf_config())
    assert config.biased_projections == ("q_proj", "k_proj", "v_proj")
    assert (config.sliding_window, config.head_dim) == (None, 8)
    assert model_config_from_hf(hf_config("window")).sliding_window == 5
    assert model_config_from_hf(hf_config("window not used")).sliding_window is None


@pytest.mark.parametrize("first", [1, 2])
def test_windows_in_some_layers(first):
    expected = (False,) * first + (True,) * (3 - first)
    assert model_config_from_hf(hf_config("window", max_window_layers=first)).windowed_layers == expected
    fields = {"model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6, **tiny.SIZES, **CASES["window"]}
    old = types.SimpleNamespace(**fields | {"max_window_layers": first})  # a config without layer_types
    assert model_config_from_hf(old).windowed_layers == expected
    assert model_config_from_hf(types.SimpleNamespace(**fields)).sliding_window == 5
    assert model_config_from_hf(types.SimpleNamespace(**fields)).windowed_layers == ()
    with pytest.raises(ValueError, match="got no sliding_window"):
        model_config_from_hf(types.SimpleNamespace(**fields | {"sliding_window": None}))


def test_every_field_matters():
    mutations = {
        "use_sliding_window": False,
        "sliding_window": 4,
        "max_window_layers": 2,
        "layer_types": ["sliding_attention"] * 3,
    }
    changes = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    families.check_every_field("Qwen2Config", changes, families.MUTATIONS | mutations)


def test_export_is_read_by_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    made = hf_model("window")
    made.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base")
    save_model(model.params, model, tmp_path / "out", "float32")
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="float32", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    ids = tiny.token_ids(13)
    np.testing.assert_array_equal(tiny.hf_logits(again.eval(), ids), tiny.hf_logits(made, ids))
    assert model_config_from_hf(read_hf_config(tmp_path / "out" / "config.json")) == model.config


def gguf_tensors(made):
    """Under llama.cpp's names; the rows of q and k stay in Hugging Face's order for this architecture."""
    names = {entry.hf_name: entry.gguf_name for entry in parameter_table(model_config_from_hf(made.config))}
    return {
        names[name.replace(f".{layer}.", ".{layer}.")].format(layer=layer): value
        for name, value in tiny.hf_tensors(made).items()
        for layer in [next((part for part in name.split(".") if part.isdigit()), "")]
    }


def test_gguf_equals_transformers(tmp_path, monkeypatch):
    made = hf_model(intermediate_size=64)
    monkeypatch.setattr(tiny, "gguf_tensors", gguf_tensors)
    config = made.config
    settings = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention__head_count": config.num_attention_heads,
        "attention__head_count_kv": config.num_key_value_heads,
        "attention__layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope__freq_base": config.rope_parameters["rope_theta"],
    }
    settings = {f"qwen2__{name}": value for name, value in settings.items()}
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, made, general__architecture="qwen2", tokenizer__ggml__pre="qwen2", **settings)
    model = load_model(path)
    assert model.config == model_config_from_hf(config)
    assert model.hf_config.architectures == ["Qwen2ForCausalLM"]
    ids = tiny.token_ids(9)
    assert np.abs(logits_of(model, ids) - tiny.hf_logits(made, ids)).max() < 1e-4
    made.save_pretrained(tmp_path)
    assert model.fingerprint == fingerprint(SafetensorsSource(tmp_path), model.config)
    assert model.tokenizer("e\u0301")["input_ids"] == tiny.tokenizer()("\u00e9")["input_ids"]  # normal form C


def test_pre_tokenizer_is_that_of_transformers():
    theirs = tokenizer()._tokenizer
    ours = split_by(pre_tokenizers()["qwen2"])
    for text in ("ab's 1234\n\n.", "It's 3.14,  naïve café — 東京 🙂\r\n\tDON'T we'LL", "  x  \n y"):
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in ours.pre_tokenize_str("ab 12")] == ["ab", "Ġ", "1", "2"]
