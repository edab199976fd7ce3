"""Tiny random BERTs, with a tokenizer of whole words; no torch."""

import json

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from selfparam_jax.models.bert import BertConfig, embedding_shapes, layer_shapes

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def random_tensors(seed=0, prefix="", sizes=SIZES):
    """Tensors by their names; large enough that every one of them changes the result."""
    config, rng = BertConfig(**sizes), np.random.default_rng(seed)
    shapes = embedding_shapes(config)
    for n in range(config.num_hidden_layers):
        shapes |= {f"encoder.layer.{n}.{name}": shape for name, shape in layer_shapes(config).items()}
    found = {}
    for name, shape in shapes.items():
        scale = shape[-1] ** -0.5 * 2 if len(shape) == 2 and name.startswith("encoder") else 0.5
        value = scale * rng.standard_normal(shape) + ("LayerNorm.weight" in name)
        found[prefix + name] = value.astype(np.float32)
    return found


def counting_tensors(words):
    """Tensors of a BERT of one layer whose [CLS] points in a direction of its own for each word of a text.

    A word that is there twice counts twice: attention sees all tokens alike, and all else adds nothing. All
    vectors have the same length, the square root of their size.
    """
    sizes = SIZES | {"num_hidden_layers": 1}
    tensors = {name: np.zeros_like(value) for name, value in random_tensors(sizes=sizes).items()}
    for word in range(len(words)):
        # Two numbers that cancel, so that LayerNorm takes no mean away.
        row = tensors["embeddings.word_embeddings.weight"][len(SPECIAL) + word]
        row[2 * word], row[2 * word + 1] = 1.0, -1.0
    for name in tensors:
        if name.endswith("LayerNorm.weight"):
            tensors[name][:] = 1.0
    for name in ("self.value", "output.dense"):
        tensors[f"encoder.layer.0.attention.{name}.weight"][:] = np.eye(SIZES["hidden_size"])
    return tensors


def save_counting_encoder(directory, words, **fields):
    """Writes an encoder of `counting_tensors`; returns its directory."""
    return save_encoder(directory, words, counting_tensors(words), num_hidden_layers=1, **fields)


def save_tokenizer(directory, words):
    """A tokenizer that knows these words, puts [CLS] in front and [SEP] after each part."""
    ids = {word: n for n, word in enumerate([*SPECIAL, *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(directory)


def save_encoder(directory, words, tensors=None, **fields):
    """Writes a directory in Hugging Face's layout; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_act": "gelu"} | SIZES | fields))
    save_file(random_tensors() if tensors is None else tensors, directory / "model.safetensors")
    save_tokenizer(directory, words)
    return directory


def make_sentence_encoder(directory, modes, normalize=True, **prompts):
    """Makes a directory one of sentence-transformers."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * normalize
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (directory / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return directory
