"""Encoders of texts: a BERT, one half of a DPR, or a sentence-transformers directory of a BERT."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from selfparam_jax.checkpoints.load import model_directory
from selfparam_jax.checkpoints.tensors import Source
from selfparam_jax.checkpoints.tokenizers import read_tokenizer
from selfparam_jax.checkpoints.weight_files import open_directory
from selfparam_jax.distributed.files import read_json
from selfparam_jax.models.bert import CLS, POOLINGS, BertConfig, embedding_shapes, encode, layer_shapes, pool

PREFIXES = ("", "bert.", "question_encoder.bert_model.", "ctx_encoder.bert_model.")
# What a config.json may ask for and `models.bert` has not.
FIXED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False, "projection_dim": 0}
MODEL_TYPES = ("bert", "dpr")
SHORTEST = 32  # tokens of the shortest padded text
BATCH = 16

# A text, or a title and a text as a pair of segments.
Text = str | tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a sentence-transformers directory says beside its BERT; the defaults are a DPR's.

    Attributes:
      folder: of config.json, weights and tokenizer, within the directory.
      pooling: of `models.bert.POOLINGS`.
      normalize: whether vectors get length 1.
      max_tokens: of a text; 0 for as many as the BERT has positions.
      query, passage: what stands before a question and before a passage.
      pairs: whether a passage is given as a title and a text.
    """

    folder: str = ""
    pooling: str = CLS
    normalize: bool = False
    max_tokens: int = 0
    query: str = ""
    passage: str = ""
    pairs: bool = True


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A loaded encoder.

    Attributes:
      name: where it comes from, for messages.
      config, params: as `models.bert.encode` takes them.
      tokenizer: a transformers tokenizer that puts [CLS] and [SEP] around texts.
      layout: how vectors of tokens become one of a text.
    """

    name: str
    config: BertConfig
    params: dict
    tokenizer: Any
    layout: Layout

    @property
    def size(self) -> int:
        """How many numbers its parameters are."""
        groups = (self.params["embeddings"], self.params["layers"])
        return sum(leaf.size for group in groups for leaf in group.values())

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text, [CLS] and [SEP] included."""
        positions = self.config.max_position_embeddings
        return min(positions, self.layout.max_tokens or positions)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that decides a text's vector: sizes, parameters, tokenizer and layout."""
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for changing in ("truncation", "padding"):  # as of the latest call
            tokenizer.pop(changing)
        layout = dataclasses.asdict(self.layout) | {"folder": ""}
        made = hashlib.sha256(json.dumps([dataclasses.asdict(self.config), layout, tokenizer]).encode())
        for group in ("embeddings", "layers"):
            for name, value in sorted(self.params[group].items()):
                made.update(name.encode())
                made.update(np.ascontiguousarray(value))
        return made.hexdigest()

    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        """The vectors of some questions, float32 [questions, D]."""
        return self._embed([self.layout.query + question for question in questions])

    def embed_passages(self, titles: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """The vectors of some passages, float32 [passages, D]; "" is no title."""
        pairs = zip(titles, texts, strict=True)
        if self.layout.pairs:
            return self._embed([(title, text) if title else text for title, text in pairs])
        whole = (f"{title}\n\n{text}" if title else text for title, text in pairs)
        return self._embed([self.layout.passage + text for text in whole])

    def _embed(self, texts: Sequence[Text]) -> np.ndarray:
        rows = self._tokenize(texts)
        vectors = np.zeros((len(rows), self.config.hidden_size), np.float32)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]))
        # Few programs: one text alone or a full batch, at lengths that double.
        batch = 1 if len(rows) == 1 else BATCH
        for begin in range(0, len(order), batch):
            places = order[begin : begin + batch]
            vectors[places] = self._embed_batch([rows[place] for place in places], batch)
        return vectors

    def _embed_batch(self, rows: Sequence[tuple[list[int], list[int]]], batch: int) -> np.ndarray:
        length = SHORTEST
        while length < max(len(tokens) for tokens, _ in rows):
            length *= 2
        length = min(length, self.max_tokens)
        tokens, types = np.zeros((2, batch, length), np.int32)
        lengths = np.ones(batch, np.int32)  # a row of padding has one token, whose vector is not read
        for place, (own, kinds) in enumerate(rows):
            tokens[place, : len(own)], types[place, : len(own)], lengths[place] = own, kinds, len(own)
        hidden = encode(self.config, self.params, tokens, types, lengths)
        return np.asarray(pool(hidden, jnp.asarray(lengths), self.layout.pooling, self.layout.normalize))[: len(rows)]

    def _tokenize(self, texts: Sequence[Text]) -> list[tuple[list[int], list[int]]]:
        """Tokens and token types of each text; of a pair that is too long, tokens of the longer part are left out."""
        limit, rows, cut = self.max_tokens, [], 0
        for text in texts:
            parts = (text,) if isinstance(text, str) else text
            made = self.tokenizer(*parts, return_token_type_ids=True, verbose=False)
            if len(made["input_ids"]) > limit:
                cut += 1
                made = self.tokenizer(*parts, return_token_type_ids=True, truncation=True, max_length=limit)
            rows.append((made["input_ids"], made["token_type_ids"]))
        if cut:
            logging.warning("%d of %d texts have more than the %d tokens that %s reads; the rest is left out",
                            cut, len(texts), limit, self.name)  # fmt: skip
        return rows


def load_encoder(source: str | os.PathLike) -> Encoder:
    """Loads an encoder.

    Args:
      source: a directory in Hugging Face's layout with model_type bert or dpr, the same with modules.json
        of sentence-transformers, or a hub id of either.

    Returns:
      the encoder, in float32 on the default device.

    Raises:
      ValueError: the source is none of these, is damaged or not supported, or could not be downloaded.
    """
    directory = model_directory(source)
    layout = _read_layout(directory)
    folder = directory / layout.folder
    config = _read_config(folder / "config.json")
    tokenizer = read_tokenizer(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, expected at most vocab_size = "
            f"{config.vocab_size}. Use the tokenizer of these weights."
        )
    try:
        params = _read_params(open_directory(folder, integers=True), config)
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    return Encoder(os.fspath(source), config, params, tokenizer, layout)


def _read_config(path: Path) -> BertConfig:
    fields = _read_json(path, dict)
    kind = fields.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"{path}: model_type = {kind!r}, expected one of {', '.join(MODEL_TYPES)} for an encoder. "
                         "Give another encoder.")  # fmt: skip
    for name, value in FIXED.items():
        if fields.get(name, value) not in (value, None):
            raise ValueError(f"{path}: {name} = {fields[name]!r} is not supported, expected {value!r}. "
                             "Give another encoder.")  # fmt: skip
    known = {field.name for field in dataclasses.fields(BertConfig)}
    try:
        return BertConfig(**{name: value for name, value in fields.items() if name in known})
    except ValueError as error:
        raise ValueError(f"{path}: {error}. Get the file again.") from error


def _read_layout(directory: Path) -> Layout:
    """How a directory's vectors become one; a DPR's way if it is no sentence-transformers directory."""
    path = directory / "modules.json"
    if not path.is_file():
        return Layout()
    modules = _read_json(path, list)
    try:
        named = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected objects with a type and a path. Get the file again.") from error
    names = tuple(named)
    if names not in (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")):
        raise ValueError(f"{path} has the modules {', '.join(names)}, expected Transformer, Pooling and perhaps "
                         "Normalize. Give another encoder.")  # fmt: skip
    folder = named["Transformer"]
    limits = directory / folder / "sentence_bert_config.json"
    limit = _read_json(limits, dict).get("max_seq_length") if limits.is_file() else None
    if limit is not None and (type(limit) is not int or limit < 3):
        raise ValueError(f"{limits}: max_seq_length = {limit!r}, expected a whole number of at least 3")
    pooling = _read_pooling(directory / named["Pooling"] / "config.json")
    return Layout(folder, pooling, "Normalize" in named, limit or 0, *_read_prompts(directory), pairs=False)


def _read_pooling(path: Path) -> str:
    fields = _read_json(path, dict)
    modes = [name.removeprefix("pooling_mode_") for name, value in fields.items()
             if name.startswith("pooling_mode_") and value is True]  # fmt: skip
    modes = [{"cls_token": CLS, "mean_tokens": "mean"}.get(mode, mode) for mode in modes]
    if "pooling_mode" in fields:  # one name instead of a flag for each, in later versions
        value = fields["pooling_mode"]
        modes = list(value) if isinstance(value, list) else [value]
    if len(modes) != 1 or modes[0] not in POOLINGS or fields.get("include_prompt") is False:
        raise ValueError(f"{path}: pooling {' and '.join(map(str, modes)) or 'of no kind'}, expected one of "
                         f"{', '.join(POOLINGS)}, prompts included. Give another encoder.")  # fmt: skip
    return modes[0]


def _read_prompts(directory: Path) -> tuple[str, str]:
    """What sentence-transformers puts before a query and before a document."""
    path = directory / "config_sentence_transformers.json"
    fields = _read_json(path, dict) if path.is_file() else {}
    prompts = fields.get("prompts") or {}
    common = prompts.get(fields.get("default_prompt_name"), "")
    document = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), common)
    return prompts.get("query", common), document


def _read_json(path: Path, kind: type) -> Any:
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}. Give an encoder in Hugging Face's layout.")
    try:
        return read_json(path, kind, advice="get the file again")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_params(source: Source, config: BertConfig) -> dict:
    found = set(source.names())
    first = next(iter(embedding_shapes(config)))
    prefix = next((prefix for prefix in PREFIXES if prefix + first in found), "")

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        name = prefix + name
        if name not in found:
            raise ValueError(f"tensor {name!r} is missing: got {len(found)} others, expected it with shape {shape}. "
                             "Check that config.json belongs to these weights.")  # fmt: skip
        if tuple(source.shape(name)) != shape:
            raise ValueError(f"tensor {name!r} has shape {tuple(source.shape(name))}, expected {shape}. "
                             "Check that config.json belongs to these weights.")  # fmt: skip
        value = source.read(name, (slice(None),) * len(shape)).astype(np.float32)
        if not np.isfinite(value).all():
            raise ValueError(f"tensor {name!r} has values that are not finite. Get the weights again.")
        return value

    embeddings = {name: jnp.asarray(read(name, shape)) for name, shape in embedding_shapes(config).items()}
    layers = {
        name: jnp.stack([read(f"encoder.layer.{n}.{name}", shape) for n in range(config.num_hidden_layers)])
        for name, shape in layer_shapes(config).items()
    }
    more = f"{prefix}encoder.layer.{config.num_hidden_layers}."
    if extra := sorted(name for name in found if name.startswith(more)):
        raise ValueError(f"tensor {extra[0]!r} is of one layer more than num_hidden_layers = "
                         f"{config.num_hidden_layers}. Check that config.json belongs to these weights.")  # fmt: skip
    return {"embeddings": embeddings, "layers": layers}
