"""Tiny tokenizers that put a space in front of texts, as SentencePiece does."""

import string

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ("Passage", "Context", "Question", "Answer", "user", "assistant", "Read", "Hello", "Where", "the", "ant")
WORDS += ("inn", "Who", "ran", "The", "miles", "on", "Go", "x")
UNIGRAM = ("unigram", "unigram_bytes")
KINDS = ("legacy", "always", "first", "never", "add_dummy_prefix_off")


def _bpe() -> models.BPE:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += sorted(set(string.ascii_letters + string.digits + "▁:?.,[]/"))
    vocab, made = {token: n for n, token in enumerate(tokens)}, []

    def merge(left: str, right: str) -> None:
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            made.append(left + right)

    for word in WORDS:
        for end in range(1, len(word)):
            merge(word[:end], word[end])
        merge("▁", word)
    merge("▁", "▁")
    # As SentencePiece does it: every pair whose token there is, the earliest token first.
    cuts = [(token[:cut], token[cut:]) for token in made for cut in range(1, len(token))]
    merges = [pair for pair in cuts if all(part in vocab for part in pair)]
    return models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")


def _unigram(byte_fallback: bool) -> models.Unigram:
    """Words are likelier than their letters, and a word with a space in front than without."""
    made = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    made += [(f"<0x{byte:02X}>", 0.0) for byte in range(256) if byte_fallback]
    letters = sorted(set(string.ascii_letters + string.digits + "▁:?.,[]/" + "\n<>" * (not byte_fallback)))
    made += [(letter, -9.0 - 0.01 * n) for n, letter in enumerate(letters)]
    for n, word in enumerate(WORDS):
        made += [(f"▁{word}", -4.0 - 0.1 * n)] + [(word, -5.0 - 0.1 * n)] * (len(word) > 1)
    return models.Unigram(made, unk_id=0, byte_fallback=byte_fallback)


def tokenizer(kind: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of one kind.

    Args:
      kind: "legacy" has Llama 2's and Mistral v0.1's normaliser; "always", "first" and "never" are the prepend
        schemes of Metaspace (Mistral v0.3: "first"); "add_dummy_prefix_off" only replaces spaces. "unigram" cuts
        texts at spaces as T5's does; "unigram_bytes" has bytes for what is not in its vocabulary.
      chat_template: of the tokenizer.
    """
    made = Tokenizer(_unigram(kind == "unigram_bytes") if kind in UNIGRAM else _bpe())
    if kind == "unigram":
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    elif kind in ("legacy", "unigram_bytes"):
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "add_dummy_prefix_off":
        made.normalizer = normalizers.Replace(" ", "▁")
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=kind, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    names = ("<unk>", "<s>", "</s>")
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
