"""Random weights in files, for tests of checkpoints; needs no torch."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from safetensors.numpy import save_file

from selfparam_jax.models.decoder import Decoder, apply_head, output_head
from selfparam_jax.models.parameters import parameter_table
from selfparam_jax.models.registry import model_config_from_hf


def leaves(tree):
    return {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def config_of(case, **changes):
    return model_config_from_hf(tiny.hf_config(case, **changes))


def our_logits(params, config, ids):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    hidden, _ = Decoder(config).apply({"params": params}, jnp.asarray(ids), positions, jnp.ones_like(positions))
    return np.asarray(apply_head(hidden, output_head(params, config)))


class Recording:
    """A source that remembers what was read of it."""

    def __init__(self, source):
        self.source, self.reads = source, []
        self.names, self.shape = source.names, source.shape

    def read(self, name, index):
        self.reads.append((name, index))
        return self.source.read(name, index)


def random_tensors(config, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(entry.hf_shape).astype(np.float32)
        for entry in parameter_table(config)
        for name in entry.hf_names()
    }


def save_random(directory, config, seed=0, change=lambda tensors: None):
    """A checkpoint without config or tokenizer, made without torch."""
    tensors = random_tensors(config, seed)
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return tensors


def check_params(params, tensors, config, dtype=np.float32):
    """Every tensor is where the table says, transposed where our name says kernel."""
    for entry in parameter_table(config):
        leaf = np.asarray(leaves(params)[entry.path])
        assert leaf.dtype == dtype
        for layer, name in enumerate(entry.hf_names()):
            ours = leaf[layer] if entry.path[0] == "layers" else leaf
            expected = tensors[name].astype(dtype)
            np.testing.assert_array_equal(ours, expected.T if entry.path[-1] == "kernel" else expected)


def logits_of(model, ids):
    """Float32 logits of a loaded model."""
    return our_logits(model.params, model.config, ids)
