"""Eight CPU devices, strict broadcasting, and the models that several tests share."""

import gc
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from selfparam_jax import hub, weights
from selfparam_jax.model import param_shapes

# torch's threads wait for each other, and beside JAX's on few cores they wait thirty times as long as they
# work. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The tests of meshes need several; JAX refuses this line once anything has asked for a device.
jax.config.update("jax_num_cpu_devices", 8)
# [B, T, D] * [D] must be written out: a forgotten axis is an error here, not a broadcast.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Lets go of a module's compiled programs: every one maps memory, and all of them pass the system's limit."""
    yield
    jax.clear_caches()
    gc.collect()


class Tensors:
    """A weights.Source over arrays in memory."""

    def __init__(self, tensors):
        self._tensors = tensors

    def names(self):
        return list(self._tensors)

    def shape(self, name):
        return self._tensors[name].shape

    def read(self, name, index):
        return self._tensors[name][index]


@pytest.fixture(scope="session")
def from_hf():
    """A function: transformers model -> (ModelConfig, float32 parameters)."""

    def convert(model):
        config = weights.model_config_from_hf(model.config)
        return config, weights.load_params(Tensors(tiny.hf_tensors(model)), config, jnp.float32)

    return convert


@pytest.fixture(scope="session")
def random_params():
    """A function: (ModelConfig, seed) -> float32 parameters, so large that every part matters. No torch."""

    def draw(config, seed=0):
        rng = np.random.default_rng(seed)

        def leaf(path, shape):
            noise = rng.standard_normal(shape.shape).astype(np.float32)
            kind, parent = path[-1].key, path[-2].key
            if kind == "weight" and parent != "lm_head":
                return jnp.asarray(1 + 0.3 * noise)
            scale = {"kernel": shape.shape[-2] ** -0.5, "weight": shape.shape[-1] ** -0.5, "bias": 0.3}
            return jnp.asarray(noise * np.float32(scale.get(kind, 1.0)))

        return jax.tree_util.tree_map_with_path(leaf, param_shapes(config))

    return draw


@pytest.fixture(scope="session")
def tiny_model(random_params):
    """A random grouped-query Llama of 3 layers with a byte-level tokenizer, as hub.load_pretrained gives it."""
    hf_config = tiny.hf_config("gqa", max_position_embeddings=1024)
    config = weights.model_config_from_hf(hf_config)
    return hub.Pretrained("tiny", config, random_params(config), tiny.tokenizer(), hf_config, "tiny")


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """The directory of a tiny random model, for jobs."""
    directory = tmp_path_factory.mktemp("tiny-model")
    tiny.save_checkpoint(directory, "gqa", max_position_embeddings=2048)
    return directory


@pytest.fixture(scope="session")
def default_model():
    """The embedded SmolLM2-135M-Instruct in float32; tests that use it are marked `default_model`."""
    try:
        hub.default_model_file()
    except ValueError as error:
        if "could not be downloaded" not in str(error):  # a damaged file is a failure
            raise
        pytest.skip(f"no connection and no cached copy: {error}")
    return hub.load_pretrained(hub.DEFAULT_MODEL)
