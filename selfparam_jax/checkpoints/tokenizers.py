"""Tokenizers: from a directory in Hugging Face's layout, or built from what a GGUF file holds.

By default some add a begin-of-sequence token, as their files ask. The program itself always encodes with
`add_special_tokens=False` and places such tokens where it wants them.
"""

import datetime
import functools
import importlib.util
from pathlib import Path
from typing import Any

from selfparam_jax.checkpoints.gguf import family_of_file, metadata
from selfparam_jax.checkpoints.sentencepiece import Vocabulary
from selfparam_jax.distributed.files import read_json
from selfparam_jax.models.family import PreTokenizer
from selfparam_jax.models.registry import FAMILIES, one_of

_OBJECTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
_AGAIN = "get the model's tokenizer files again"


@functools.cache
def today() -> datetime.date:
    """The day on which this process first asked for it."""
    return datetime.date.today()


def read_date(text: str) -> datetime.date:
    """A day from "2026-11-28"; "" is `today`. Raises ValueError for anything else."""
    try:
        return datetime.date.fromisoformat(text) if text else today()
    except ValueError as error:
        raise ValueError(f"date = {text!r}, expected a day such as '2026-11-28', or '' for today") from error


def date_of(tokenizer: Any) -> datetime.date:
    """The day that a chat template is told, if it asks: that of `load_model(date=...)`, or `today`."""
    return getattr(tokenizer, "conversation_date", None) or today()


def named(tokenizer: Any) -> str:
    """What to call a tokenizer in a message."""
    return f"the tokenizer of {tokenizer.name_or_path}" if getattr(tokenizer, "name_or_path", "") else "the tokenizer"


def read_tokenizer(directory: Path) -> Any:
    """The tokenizer in a directory.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((directory / file).is_file() for file in files):
        raise ValueError(
            f"{directory} has no tokenizer: expected one of {', '.join(files)}. Copy the tokenizer "
            "files of the model there."
        )
    model = directory / "tokenizer.model"
    alone = model.is_file() and not (directory / "tokenizer.json").is_file()
    # A SentencePiece model is a protocol buffer; tiktoken's file of the same name is text.
    if alone and model.read_bytes()[:1] == b"\n":
        for package in ("sentencepiece", "google.protobuf"):
            if not _is_installed(package):
                raise ValueError(
                    f"{directory} has its tokenizer in tokenizer.model alone, and reading it needs the packages "
                    "sentencepiece and protobuf. Run pip install sentencepiece protobuf, or add the model's "
                    "tokenizer.json."
                )
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many kinds, some of them bare Exception
        _check_text_files(directory)
        reason = _empty_name(directory) or f"{type(error).__name__}: {error}".splitlines()[0]
        # A bare Exception is of the package tokenizers, which reads this file alone.
        where = directory / "tokenizer.json" if type(error) is Exception else directory
        raise ValueError(f"{where}: the tokenizer cannot be read: {reason}; {_AGAIN}") from error
    _check_vocabulary(tokenizer, f"{directory}: the tokenizer")
    return tokenizer


def _check_vocabulary(tokenizer: Any, what: str) -> None:
    """Raises ValueError for a tokenizer without a token that text could become; `what` names it."""
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise ValueError(
            f"{what} has no tokens but special ones, so every text is empty to it; expected a vocabulary; {_AGAIN}"
        )


def _check_text_files(directory: Path) -> None:
    """Raises ValueError for a file of a tokenizer that is no UTF-8, or no JSON where it should be; names it."""
    for path in (directory / name for name in _OBJECTS):
        if path.is_file():
            read_json(path, advice=_AGAIN)
    for path in sorted(directory.glob("**/*.jinja")):
        try:
            path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: got bytes that are no UTF-8 ({error.reason}), expected text; {_AGAIN}"
            ) from error


def _empty_name(directory: Path) -> str:
    """What is wrong where a special token has an empty name, as in the first conversions of Llama; "" if none has."""
    path = directory / "tokenizer_config.json"
    fields = read_json(path, advice=_AGAIN) if path.is_file() else {}
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = fields.get(role)
        if (value.get("content") if isinstance(value, dict) else value) == "":
            return f"{path.name} has {role} = '', expected its name, such as '<s>', or null"
    return ""


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a package whose parent is not there
        return False


def gguf_tokenizer(reader: Any) -> Any:
    """The tokenizer in a llama.cpp file, built without torch.

    Byte-level BPE (`tokenizer.ggml.model` = gpt2), SentencePiece's BPE (llama) or its Unigram (t5). With
    `add_special_tokens=True` it puts BOS in front if and only if the file sets `add_bos_token`; this program always
    encodes without special tokens.

    Raises:
      ValueError: another kind of tokenizer, or one that is split in an unknown way.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    kind = metadata(reader, "tokenizer.ggml.model")
    if kind not in ("gpt2", "llama", "t5"):
        raise ValueError(
            f"tokenizer.ggml.model = {kind!r} is not supported, expected 'gpt2' (byte-level BPE), 'llama' or 't5' "
            "(SentencePiece's BPE, Unigram). Use the Hugging Face directory of this model, which has its tokenizer."
        )
    tokens = metadata(reader, "tokenizer.ggml.tokens")
    tokenizer = _byte_level(reader, tokens) if kind == "gpt2" else _pieces(reader, tokens)
    special = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = metadata(reader, f"tokenizer.ggml.{key}_token_id", None)
        if token_id is None:
            continue
        if not 0 <= token_id < len(tokens):
            raise ValueError(
                f"tokenizer.ggml.{key}_token_id = {token_id}, expected an id from 0 to {len(tokens) - 1}. "
                "Convert the model again."
            )
        special[f"{role}_token"] = tokens[token_id]
    if metadata(reader, "tokenizer.ggml.add_bos_token", kind == "llama"):
        if "bos_token" not in special:
            raise ValueError("got add_bos_token without bos_token_id, expected both. Convert the model again.")
        bos = special["bos_token"]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokens.index(bos))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata(reader, "tokenizer.chat_template", None),
        model_max_length=metadata(reader, f"{family_of_file(reader).gguf_architecture}.context_length"),
        clean_up_tokenization_spaces=False,
        **special,
    )
    _check_vocabulary(made, "tokenizer.ggml.tokens")
    return made


def _pieces(reader: Any, tokens: list[str]) -> Any:
    """SentencePiece's BPE or Unigram of a file."""
    scores, types = (metadata(reader, f"tokenizer.ggml.{name}") for name in ("scores", "token_type"))
    for name in ("precompiled_charsmap", "remove_extra_whitespaces"):
        if metadata(reader, f"tokenizer.ggml.{name}", None):
            raise ValueError(
                f"got tokenizer.ggml.{name}, expected a tokenizer that leaves texts as they are. "
                "Use the Hugging Face directory of this model, which has its tokenizer."
            )
    unigram = metadata(reader, "tokenizer.ggml.model") == "t5"
    prefix = metadata(reader, "tokenizer.ggml.add_space_prefix", not unigram)
    return Vocabulary(tokens, scores, types, prefix, unigram).tokenizer()


def _byte_level(reader: Any, tokens: list[str]) -> Any:
    """Byte-level BPE of a file."""
    import tokenizers

    known, pre = pre_tokenizers(), metadata(reader, "tokenizer.ggml.pre", None) or _guess_pre(reader)
    if pre not in known:
        raise ValueError(
            f"tokenizer.ggml.pre = {pre!r} is not supported; expected {one_of(known)}. "
            "Use the Hugging Face directory of this model, which has its tokenizer."
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata(reader, "tokenizer.ggml.merges")]
    model = tokenizers.models.BPE(
        vocab={token: token_id for token_id, token in enumerate(tokens)},
        merges=merges,
        ignore_merges=known[pre].ignore_merges,
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = split_by(known[pre])
    if known[pre].nfc:
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    types = metadata(reader, "tokenizer.ggml.token_type")
    for number, is_special in ((3, True), (4, False)):  # control tokens; added tokens that are text
        added = [token for token, token_type in zip(tokens, types, strict=True) if token_type == number]
        added = [tokenizers.AddedToken(token, normalized=False, special=is_special) for token in added]
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)(added)
    return tokenizer


def _guess_pre(reader: Any) -> str:
    """How text is split, by llama.cpp's name, for a file of a writer that did not say it yet."""
    if "<|begin_of_text|>" in metadata(reader, "tokenizer.ggml.tokens"):  # Llama 3's vocabulary
        return "llama-bpe"
    return "qwen2" if metadata(reader, "general.architecture") == "qwen2" else "default"


def pre_tokenizers() -> dict[str, PreTokenizer]:
    """Those of all families by llama.cpp's names, and GPT-2's."""
    known = {"gpt-2": PreTokenizer(), "default": PreTokenizer()}
    for family in FAMILIES.values():
        known |= family.pre_tokenizers
    return known


def split_by(settings: PreTokenizer) -> Any:
    """The pre-tokenizer of the `tokenizers` package with these settings."""
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Digits(individual_digits=True)] if settings.single_digits else []
    if settings.pattern:
        steps.append(pre_tokenizers.Split(Regex(settings.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not settings.pattern))
    return pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
