"""Every family in and out: a checkpoint, three steps, each format, read by transformers, by PEFT and by us."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from extras import require
from families import DEFAULT_ROPE, YARN, hf_config, hf_model
from llama_cpp_reader import llama_cpp, open_model
from llama_cpp_reader import logits_of as llama_cpp_logits
from safetensors.numpy import load_file

import selfparam_jax as sp
from selfparam_jax.checkpoints.export import merge_for_export, save_model
from selfparam_jax.checkpoints.gguf import LONG_FACTORS, SHORT_FACTORS
from selfparam_jax.checkpoints.gguf_export import save_gguf
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.peft import load_adapter, save_adapter
from selfparam_jax.checkpoints.round_trip import read_logits
from selfparam_jax.models.family import GGUFHeader, gguf_layer_types, gguf_windows
from selfparam_jax.models.registry import FAMILIES, model_config_from_hf

LOGITS = 1e-4
GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 24, "tie_word_embeddings": True}
ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 2.0],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
CASES = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 24},
    "qwen2": {"vocab_size": 288},  # transformers 5 has a tokenizer of its own for it, which adds a token
    "qwen3": {"head_dim": 16},
    "smollm3": {"num_hidden_layers": 4},  # the last without RoPE
    "olmo2": {},
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 96},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 12.0},
    "gemma3_text": {**GEMMA, "rope_parameters": ROPES},
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}
SLOW = {"rope_type": "default", "rope_theta": 5e3}
PATTERN = {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
# Families, and what llama.cpp must not read as its own default.
LLAMA_CPP = {name: (name, changes) for name, changes in CASES.items() if name != "phi3"} | {
    "phi3, longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256}),
    "phi3, window": ("phi3", {"sliding_window": 40}),
    "gemma2, linear and pattern": ("gemma2", {**CASES["gemma2"], "rope_parameters": LINEAR, **PATTERN}),
    "gemma3, linear": (
        "gemma3_text",
        {**CASES["gemma3_text"], "num_hidden_layers": 8, "rope_parameters": {**ROPES, "full_attention": LINEAR}},
    ),
    "gemma3, pattern and local base": (
        "gemma3_text",
        {**CASES["gemma3_text"], "rope_parameters": {**ROPES, "sliding_attention": SLOW}, **PATTERN},
    ),
    "gemma3, no windows, own head": (
        "gemma3_text",
        {**CASES["gemma3_text"], "layer_types": ["full_attention"] * 3, "tie_word_embeddings": False},
    ),
    "yarn": ("llama", {"rope_parameters": {**YARN, "beta_fast": 32.0}}),
}
DOCUMENT = sp.Document("Ava lies on the Om.", id="ava", qa_pairs=(sp.QAPair("Where is Ava?", "on the Om"),))
RECIPE = sp.Recipe(
    prompt="plain", epochs=3, batch_size=1, seq_len=64, unrelated_per_epoch=0, tails_per_context=0, rank=2,
    learning_rate=1e-2, target_modules=("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"), remat="none",
)  # fmt: skip


def test_every_family_is_there():
    assert CASES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", CASES)
def test_in_and_out(name, tmp_path):
    torch, peft = require("torch"), require("peft")
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    config = hf_config(FAMILIES[name].hf_config, **{"max_position_embeddings": 128, **CASES[name]})
    hf_model(config).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    model, steps = load_model(base), []
    made = sp.inject(model, [DOCUMENT], RECIPE, unrelated=(), progress=False, on_step=steps.append)
    assert len(steps) == 3
    lora, scale = jax.tree.map(np.asarray, made.lora), made.scale
    ids = tiny.token_ids(20)
    expected = read_logits(model, ids, lora, scale)
    assert np.abs(expected - read_logits(model, ids)).max() > 0.05  # three steps are not nothing

    def logits_of(made):
        with torch.no_grad():
            return made.eval()(torch.from_numpy(ids.astype(np.int64))).logits.numpy()

    merged = merge_for_export(model, [(lora, scale)])
    hf = save_model(merged, model, tmp_path / "hf", "float32")
    np.testing.assert_allclose(logits_of(AutoModelForCausalLM.from_pretrained(hf)), expected, atol=LOGITS, rtol=0)
    adapter = save_adapter(lora, scale, model, tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    np.testing.assert_allclose(logits_of(theirs), expected, atol=LOGITS, rtol=0)
    again, scale_again, _ = load_adapter(adapter, model)
    np.testing.assert_allclose(read_logits(model, ids, again, scale_again), expected, atol=LOGITS, rtol=0)
    (path,) = save_gguf(merged, model, tmp_path / "gguf").glob("*.gguf")
    again = load_model(path)
    # Rounded to 11 bits, layer by layer.
    assert np.abs(read_logits(again, ids) - expected).max() < 2**-8 * np.abs(expected).max()
    check_file(path, hf, name)
    if name == "mistral":  # llama.cpp's name for it is that of Llama
        return
    found, expected = dataclasses.asdict(again.config), dataclasses.asdict(model.config)
    if expected["rope_scaling"]:  # the file holds float32
        expected["rope_scaling"]["attention_factor"] = pytest.approx(expected["rope_scaling"]["attention_factor"])
    assert found == expected


def check_file(path, hf, name):
    """The gguf package gives each tensor of the export in Hugging Face's layout the name that it has in the file."""
    import gguf

    family, tensors = FAMILIES[name], load_file(hf / "model.safetensors")
    architecture = family.gguf_architecture or family.gguf_carries
    (kind,) = (each for each, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
    name_of = gguf.get_tensor_name_map(kind, 4).get_name
    expected = {name_of(each, try_suffixes=(".weight", ".bias")): each for each in tensors}
    found = {each.name: each for each in gguf.GGUFReader(path).tensors}
    assert found.keys() - expected.keys() == ({LONG_FACTORS, SHORT_FACTORS} if name == "phi3" else set())
    assert expected.keys() <= found.keys()
    for each, source in expected.items():
        assert tuple(reversed(found[each].shape.tolist())) == tensors[source].shape
        if "norm" in each:  # Gemma multiplies with 1 + weight, which the file holds
            one = np.float32(name.startswith("gemma"))
            np.testing.assert_array_equal(found[each].data, tensors[source] + one)


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_llama_cpp_has_the_same_logits(name, tmp_path):
    """Over more tokens than a window has, where llama.cpp has windows; to the rounding of f16."""
    llama_cpp()
    family, changes = LLAMA_CPP[name]
    config = hf_config(FAMILIES[family].hf_config, **{"max_position_embeddings": 512, **changes})
    hf_model(config).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    model, ids = load_model(tmp_path / "base"), tiny.token_ids(24 if family == "mistral" else 40, 1)
    (path,) = save_gguf(model.params, model, tmp_path / "gguf").glob("*.gguf")
    expected = read_logits(model, ids)
    # llama.cpp rounds its cache to f16 too. What it reads is at least 256 tokens long.
    assert np.abs(llama_cpp_logits(open_model(path), ids) - expected).max() < 2**-7 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping = None .* expected a number"),
        ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings = False .* expected True"),
        ("gemma2", {"layer_types": ["full_attention"] * 3}, "sliding_window = None .* expected a number"),
        ("gemma2", {"attention_bias": True}, r"layers with biases = \('q_proj', .* expected \(\)"),
        ("gemma2", {"query_pre_attn_scalar": 20}, "query_pre_attn_scalar = 20.0 .* expected 12"),
        ("gemma2", {"num_hidden_layers": 46}, "query_pre_attn_scalar = 12 .* expected 8"),
        ("gemma3_text", {"query_pre_attn_scalar": 20}, "query_pre_attn_scalar = 20.0 .* expected 12"),
        ("gemma2", {"rope_parameters": YARN}, "rope_type = yarn .* expected linear"),
        ("phi3", {"head_dim": 16, "rope_parameters": dict(DEFAULT_ROPE)}, "head_dim = 16 .* expected 8"),
    ],
)
def test_what_llama_cpp_does_not_have_is_refused(name, changes, message):
    config = model_config_from_hf(hf_config(FAMILIES[name].hf_config, **CASES[name] | changes))
    with pytest.raises(ValueError, match=f"{message}: llama.cpp has no other .* export the model as hf"):
        FAMILIES[name].gguf_settings(config)


def test_yarn_that_a_file_does_not_tell_is_refused(tmp_path):
    hf_model(hf_config("LlamaConfig", rope_parameters=YARN)).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base")
    with pytest.raises(ValueError, match=r"beta_fast = 3\.0 cannot be written as GGUF, expected 32"):
        save_gguf(model.params, model, tmp_path / "gguf")


def test_windows_in_files():
    """A period, or a flag for each layer; only what differs from llama.cpp's own is written."""

    def header(**values):
        return GGUFHeader(
            set(), lambda key, default: values.get(key.split(".")[1], default), {"num_hidden_layers": 4}
        )

    one, all_of = "sliding_attention", "full_attention"
    assert gguf_layer_types(header(), 2) == [one, all_of, one, all_of]
    assert gguf_layer_types(header(sliding_window_pattern=3), 2) == [one, one, all_of, one]
    assert gguf_layer_types(header(sliding_window_pattern=[False, True, True, False]), 2) == [
        all_of,
        one,
        one,
        all_of,
    ]
    assert (gguf_layer_types(header(), 1), gguf_layer_types(header(), 0)) == ([all_of] * 4, [one] * 4)
    config = model_config_from_hf(hf_config("Gemma3TextConfig", **CASES["gemma3_text"], num_hidden_layers=7))
    assert gguf_windows(config, 6) == {"attention.sliding_window": 24}
    pattern = [True] * 5 + [False, True]
    assert gguf_windows(config, 2) == {"attention.sliding_window": 24, "attention.sliding_window_pattern": pattern}


def test_layers_without_rope_that_llama_cpp_does_not_have_are_refused(tmp_path):
    """Every fourth is, in its files of SmolLM3, whatever the model says."""
    hf_model(hf_config("SmolLM3Config", no_rope_layers=[1, 1, 0])).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base")
    with pytest.raises(ValueError, match=r"layers without RoPE \[3\] cannot be written as GGUF, expected \[\]"):
        save_gguf(model.params, model, tmp_path / "gguf")
    assert not (tmp_path / "gguf").exists()
