"""GGUF files: tensors, settings and tokenizers equal what transformers gives."""

import numpy as np
import pytest
import tiny
from saved_weights import (
    logits_of,
)

from selfparam_jax.checkpoints.gguf import GGUFSource, open_gguf
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.tokenizers import gguf_tokenizer, pre_tokenizers, split_by
from selfparam_jax.models.architecture import RopeScaling
from selfparam_jax.models.registry import model_config_from_hf


@pytest.mark.parametrize("case", ["mha", "gqa", "mqa", "tied", "biases", "llama3", "head_dim"])
def test_gguf_equals_transformers(tmp_path, case):
    changes = {}
    if case == "llama3":  # the settings of every Llama 3 release; llama.cpp's files do not hold them
        changes["rope_parameters"] = {**tiny.LLAMA3_ROPE, "original_max_position_embeddings": 8192}
        changes["max_position_embeddings"] = 16384
        changes["head_dim"] = 32
    model = tiny.checkpoint(case, **changes)
    head_dim = {"llama__attention__key_length": model.config.head_dim}
    tiny.write_gguf(tmp_path / "tiny.gguf", model, **head_dim)
    loaded = load_model(str(tmp_path / "tiny.gguf"))
    assert loaded.name == "tiny"
    assert loaded.config == model_config_from_hf(model.config)
    assert loaded.hf_config.bos_token_id == 0
    assert loaded.hf_config.eos_token_id == 1
    source = GGUFSource(tmp_path / "tiny.gguf", loaded.config)
    tensors = tiny.hf_tensors(model)
    assert set(source.names()) == set(tensors)
    for name, value in tensors.items():
        whole = tuple(slice(None) for _ in value.shape)
        assert source.shape(name) == value.shape
        np.testing.assert_array_equal(source.read(name, whole), value)
    ids = tiny.token_ids(9)
    assert np.abs(logits_of(loaded, ids) - tiny.hf_logits(tiny.with_torch(model), ids)).max() < 1e-4


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf_slices_and_types(tmp_path, quantization):
    import gguf

    model = tiny.checkpoint("gqa", intermediate_size=64)
    tiny.write_gguf(tmp_path / "tiny.gguf", model, quantization)
    config = model_config_from_hf(model.config)
    source = GGUFSource(tmp_path / "tiny.gguf", config)
    kind = gguf.GGMLQuantizationType[quantization]
    index = (slice(3, 21), slice(5, 30))
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"):
        name = f"model.layers.1.{name}.weight"
        # Rows are quantised one by one, so the order of rows does not matter here.
        expected = gguf.quants.dequantize(gguf.quants.quantize(tiny.hf_tensors(model)[name], kind), kind)
        found = source.read(name, index)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[index])


def test_gguf_tokenizer(tmp_path):
    tiny.write_gguf(tmp_path / "a.gguf", tiny.checkpoint("gqa"), tokenizer__chat_template=tiny.CHAT_TEMPLATE)
    tokenizer = load_model(str(tmp_path / "a.gguf")).tokenizer
    reference = tiny.tokenizer()
    for text in ("the and in", " a\n\nthe 1212", "<s>in</s>", "é🙂"):
        assert tokenizer(text)["input_ids"] == reference(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("<s>in</s>")["input_ids"][0] == 0
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", None)
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<s>user: x</s>"
    assert tokenizer.decode(tokenizer("<s>in</s>")["input_ids"], skip_special_tokens=True) == "in"


def test_gguf_added_tokens(tmp_path):
    """Control tokens and user-defined ones are never cut, though no role (BOS, EOS) names them."""
    tokens = tiny.vocabulary()[0]
    types = [3, 3, 3] + [1] * (len(tokens) - 4) + [4]
    tiny.write_gguf(tmp_path / "a.gguf", tiny.checkpoint("gqa"), tokenizer__ggml__token_type=types)
    tokenizer = gguf_tokenizer(open_gguf(tmp_path / "a.gguf"))
    ids = tokenizer(f"<pad>in{tokens[-1]}")["input_ids"]
    assert ids == [2, tokens.index("in"), len(tokens) - 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"in{tokens[-1]}"  # user-defined ones are text


def test_gguf_bos_only_if_the_file_says_so(tmp_path):
    model = tiny.checkpoint("gqa")
    for add in (True, False):
        path = tmp_path / f"{add}.gguf"
        tiny.write_gguf(path, model, tokenizer__ggml__add_bos_token=add)
        tokenizer = gguf_tokenizer(open_gguf(path))
        assert tokenizer.chat_template is None
        plain = tokenizer("in", add_special_tokens=False)["input_ids"]
        assert tokenizer("in")["input_ids"] == ([0, *plain] if add else plain)


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["ab", "'s", "Ġ1234", "Ċ", "Ċ", "."]),
        ("default", ["ab", "'s", "Ġ1234", "Ċ", "Ċ", "."]),
        ("smollm", ["ab", "'s", "Ġ", "1", "2", "3", "4", "Ċ", "Ċ", "."]),
        ("llama-bpe", ["ab", "'s", "Ġ", "123", "4", "ĊĊ", "."]),
    ],
)
def test_pre_tokenizers(pre, expected):
    assert [piece for piece, _ in split_by(pre_tokenizers()[pre]).pre_tokenize_str("ab's 1234\n\n.")] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"general__architecture": "mamba"},
            "general.architecture = 'mamba' is not supported; "
            "expected 'gemma2', 'gemma3', 'llama', 'olmo2', 'phi3', 'qwen2', 'qwen3' or 'smollm3'",
        ),
        ({"tokenizer__ggml__model": "bert"}, "tokenizer.ggml.model = 'bert'.*Hugging Face directory"),
        (
            {"tokenizer__ggml__pre": "mystery"},
            "tokenizer.ggml.pre = 'mystery' is not supported; expected 'gpt-2', 'default', 'smollm'",
        ),
        (
            {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 2.0},
            "no metadata 'llama.rope.scaling.original_context_length'",
        ),
        ({"llama__rope__scaling__type": "dynamic", "llama__rope__scaling__factor": 2.0}, "rope_type = 'dynamic'"),
        ({"tokenizer__ggml__eos_token_id": 5000}, "eos_token_id = 5000, expected an id from 0 to 271"),
        ({"llama__rope__dimension_count": 4}, "4 rotated of 8"),
        ({"llama__attention__sliding_window": 16}, "got a sliding window of 16, expected none"),
        ({"skip": ("llama.block_count",)}, "no metadata 'llama.block_count'"),
        (
            {"llama__embedding_length": 40},
            r"'model.embed_tokens.weight' has shape \(272, 32\), expected \(272, 40\)",
        ),
        ({"llama__embedding_length": 33}, "tiny.gguf: .*hidden size"),
        ({"llama__block_count": 2}, r"'blk\.2\.attn_k\.weight' is unexpected"),
        ({"llama__block_count": 4}, r"'model.layers.3.*' is missing"),
    ],
)
def test_refused_gguf(tmp_path, options, message):
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, tiny.checkpoint("gqa"), **options)
    with pytest.raises(ValueError, match=message):
        load_model(str(path))


def test_gguf_linear_scaling(tmp_path):
    path = tmp_path / "tiny.gguf"
    scaling = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}
    tiny.write_gguf(path, tiny.checkpoint("linear"), **scaling)
    config = load_model(str(path)).config
    assert (config.rope_theta, config.rope_scaling) == (5000.0, RopeScaling("linear", 4.0))


def test_gguf_with_other_frequency_factors(tmp_path):
    path = tmp_path / "tiny.gguf"
    # original_max_position_embeddings is 32 here, so the factors are not those of a Llama 3 release.
    model = tiny.checkpoint("llama3", head_dim=32)
    tiny.write_gguf(path, model, llama__attention__key_length=32)
    with pytest.raises(ValueError, match=r"rope_freqs\.weight got factors .* expected .* Hugging Face directory"):
        load_model(str(path))
    plain = model_config_from_hf(tiny.hf_config("gqa", head_dim=32))
    with pytest.raises(ValueError, match=r"rope_freqs\.weight .* from rope_scaling = None"):
        GGUFSource(path, plain)
    own = model_config_from_hf(model.config)
    assert "rope_freqs.weight" not in GGUFSource(path, own).names()


def test_damaged_gguf(tmp_path):
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, tiny.checkpoint("gqa"))
    whole = path.read_bytes()
    for damaged in (whole[:-4000], whole[: len(whole) // 2], whole[:400], whole[:10], b"", b"no" * 500):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tiny\.gguf is not a whole GGUF file"):
            load_model(str(path))


# --- files of older writers, split files, all types -----------------------------------------------------


@pytest.mark.parametrize(
    "scaling",
    [{"llama__rope__scale_linear": 4.0}, {"llama__rope__scaling__factor": 4.0}],
    ids=["key of older writers", "factor without a type"],
)
def test_gguf_linear_scaling_of_older_writers(tmp_path, scaling):
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, tiny.checkpoint("linear"), **scaling)
    config = load_model(str(path)).config
    assert (config.rope_theta, config.rope_scaling) == (5000.0, RopeScaling("linear", 4.0))


def test_gguf_factor_of_one_scales_nothing(tmp_path):
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, tiny.checkpoint("gqa"), llama__rope__scale_linear=1.0)
    assert load_model(str(path)).config.rope_scaling is None


def test_llama_3_without_a_pre_tokenizer_is_recognised(tmp_path):
    path, (tokens, _) = tmp_path / "tiny.gguf", tiny.vocabulary()
    options = {"skip": ("tokenizer.ggml.pre",), "tokenizer__ggml__tokens": ["<|begin_of_text|>", *tokens[1:]]}
    tiny.write_gguf(path, tiny.checkpoint("gqa"), **options)
    split = load_model(str(path)).tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split(" 1234")] == ["Ġ", "123", "4"]
    tiny.write_gguf(path, tiny.checkpoint("gqa"), skip=("tokenizer.ggml.pre",))
    split = load_model(str(path)).tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split(" 1234")] == ["Ġ1234"]


def test_gguf_end_ids(tmp_path):
    path = tmp_path / "tiny.gguf"
    ends = {"tokenizer__ggml__eot_token_id": 9, "tokenizer__ggml__eom_token_id": 7}
    tiny.write_gguf(path, tiny.checkpoint("gqa"), **ends)
    assert load_model(str(path)).end_ids == (1, 7, 9)


def test_split_gguf(tmp_path):
    """Any of the files stands for the model; the tensors are in all of them."""
    import gguf

    whole = tmp_path / "whole.gguf"
    tiny.write_gguf(whole, tiny.checkpoint("gqa"))
    expected, names = load_model(str(whole)), [f"tiny-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    tensors = open_gguf(whole).tensors
    for number, name in enumerate(names):
        tiny.write_gguf(
            tmp_path / name, tiny.checkpoint("gqa"), split__count=3, split__no=number, tensors=tensors[number::3]
        )
    assert gguf.GGUFReader(tmp_path / names[1]).tensors[0].name == tensors[1].name
    for name in (names[0], names[2]):
        assert load_model(str(tmp_path / name)).fingerprint == expected.fingerprint
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError, match=r"tiny-00002-of-00003\.gguf is missing, but .* is one of 3 files"):
        load_model(str(tmp_path / names[0]))
    (tmp_path / names[0]).rename(tmp_path / "other.gguf")
    with pytest.raises(ValueError, match="is one of 3 files, expected a name such as model-00001-of-00003"):
        load_model(str(tmp_path / "other.gguf"))


def _types():
    from gguf import quants

    return sorted(kind.name for kind in quants._type_traits)


@pytest.mark.parametrize("kind", _types())
def test_every_type_that_gguf_dequantises_is_read_by_rows(tmp_path, kind):
    import gguf

    kind, config = gguf.GGMLQuantizationType[kind], model_config_from_hf(tiny.hf_config("gqa"))
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(0).integers(0, 60, (6, size * 256 // block), dtype=np.uint8)
    writer = gguf.GGUFWriter(str(tmp_path / "t.gguf"), "llama")
    writer.add_tensor("blk.0.ffn_up.weight", rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GGUFSource(tmp_path / "t.gguf", config)
    name = "model.layers.0.mlp.up_proj.weight"
    assert source.shape(name) == (6, 256)
    expected = gguf.quants.dequantize(rows, kind)
    np.testing.assert_array_equal(source.read(name, (slice(2, 5), slice(0, 256))), expected[2:5])
