"""SentencePiece's vocabularies in llama.cpp's files: written from merges, read by us and by llama.cpp itself."""

import json

import numpy as np
import pytest
import sentencepiece_tokenizers as pieces
import tiny
from llama_cpp_reader import ids_of, logits_of, open_model
from saved_weights import logits_of as our_logits
from tokenizers import pre_tokenizers

from selfparam_jax.checkpoints.gguf_export import save_gguf
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, Vocabulary, read_vocabulary

TEXTS = ("Who ran the 12 miles?", "the ant in the inn", "  Question: Go on!\n\nAnswer: Hello ", "日本語 🙂", "a")


def base_of(directory, kind, case="gqa", **changes):
    """A tiny model with one of the tokenizers."""
    tokenizer = pieces.tokenizer(kind, tiny.CHAT_TEMPLATE)
    size = -(-len(tokenizer) // 32) * 32
    tiny.save_checkpoint(
        directory, case, vocab_size=size, bos_token_id=1, eos_token_id=2, pad_token_id=None, **changes
    )
    tokenizer.save_pretrained(directory)
    return load_model(directory)


@pytest.mark.parametrize("kind", pieces.KINDS)
def test_a_vocabulary_has_the_merges_again(kind):
    tokenizer = pieces.tokenizer(kind)
    found = read_vocabulary(tokenizer, len(tokenizer) + 3)
    assert found.space_prefix == (kind not in ("never", "add_dummy_prefix_off"))
    assert found.tokens[-3:] == [f"[PAD{len(tokenizer) + n}]" for n in range(3)]
    assert [found.types[n] for n in (0, 1, 2, 3)] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    again = found.tokenizer()
    for text in TEXTS:
        if text.startswith(" ") and kind in ("always", "first"):
            continue  # Metaspace puts no second space in front; llama.cpp does, and so do we
        assert again.encode(text).ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert again.decode(again.encode(text).ids) == text


def test_merges_by_hand():
    """The highest score first; a token that several pairs make has them in the order of their ids."""
    vocabulary = Vocabulary(["a", "b", "ab", "aa", "aab"], [-9.0, -9.0, -1.0, -0.5, -2.0], [NORMAL] * 5, False)
    assert vocabulary.merges() == [("a", "a"), ("a", "b"), ("a", "ab"), ("aa", "b")]
    assert vocabulary.tokenizer().encode("aab").tokens == ["aab"]


def test_other_tokenizers_are_none():
    """Byte-level BPE; a pre-tokenizer that cuts at words; a normaliser that changes text; no bytes as fallback."""
    assert read_vocabulary(tiny.tokenizer(), 272) is None
    fewer = json.loads(pieces.tokenizer("always").backend_tokenizer.to_str())["model"]["merges"][:-1]
    for change in (
        {"model": {"merges": fewer}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}},
        {"normalizer": {"type": "NFKC"}},
        {"model": {"byte_fallback": False}},
        # Gemma cuts at spaces too, but its normaliser has left none.
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}},
    ):
        made = pieces.tokenizer("always")
        fields = json.loads(made.backend_tokenizer.to_str())
        for name, value in change.items():
            fields[name] = fields[name] | value if name == "model" else value
        made._tokenizer = made.backend_tokenizer.from_str(json.dumps(fields))
        assert read_vocabulary(made, len(made)) is None


@pytest.mark.parametrize("kind", ["legacy", "first", "never", "unigram"])
def test_written_and_read_again(tmp_path, kind):
    base = base_of(tmp_path / "base", kind)
    (path,) = save_gguf(base.params, base, tmp_path / "out").glob("*.gguf")
    model = load_model(path)
    for text in (*TEXTS, "<s>the</s>"):
        ours, theirs = (each.tokenizer(text, add_special_tokens=False)["input_ids"] for each in (model, base))
        # llama.cpp puts a space in front after special tokens too, and before a space.
        assert ours == theirs or (kind in ("first", "unigram") and text.startswith((" ", "<s>")))
    assert model.tokenizer.chat_template == base.tokenizer.chat_template
    assert (model.tokenizer.bos_token, model.tokenizer.eos_token, model.tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )
    assert model.end_ids == base.end_ids
    ids = tiny.token_ids(9) % base.config.vocab_size
    assert np.abs(our_logits(model, ids) - our_logits(base, ids)).max() < 0.05


@pytest.mark.parametrize("kind", ["legacy", "never", "unigram"])
def test_llama_cpp_reads_it(tmp_path, kind):
    """The same ids of texts, and the same logits to the rounding of f16."""
    base = base_of(tmp_path / "base", kind)
    (path,) = save_gguf(base.params, base, tmp_path / "out").glob("*.gguf")
    theirs = open_model(path)
    for text in TEXTS:
        if kind == "unigram" and text.startswith(" "):
            continue  # as above
        assert ids_of(theirs, text) == base.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = tiny.token_ids(20) % (base.config.vocab_size - 3) + 3
    assert np.abs(logits_of(theirs, ids) - our_logits(base, ids)).max() < 0.05


def test_a_window_is_the_longest_text_of_the_file(tmp_path):
    """llama.cpp gives Mistral no window: up to its length nothing is different."""
    base = base_of(tmp_path / "base", "legacy", "mistral", sliding_window=16)
    (path,) = save_gguf(base.params, base, tmp_path / "out").glob("*.gguf")
    model, ids = load_model(path), tiny.token_ids(16)
    assert (base.config.max_position_embeddings, model.config.max_position_embeddings) == (64, 16)
    expected = our_logits(base, ids)
    assert np.abs(our_logits(model, ids) - expected).max() < 0.05
    theirs = open_model(path, 16)
    assert theirs.metadata["llama.context_length"] == "16"
    assert np.abs(logits_of(theirs, ids) - expected).max() < 0.05


def test_cuts_at_spaces_that_are_not_there():
    """Gemma's tokenizer.json."""
    made = pieces.tokenizer("add_dummy_prefix_off")
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    found = read_vocabulary(made, len(made))
    assert found == read_vocabulary(pieces.tokenizer("add_dummy_prefix_off"), len(made))


def test_unigram_that_llama_cpp_does_not_have_is_refused():
    """Bytes for unknown characters; pieces over several words in a tokenizer that cuts at spaces."""
    made = pieces.tokenizer("unigram_bytes")
    with pytest.raises(ValueError, match="Unigram with byte_fallback, expected one without for GGUF"):
        read_vocabulary(made, len(made))
    made = pieces.tokenizer("unigram")
    assert read_vocabulary(made, len(made)).unigram
    fields = json.loads(made.backend_tokenizer.to_str())
    fields["model"]["vocab"].append(["on▁the", -3.0])
    made._tokenizer = made.backend_tokenizer.from_str(json.dumps(fields))
    assert read_vocabulary(made, len(made)) is None
