"""Vocabularies of SentencePiece, as llama.cpp's files hold them: tokens with scores and types.

Of BPE the tokenizer of a directory holds the same vocabulary as merges. A token's score stands for the rank of the
merges that make it, so that both choose the same merges. Of Unigram both hold the tokens' log probabilities.
"""

import dataclasses
import json
import re
from typing import Any

# Kinds of tokens in a file.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"
# Text on which tokenizers that merge differently differ.
PROBES = (
    "The library of the old town was built in 1907.\n\nIt   stands beside the river, 3.14!? (a) it's\tÜber_x",
    "日本語 e\u0301 🙂 ",
    "Question: who's there?\nAnswer: NOBODY, he said; 12345 <b>...</b> --- foo_bar(baz)",
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file, in the order of their ids.

    Attributes:
      tokens: their texts, `▁` for a space.
      scores: the pair whose token has the highest score is merged first.
      types: NORMAL and so on.
      space_prefix: whether a space is put in front of a text.
      unigram: whether a text is cut into the likeliest tokens, instead of merged.
    """

    tokens: list[str]
    scores: list[float]
    types: list[int]
    space_prefix: bool
    unigram: bool = False

    def merges(self) -> list[tuple[str, str]]:
        """The merges that the scores stand for, the first one first."""
        ids = {
            token: n for n, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)) if kind == NORMAL
        }
        found = []
        for token, n in ids.items():
            pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
            pairs = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
            found += [(-self.scores[n], n, ids[left], ids[right], left, right) for left, right in pairs]
        return [(left, right) for *_, left, right in sorted(found)]

    def tokenizer(self) -> Any:
        """A tokenizer of the `tokenizers` package, without BOS."""
        import tokenizers
        from tokenizers import decoders, normalizers

        unknown = self.types.index(UNKNOWN) if UNKNOWN in self.types else None
        if self.unigram:
            scores = [(t, score) for t, score in zip(self.tokens, self.scores, strict=True)]
            model = tokenizers.models.Unigram(scores, unk_id=unknown, byte_fallback=False)
        else:
            model = tokenizers.models.BPE(
                vocab={token: n for n, token in enumerate(self.tokens)},
                merges=self.merges(),
                byte_fallback=True,
                fuse_unk=True,
                unk_token=None if unknown is None else self.tokens[unknown],
            )
        made, spaces = tokenizers.Tokenizer(model), normalizers.Replace(" ", SPACE)
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if self.space_prefix else spaces
        steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*steps, *[decoders.Strip(" ", 1, 0)] * self.space_prefix])
        for kinds, add in (((CONTROL, UNKNOWN), made.add_special_tokens), ((USER_DEFINED,), made.add_tokens)):
            added = [t for t, kind in zip(self.tokens, self.types, strict=True) if kind in kinds]
            add([tokenizers.AddedToken(t, normalized=False, special=CONTROL in kinds) for t in added])
        return made


def read_vocabulary(tokenizer: Any, size: int) -> Vocabulary | None:
    """The vocabulary of a transformers tokenizer, where it is one of SentencePiece's; None for others.

    Args:
      tokenizer: a fast tokenizer.
      size: rows of the model's embedding; ids without a token are filled up.

    Raises:
      ValueError: Unigram with bytes for unknown characters, which llama.cpp does not have.
    """
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    model, prefix = made["model"], _space_prefix(made)
    unigram, has_bytes = model["type"] == "Unigram", bool(model.get("byte_fallback"))
    if unigram and has_bytes:
        raise ValueError(
            "the tokenizer is SentencePiece's Unigram with byte_fallback, expected one without for GGUF: llama.cpp "
            "has no bytes for unknown characters in this kind; export the model as hf"
        )
    if prefix is None or not (unigram or (model["type"] == "BPE" and has_bytes)):
        return None
    vocab = model["vocab"] if not unigram else {token: n for n, (token, _) in enumerate(model["vocab"])}
    tokens, types = [f"[PAD{n}]" for n in range(size)], [UNUSED] * size
    for token, n in vocab.items():
        is_byte = not unigram and re.fullmatch("<0x[0-9A-F]{2}>", token)
        tokens[n], types[n] = token, BYTE if is_byte else NORMAL
    for added in made["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = UNKNOWN
    if unigram:
        scores = [score for _, score in model["vocab"]] + [0.0] * (size - len(vocab))
        found = Vocabulary(tokens, scores, types, prefix, unigram=True)
        return found if _reads_alike(found, tokenizer) else None
    merges = [each.split(" ", 1) if isinstance(each, str) else each for each in made["model"]["merges"]]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    scores = [0.0 if kind in (CONTROL, UNKNOWN, BYTE) else float(-len(merges) - n) for n, kind in enumerate(types)]
    for token, rank in ranks.items():
        scores[made["model"]["vocab"][token]] = float(-rank)
    found = Vocabulary(tokens, scores, types, prefix)
    if {tuple(pair) for pair in merges} != set(found.merges()):
        return None  # it merges fewer pairs than scores would
    return found if _reads_alike(found, tokenizer) else None


def _reads_alike(found: Vocabulary, tokenizer: Any) -> bool:
    """Whether a vocabulary gives the ids of a tokenizer on `PROBES`."""
    again = found.tokenizer()
    return all(
        again.encode(text, add_special_tokens=False).ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in PROBES
    )


def _space_prefix(made: dict) -> bool | None:
    """Whether a tokenizer.json puts a space in front of a text; None if it does anything else to texts."""
    normalizer, splitter = made.get("normalizer"), made.get("pre_tokenizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    kinds = [step["type"] for step in steps]
    if splitter is not None and _cuts_nothing(splitter, kinds):
        splitter = None
    if splitter is None and kinds in (["Replace"], ["Prepend", "Replace"]):
        replaced, prepended = steps[-1], steps[0].get("prepend", SPACE)
        plain = replaced["pattern"] == {"String": " "} and replaced["content"] == SPACE == prepended
        return kinds[0] == "Prepend" if plain else None
    if steps or splitter is None or splitter["type"] != "Metaspace":
        return None
    if splitter.get("replacement") != SPACE or (splitter.get("split", True) and not _words_only(made["model"])):
        return None
    return splitter.get("prepend_scheme", "always") != "never"


def _cuts_nothing(splitter: dict, normalizers: list[str]) -> bool:
    """Whether texts are cut at spaces, of which the normaliser has left none (Gemma)."""
    return splitter["type"] == "Split" and splitter["pattern"] == {"String": " "} and "Replace" in normalizers


def _words_only(model: dict) -> bool:
    """Whether no piece of a Unigram model goes beyond a word, so that cuts at spaces change nothing."""
    return model["type"] == "Unigram" and not any(SPACE in token[1:] for token, _ in model["vocab"])
