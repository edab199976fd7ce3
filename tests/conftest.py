"""Eight CPU devices, strict broadcasting, the order of tests, and the models that several tests share."""

import importlib.metadata
import os

# The threads of NumPy and torch wait for each other; beside JAX's, on few cores, they wait thirty times as long as
# they work. Read when the libraries are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Most of the time goes into compiling programs that run for milliseconds. XLA optimizes them less, also in the
# processes that tests start; JAX_DISABLE_MOST_OPTIMIZATIONS=0 runs everything with the programs that users run.
# XLA ends the process at a flag that it does not know; later versions have no such flag.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0" and importlib.metadata.version(
    "jaxlib"
).startswith(("0.9.", "0.10.")):
    # One module of machine code a program: several are split, copied and compiled by threads that are not there.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
# Compiling UMAP takes a hundred times as long as the few nodes of a test; read when numba is loaded.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

import gc
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from filelock import FileLock

from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL, default_model_file
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.checkpoints.tensors import load_params
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.models.decoder import param_shapes
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.reports import style

# The tests of meshes need several; JAX refuses this line once anything has asked for a device.
jax.config.update("jax_num_cpu_devices", 8)
# [B, T, D] * [D] must be written out: a forgotten axis is an error here, not a broadcast.
jax.config.update("jax_numpy_rank_promotion", "raise")

_make_mesh = meshes.make_mesh


def _make_small_mesh(devices=None, config=None):
    """What jobs are given in tests: one device if nothing is said. Eight that share two cores wait for each other."""
    config = config or meshes.MeshConfig()
    if devices is None and (config.data, config.fsdp, config.tensor) == (-1, 1, 1):
        devices = jax.devices()[:1]
    return _make_mesh(devices, config)


meshes.make_mesh = _make_small_mesh

# Files that take longest. They begin first, so that all workers end at about the same time.
LONGEST = (
    "distributed/test_two_processes.py",
    "distributed/test_mesh.py",
    "sequential/test_sequential.py",
    "models/test_decoder.py",
    "benchmarks/test_benchmarks.py",
    "plan/test_plan.py",
    "training/test_trainer.py",
    "training/test_teacher.py",
    "training/test_other_teacher.py",
    "jobs/test_batch.py",
    "jobs/test_compare_systems.py",
    "docs/test_quickstart.py",
    "baselines/test_cartridge.py",
    "training/test_inject.py",
)

# What libraries do for us, from files and arrays to a loss, in about a minute.
QUICK = (
    "checkpoints/test_export.py",
    "checkpoints/test_gguf.py",
    "checkpoints/test_load.py",
    "checkpoints/test_tensors.py",
    "data/",
    "training/test_losses.py",
)


def pytest_configure(config):
    """One cache of compiled programs for all workers and for the processes that tests start, removed at the end.

    JAX_COMPILATION_CACHE_DIR names another, which stays: a second run is then about three times as fast.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="selfparam-programs-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # workers and other processes inherit it
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    # JAX has been imported, so it reads the variables no more.
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    """The longest files first; a worker runs a whole file, as --dist loadfile has it."""
    places = {name: place for place, name in enumerate(LONGEST)}
    names = {item: item.path.relative_to(Path(__file__).parent).as_posix() for item in items}
    items.sort(key=lambda item: places.get(names[item], len(places)))
    for item in items:
        if names[item].startswith(QUICK):
            item.add_marker("quick")


def pytest_collection_finish():
    """What has been imported stays. Looking through it for garbage again and again takes a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    """Collects garbage once; pytest, as it ends, does it five times, and needs not go through all objects again."""
    jax.clear_caches()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder for what all workers of this run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Lets go of compiled programs when they map many parts of memory: 65,530 are the limit, 8,000 are 2.7 GB."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > 8_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def all_devices():
    """The mesh of a job that says nothing has all eight devices, as for users."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo what it has patched
        patch.setattr(meshes, "make_mesh", _make_mesh)
        yield


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """Reports have pictures only in tests marked `pictures`: drawing takes longer than a job on a tiny model."""
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(style, "can_draw", lambda: False)


class Tensors:
    """A Source over arrays in memory."""

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
        config = model_config_from_hf(model.config)
        return config, load_params(Tensors(tiny.hf_tensors(model)), config, jnp.float32)

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
    """A random grouped-query Llama of 3 layers with a byte-level tokenizer, as load_model gives it."""
    hf_config = tiny.hf_config("gqa", max_position_embeddings=1024)
    config = model_config_from_hf(hf_config)
    return Model("tiny", config, random_params(config), tiny.tokenizer(), hf_config, "tiny")


@pytest.fixture(scope="session")
def model_dir(shared_folder):
    """The directory of a tiny random model, for jobs; one for all workers."""
    directory = shared_folder / "tiny-model"
    with FileLock(shared_folder / "tiny-model.lock"):
        if not directory.exists():
            tiny.save_checkpoint(directory, "gqa", max_position_embeddings=2048)
    return directory


@pytest.fixture(scope="session")
def default_model():
    """The embedded SmolLM2-135M-Instruct in float32; tests that use it are marked `default_model`."""
    try:
        default_model_file()
    except ValueError as error:
        if "could not be downloaded" not in str(error):  # a damaged file is a failure
            raise
        pytest.skip(f"no connection and no cached copy: {error}")
    return load_model(DEFAULT_MODEL, matmul_precision="float32")
