"""What every model family must show: parity with transformers on random weights, and our own invariants."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from extras import require
from safetensors.numpy import load_file

from selfparam_jax.checkpoints.export import save_safetensors
from selfparam_jax.checkpoints.load import load_model, read_architecture
from selfparam_jax.checkpoints.tensors import fingerprint, load_params
from selfparam_jax.checkpoints.weight_files import open_directory
from selfparam_jax.distributed.mesh import MeshConfig, activation_sharding, make_mesh
from selfparam_jax.inference.decoding import generate
from selfparam_jax.models.decoder import Decoder, apply_head, output_head
from selfparam_jax.models.lora import LoraConfig, init_lora, merge_lora
from selfparam_jax.models.masks import SHARED
from selfparam_jax.models.registry import FAMILIES, make_hf_config, model_config_from_hf
from selfparam_jax.models.shardings import parameter_shardings

LOGITS = 1e-4
HIDDEN = 1e-4
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 3.0,
}
# Fields of config classes that cannot matter here: of training, of generation, and of other programs' caches.
NEUTRAL = {
    *("initializer_range", "attention_dropout", "resid_pdrop", "embd_pdrop", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
}


def hf_config(name, **changes):
    """A tiny config of a transformers class."""
    import transformers

    fields = {**tiny.SIZES, "rope_parameters": dict(DEFAULT_ROPE), **changes}
    return getattr(transformers, name)(**fields)


def hf_model(config):
    """A random float32 model in which every part changes the logits."""
    torch = require("torch")
    from transformers import AutoModelForCausalLM

    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in made.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1:
                value.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))
            else:
                value.copy_(noise * (1.0 if "embed" in name else value.shape[1] ** -0.5))
    return made


@functools.partial(jax.jit, static_argnames="config")
def _read(config, variables, ids, positions, segments, past):
    decoder = Decoder(config, lora_scale=0.5)
    return decoder.apply(variables, ids, positions, segments, past)


def read(config, variables, ids, positions=None, segments=None, past=()):
    """(hidden, KeyValues) of rows; by default one text per row, from its beginning."""
    ids = jnp.asarray(ids, jnp.int32)
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape) if positions is None else positions
    segments = np.ones(ids.shape) if segments is None else segments
    positions, segments = jnp.asarray(positions, jnp.int32), jnp.asarray(segments, jnp.int32)
    return _read(config, variables, ids, positions, segments, past)


def logits_of(config, params, ids):
    return np.asarray(apply_head(read(config, {"params": params}, ids)[0], output_head(params, config)))


def check_parity(config, directory, length=14):
    """Saved by transformers, loaded by us, the same logits.

    Args:
      config: of transformers.
      directory: for the files.
      length: of the rows, in tokens.

    Returns:
      our (ModelConfig, float32 parameters), and the transformers model.
    """
    made = hf_model(config)
    made.save_pretrained(directory)
    ours = read_architecture(directory / "config.json")
    params = load_params(open_directory(directory), ours, jnp.float32)
    check_written(ours, params, directory)
    ids = tiny.token_ids(length)
    expected = tiny.hf_logits(made, ids)
    assert expected.std() > 0.5  # not degenerate
    np.testing.assert_allclose(logits_of(ours, params, ids), expected, rtol=0, atol=LOGITS)
    return ours, params, made


def check_written(config, params, directory):
    """What we write is what transformers wrote, tensor by tensor."""
    save_safetensors(params, config, directory / "written", np.float32)
    expected, found = (load_file(path / "model.safetensors") for path in (directory, directory / "written"))
    assert expected.keys() == found.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def check_generation(config, params, made):
    """Greedy answers through prefix and cache are those of transformers.

    Args:
      config: ours.
      params: float32 parameters.
      made: the transformers model.
    """
    torch = require("torch")
    rows = tiny.token_ids(12, 1)
    made.generation_config.eos_token_id = None  # eight tokens whatever they are
    with torch.no_grad():
        theirs = made.generate(
            torch.tensor(rows),
            attention_mask=torch.ones_like(torch.tensor(rows)),
            do_sample=False,
            max_new_tokens=8,
            pad_token_id=0,
        )
    ids = rows[0].tolist()
    found = generate(Decoder(config), {"params": params}, ids[:7], [ids[7:]], 8)[0]
    assert found == theirs[0, 12:].tolist()
    assert len(set(found)) > 2


def check_sharded(config, params):
    """Split over two devices by heads and by columns of the products, the same hidden states.

    Args:
      config: ours.
      params: float32 parameters.
    """
    ids = tiny.token_ids(14)
    expected = read(config, {"params": params}, ids)[0]
    two = make_mesh(jax.devices()[:2], MeshConfig(1, 1, 2))
    split = jax.device_put(params, parameter_shardings(two, config))
    decoder = Decoder(config, sharding=activation_sharding(two))
    positions = jnp.broadcast_to(jnp.arange(14)[None], ids.shape)

    @jax.jit
    def run(params):
        return decoder.apply({"params": params}, jnp.asarray(ids), positions, jnp.ones_like(positions))[0]

    _close(run(split), expected)


def gguf_tensors(made, architecture, paired_rows):
    """The tensors of a transformers model under the names that llama.cpp's own package gives them.

    Args:
      made: the model.
      architecture: name of llama.cpp's.
      paired_rows: whether the rows of q and k are reordered.
    """
    import gguf

    config = made.config
    (arch,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for name, value in tiny.hf_tensors(made).items():
        count = heads.get(name.split(".")[-2])
        if paired_rows and count:
            halves = value.reshape(count, 2, value.shape[0] // count // 2, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = np.ascontiguousarray(value)
    return tensors


def write_gguf(path, made, architecture, pre, paired_rows=False, **metadata):
    """A llama.cpp file of a transformers model.

    Args:
      path: of the file.
      made: the model.
      architecture: name of llama.cpp's.
      pre: of the tokenizer.
      paired_rows: whether the rows of q and k are reordered.
      **metadata: more of the architecture, `__` for a dot in the key.
    """
    config = made.config
    settings = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention__head_count": config.num_attention_heads,
        "attention__head_count_kv": config.num_key_value_heads,
        "attention__key_length": getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
        "attention__layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope__freq_base": config.rope_parameters["rope_theta"],
        **metadata,
    }
    settings = {f"{architecture}__{name}": value for name, value in settings.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "gguf_tensors", lambda model: gguf_tensors(model, architecture, paired_rows))
        tiny.write_gguf(path, made, general__architecture=architecture, tokenizer__ggml__pre=pre, **settings)


def check_gguf(made, directory, architecture, pre, paired_rows=False, **metadata):
    """A llama.cpp file and the files of transformers are the same model.

    Args:
      made: the transformers model, saved in the directory.
      directory: for the file.
      architecture: name of llama.cpp's.
      pre: of the tokenizer.
      paired_rows: whether the rows of q and k are reordered.
      **metadata: more of the architecture, `__` for a dot in the key.
    """
    write_gguf(directory / "tiny.gguf", made, architecture, pre, paired_rows, **metadata)
    model = load_model(directory / "tiny.gguf")
    assert model.config == model_config_from_hf(made.config)
    assert model.hf_config.architectures == made.config.architectures
    assert model.fingerprint == fingerprint(open_directory(directory), model.config)


def check_invariants(config, params):
    """Packed equals apart, prefix and rows the whole, merged the adapter beside it, unstacked layers stacked ones.

    Args:
      config: ours.
      params: float32 parameters.
    """
    variables, ids = {"params": params}, tiny.token_ids(14)
    whole = np.asarray(read(config, variables, ids)[0])
    assert whole.std() > 0.1

    # Two texts in one row: the first five tokens of one, the first nine of the other.
    packed = np.concatenate([ids[:1, :5], ids[1:, :9]], axis=1).repeat(2, 0)
    positions, segments = [*range(5), *range(9)], [1] * 5 + [2] * 9
    found = np.asarray(read(config, variables, packed, np.array([positions] * 2), np.array([segments] * 2))[0])
    _close(found[0, :5], whole[0, :5])
    _close(found[0, 5:], whole[1, :9])

    # A prefix that both rows share, and the rows after it.
    same = np.concatenate([ids[:1, :7].repeat(2, 0), ids[:, 7:]], axis=1)
    expected = np.asarray(read(config, variables, same)[0])
    _, prefix = read(config, variables, same[:1, :7], segments=np.full((1, 7), SHARED))
    found, _ = read(config, variables, same[:, 7:], np.array([range(7, 14)] * 2), past=(prefix,))
    _close(found, expected[:, 7:])

    lora = init_lora(jax.random.key(0), params, LoraConfig(rank=2))
    lora = jax.tree.map(lambda leaf: leaf + 0.05, lora)
    beside = np.asarray(read(config, {"params": params, "lora": lora}, ids)[0])
    assert np.abs(beside - whole).max() > 1e-2
    _close(read(config, {"params": merge_lora(params, lora, 0.5)}, ids)[0], beside)

    layers = tuple(jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"]) for n in range(config.num_hidden_layers))
    _close(read(config, {"params": {**params, "layers": layers}}, ids)[0], whole)


def _close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=HIDDEN)


def check_every_field(name, changes, mutations):
    """Every field of a transformers config changes our architecture, is refused, or is one of `NEUTRAL`.

    That every field of the architecture changes the output is shown in test_decoder.

    Args:
      name: of the transformers class.
      changes: fields in which every other field has work to do.
      mutations: field -> another value, or (another value, pattern of the refusal).
    """
    import transformers

    (family,) = (each for each in FAMILIES.values() if each.hf_config == name)

    def architecture(fields):
        fields = {**tiny.SIZES, "rope_parameters": dict(DEFAULT_ROPE), **copy.deepcopy(fields)}
        return family.model_config(make_hf_config(family, fields))

    base = architecture(changes)
    inherited = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    fields = {field.name for field in dataclasses.fields(getattr(transformers, name))} - inherited
    fields |= {"tie_word_embeddings"}
    assert fields - NEUTRAL == mutations.keys()
    for field, value in mutations.items():
        made = {**changes, field: value[0] if isinstance(value, tuple) else value}
        if isinstance(value, tuple):
            with pytest.raises(ValueError, match=value[1]):
                architecture(made)
        else:
            assert architecture(made) != base, field


# Mutations that all classes share.
MUTATIONS = {
    "vocab_size": 273,
    "hidden_size": 64,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_act": ("relu", "hidden_act = 'relu' is not supported"),
    "max_position_embeddings": 32,
    "rms_norm_eps": 0.1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "tie_word_embeddings": True,
}
