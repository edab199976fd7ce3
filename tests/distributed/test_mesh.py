"""One mesh of three axes: every way to split the work gives what one device gives, and each holds only its part."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import PartitionSpec

from selfparam_jax.distributed import mesh
from selfparam_jax.distributed.mesh import MeshConfig
from selfparam_jax.evaluation import drift
from selfparam_jax.inference import prefix
from selfparam_jax.inference.decoding import Sampling, generate
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.models.lora import LoraConfig, init_lora, merge_lora
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.models.shardings import parameter_shardings
from selfparam_jax.targets.sentences import Sentence, first_slots
from selfparam_jax.training import teacher, teacher_states, train_step
from selfparam_jax.training.batches import Plan, batches, make_batch
from selfparam_jax.training.optimizer import TrainConfig

pytestmark = pytest.mark.usefixtures("all_devices")

HEAD = (1, 7)
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0)
# Heads, widths and vocabulary that four devices can share, rows and a hidden size for eight.
SIZES = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 128}
CASES = {"gqa": {}, "mistral": {"sliding_window": 8}, "tied": {}, "biases": {}}
MESHES = {
    "data 8": MeshConfig(),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "data 2, tensor 4": MeshConfig(tensor=4),
    "2 x 2 x 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp 4, tensor 2": MeshConfig(data=1, fsdp=-1, tensor=2),
}
OVER = pytest.mark.parametrize("name", MESHES)


def mesh_of(name):
    return mesh.make_mesh(config=MESHES[name]) if name else mesh.make_mesh(jax.devices()[:1])


def ids_of(rng, length):
    return tuple(int(i) for i in rng.integers(3, tiny.SIZES["vocab_size"], length))


class Setup:
    """A tiny model, an adapter that changes it, two contexts and sentences of several kinds.

    What one device makes of them, which all meshes are held against, is computed once.
    """

    def __init__(self, case, params_of, directory):
        self.directory = directory
        rng = np.random.default_rng(0)
        self.config = model_config_from_hf(tiny.hf_config(case, **SIZES, **CASES[case]))
        self.params = jax.device_get(params_of(self.config))
        lora = jax.device_get(init_lora(jax.random.key(1), self.params, LORA))
        self.lora = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), lora)
        self.prefixes = [HEAD + ids_of(rng, length) for length in (20, 33)]
        self.sentences = [
            Sentence("qa", context, ids_of(rng, length), (1.0,) * length, None, {}, (0.5,) * length)
            for context in (0, 1)
            for length in (1, 5, 9, 14, 3, 8)
        ]
        self.sentences.append(Sentence("tail", 0, self.prefixes[0][-6:], (1.0,) * 6, 16, {}, (0.0,) * 6))
        self.sentences.append(Sentence("unrelated", None, ids_of(rng, 11), (0.5,) * 11, None, {}, (0.0,) * 11))
        self.first = first_slots(self.sentences)

    def on(self, name):
        """(mesh, model, parameters, adapter) on a mesh of MESHES; "" is a single device."""
        devices = mesh_of(name)
        model = Decoder(self.config, lora_scale=LORA.scale, sharding=mesh.activation_sharding(devices))
        params = jax.device_put(self.params, parameter_shardings(devices, self.config))
        return devices, model, params, mesh.put_same(devices, self.lora)

    @functools.cached_property
    def store(self):
        return states_on(self, "", self.directory)

    @functools.cached_property
    def step(self):
        return step_on(self, "", self.store)


@pytest.fixture(scope="module")
def setups(random_params, tmp_path_factory):
    return functools.cache(lambda case: Setup(case, random_params, tmp_path_factory.mktemp("one")))


def states_on(setup, name, directory):
    devices, model, params, _ = setup.on(name)
    reader = teacher.Reader(model, {"params": params}, "tiny", HEAD, devices, 8, 32)
    return teacher_states.teacher_store(reader, setup.prefixes, setup.sentences, directory / (name or "one"))


def step_on(setup, name, store, accumulate=1):
    """Two steps of descent, so fast that the adapter after them is the gradients: state and metrics, on the host."""
    devices, model, params, lora = setup.on(name)
    config = TrainConfig(seq_len=32, batch_size=8, epochs=2)
    plan = Plan(setup.sentences, setup.first, HEAD, config, 1)
    optimizer = optax.sgd(10.0)
    step = train_step.compile_step(model, optimizer, devices, train_step.LossConfig(chunk=24), accumulate=accumulate)
    state = mesh.put_same(devices, train_step.init_state(lora, optimizer))
    losses = []
    for batch in batches(plan, store, devices, True, accumulate=accumulate):
        state, metrics = step(state, params, batch, jax.random.key(0))
        losses.append(jax.device_get(metrics))
    return jax.device_get(state.lora), losses


def assert_close(found, expected):
    """Equal but for rounding: devices sum in another order, and a second step begins from a rounded first."""

    def close(found, expected):
        typical = np.sqrt(np.mean(np.square(expected)))
        np.testing.assert_allclose(found, expected, rtol=3e-5, atol=3e-5 * typical)

    jax.tree.map(close, found, expected)


@pytest.mark.parametrize(
    ("case", "name"),
    [*(("gqa", name) for name in MESHES), *((case, "2 x 2 x 2") for case in CASES if case != "gqa")],
)
def test_teacher_and_steps_equal_those_of_one_device(setups, tmp_path, case, name):
    setup = setups(case)
    slots = np.arange(len(setup.store))
    assert_close(states_on(setup, name, tmp_path).take(slots), setup.store.take(slots))
    assert_close(step_on(setup, name, setup.store), setup.step)


@pytest.mark.parametrize(("name", "accumulate"), [("", 4), ("2 x 2 x 2", 2)])
def test_accumulated_gradients_are_those_of_the_whole_batch(setups, name, accumulate):
    """Parts weigh as much as their tokens do, not each the same."""
    setup = setups("gqa")
    assert_close(step_on(setup, name, setup.store, accumulate), setup.step)


def test_every_part_draws_its_own_dropout(setups):
    """Equal parts have one mean loss however many there are, unless each is heard through another mask."""
    setup = setups("gqa")
    devices, model, params, _ = setup.on("")
    plan = Plan(setup.sentences, setup.first, HEAD, TrainConfig(seq_len=32, batch_size=1, epochs=1), 1)
    losses = {}
    for dropout in (0.0, 0.5):
        for parts in (2, 3):
            batch = make_batch(plan.rows(0).take(np.zeros(parts, int)), setup.store, devices, True, parts)
            noisy = model.clone(lora_dropout=dropout)
            step = train_step.compile_step(noisy, optax.sgd(1.0), devices, accumulate=parts)
            state = mesh.put_same(devices, train_step.init_state(jax.tree.map(np.array, setup.lora), optax.sgd(1.0)))
            losses[dropout, parts] = float(step(state, params, batch, jax.random.key(0))[1]["loss"])
    assert losses[0.0, 2] == pytest.approx(losses[0.0, 3], rel=1e-5)
    assert losses[0.5, 2] != pytest.approx(losses[0.5, 3], rel=1e-4)


def answers_on(setup, name):
    """Greedy and sampled, with a context and without, and fewer prompts than devices."""
    rng = np.random.default_rng(5)
    prompts = [ids_of(rng, length) for length in (4, 9, 2, 7, 5)]
    _, model, params, lora = setup.on(name)
    variables = {"params": params, "lora": lora}
    return [
        generate(model, variables, begins, prompts, 6, batch_size=3, sampling=sampling)
        for begins, sampling in ((setup.prefixes[1], None), (HEAD, None), (HEAD, Sampling(0.9, 0.8)))
    ]


def drift_on(setup, name):
    rng = np.random.default_rng(6)

    class Ids:
        start_ids = HEAD

        @staticmethod
        def text(text):
            return text

    _, model, params, lora = setup.on(name)
    before, after = {"params": params}, {"params": params, "lora": lora}
    texts = [ids_of(rng, length) for length in (30, 12, 25)]
    return drift.measure_drift(model, drift.read_general(model, before, Ids, texts, seq_len=40), after)


@pytest.fixture(scope="module")
def one_device(setups):
    """(answers, drift) of a single device."""
    return answers_on(setups("gqa"), ""), drift_on(setups("tied"), "")


@OVER
def test_answers_equal_those_of_one_device(setups, one_device, name):
    answers, _ = one_device
    assert answers_on(setups("gqa"), name) == answers
    assert len({str(made) for made in answers}) == 3


@OVER
def test_drift_equals_that_of_one_device(setups, one_device, name):
    _, expected = one_device
    assert expected["kl"] > 1e-2
    assert_close(drift_on(setups("tied"), name), expected)


@OVER
def test_a_merged_model_lies_like_its_base(setups, name):
    _, _, params, lora = setups("gqa").on(name)
    merged = merge_lora(params, lora, LORA.scale)
    jax.tree.map(lambda new, old: np.testing.assert_equal(new.sharding.spec, old.sharding.spec), merged, params)
    _, _, params, lora = setups("gqa").on("")
    assert_close(jax.device_get(merged), jax.device_get(merge_lora(params, lora, LORA.scale)))


def test_a_device_holds_its_part_of_the_weights(setups):
    setup = setups("gqa")
    _, _, params, _ = setup.on("2 x 2 x 2")
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(params))
    norms = sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "norm" in str(path))
    assert held == (sum(leaf.size for leaf in jax.tree.leaves(params)) - norms) // 4 + norms


def test_what_lies_where(setups):
    shardings = parameter_shardings(mesh_of("2 x 2 x 2"), setups("biases").config)
    layers, inward, outward = shardings["layers"], (None, ("fsdp",), ("tensor",)), (None, ("tensor",), ("fsdp",))
    for block, names, expected in (
        ("self_attn", ("q_proj", "k_proj", "v_proj"), inward),
        ("self_attn", ("o_proj",), outward),
        ("mlp", ("gate_proj", "up_proj"), inward),
        ("mlp", ("down_proj",), outward),
    ):
        for name in names:
            assert layers[block][name]["kernel"].spec == PartitionSpec(*expected), name
            assert layers[block][name]["bias"].spec == PartitionSpec(None, expected[2]), name
    for table in (shardings["embed_tokens"]["embedding"], shardings["lm_head"]["weight"]):
        assert table.spec == PartitionSpec(("tensor",), ("fsdp",))
    assert shardings["norm"]["weight"].is_fully_replicated


# --- what crosses devices ------------------------------------------------------------------------------


def collectives(setup, name, store):
    """(kind, elements of the result) of every collective in the compiled step."""
    devices, model, params, lora = setup.on(name)
    plan = Plan(setup.sentences, setup.first, HEAD, TrainConfig(seq_len=32, batch_size=8, epochs=1), 1)
    step = train_step.compile_step(model, optax.sgd(1.0), devices, train_step.LossConfig(chunk=24))
    state = mesh.put_same(devices, train_step.init_state(lora, optax.sgd(1.0)))
    batch = next(batches(plan, store, devices, True))
    text = step.lower(state, params, batch, jax.random.key(0)).compile().as_text()
    pattern = r"= ([^=\n]*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    found = []
    for shapes, kind in re.findall(pattern, text):
        for dimensions in re.findall(r"\w+\[([\d,]*)\]", shapes):
            found.append((kind, int(np.prod([int(d) for d in dimensions.split(",") if d], dtype=np.int64))))
    return found


def test_only_what_must_crosses_devices(setups):
    setup = setups("gqa")
    adapter = sum(leaf.size for leaf in jax.tree.leaves(setup.lora))
    stacked = max(leaf.size for leaf in jax.tree.leaves(setup.params["layers"]))
    table = setup.params["lm_head"]["weight"].size
    data, fsdp, tensor = (collectives(setup, name, setup.store) for name in ("data 8", "fsdp 8", "data 2, tensor 4"))
    # Data: the adapter's gradient is summed, and nothing is gathered.
    assert {kind for kind, _ in data} == {"all-reduce"}
    assert max(size for _, size in data) <= adapter
    # FSDP: a layer's kernels are gathered, never those of all layers at once; the tables are gathered whole.
    gathered = [size for kind, size in fsdp if kind == "all-gather"]
    assert gathered and stacked not in gathered
    assert max(gathered) == table
    # Activations of a layer stay: only gradients of the adapter and sums are reduced.
    assert max(size for kind, size in fsdp if kind == "all-reduce") <= adapter
    # Tensor: no weight is gathered at all; activations of a device's rows are summed.
    kernels = {leaf[0].size for leaf in jax.tree.leaves(setup.params["layers"]) if leaf.ndim == 3}
    assert not kernels & {size for kind, size in tensor if kind == "all-gather"}
    assert table not in [size for _, size in tensor]


# --- sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [((-1, 1, 1), 8, (8, 1, 1)), ((2, -1, 2), 8, (2, 2, 2)), ((1, 1, -1), 1, (1, 1, 1)), ((2, 2, 2), 8, (2, 2, 2))],
)
def test_what_is_left(sizes, devices, expected):
    assert MeshConfig(*sizes).sizes(devices) == expected


@pytest.mark.parametrize("sizes", [(3, 1, -1), (2, 2, 1), (16, 1, 1), (-1, 3, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    given = "data {} x fsdp {} x tensor {}".format(*sizes)
    with pytest.raises(ValueError, match=f"a mesh of {given} does not fit 8 devices; set one axis to -1"):
        mesh.make_mesh(config=MeshConfig(*sizes))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, -1, 1), (1, -2, 1)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=r"-1 \(whatever is left\)|at most one -1"):
        MeshConfig(*sizes)


def test_the_stall_limit_is_no_size():
    config = MeshConfig(data=2, fsdp=-1, tensor=1, stall_limit_s=5.0)
    assert config.sizes(8) == (2, 4, 1)
    assert MeshConfig().stall_limit_s == 1800.0
    assert MeshConfig(stall_limit_s=0.0).sizes(8) == (8, 1, 1)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match=r"mesh\.stall_limit_s = .*, expected 0 \(wait without a limit\) or a number"
        ):
            MeshConfig(stall_limit_s=wrong)


def test_a_model_that_does_not_divide_is_refused(setups):
    config = setups("gqa").config
    with pytest.raises(ValueError, match=r"mesh\.tensor = 8 .* num_key_value_heads 4.*; on 8 .* 1 or 2 or 4$"):
        parameter_shardings(mesh.make_mesh(config=MeshConfig(tensor=8)), config)
    odd = model_config_from_hf(tiny.hf_config("gqa", hidden_size=36, head_dim=8))
    with pytest.raises(ValueError, match=r"mesh\.fsdp = 8 does not divide .*: hidden_size 36; on 8 .* 1 or 2 or 4$"):
        parameter_shardings(mesh.make_mesh(config=MeshConfig(fsdp=8)), odd)


def test_rows_are_split_over_data_and_fsdp():
    devices = mesh_of("2 x 2 x 2")
    mesh.check_rows(devices, 8, "train.batch_size")
    with pytest.raises(ValueError, match=r"batch_size = 6 rows cannot be split over 4 devices.* multiple of 4"):
        mesh.check_rows(devices, 6, "train.batch_size")
    rows = mesh.put_rows(devices, np.arange(8))
    assert sorted({tuple(shard.data.tolist()) for shard in rows.addressable_shards}) == [
        (0, 1), (2, 3), (4, 5), (6, 7)
    ]  # fmt: skip
    sharding = mesh.activation_sharding(devices)
    assert sharding.row_shards == 4
    assert mesh.activation_sharding(mesh_of("")) is None
    jax.jit(lambda x: sharding(x, "rows", None))(jnp.ones((6, 3)))  # not divisible: whole on every device


def test_prefixes_are_read_the_same_on_every_mesh(setups):
    setup = setups("mistral")
    texts = [setup.prefixes[1] * 2, setup.prefixes[1] * 2 + setup.prefixes[0]]
    states = []
    for where in ("", "2 x 2 x 2"):
        _, model, params, _ = setup.on(where)
        read = prefix.read_prefixes(model, {"params": params}, texts)
        states.append([text.states() for text in read])
    assert_close(states[1], states[0])


@pytest.mark.parametrize(
    ("name", "rows", "accumulate", "expected"),
    [
        ("data 8", 2, 1, 8),
        ("data 8", 8, 1, 8),
        ("data 8", 9, 1, 16),
        ("data 8", 8, 2, 16),
        ("data 2, tensor 4", 2, 1, 2),
        ("data 2, tensor 4", 3, 2, 4),
        ("2 x 2 x 2", 6, 3, 12),
    ],
)
def test_rows_are_rounded_up_to_what_the_mesh_can_split(name, rows, accumulate, expected):
    found = mesh.round_up_rows(mesh_of(name), rows, accumulate)
    assert found == expected
    mesh.check_rows(mesh_of(name), found // accumulate, "rows of a part")
    assert found % accumulate == 0


def test_one_device_needs_no_rounding():
    assert [mesh.round_up_rows(mesh.make_mesh(jax.devices()[:1]), rows) for rows in (1, 2, 7)] == [1, 2, 7]


def test_only_a_tpu_that_gathers_weights_is_given_options():
    """They are the TPU compiler's own; another ends at a name that it does not know."""
    devices = jax.devices()[:2]
    split = mesh.make_mesh(devices, MeshConfig(1, 2, 1))
    assert mesh.gather_options(split) is None
    chip = types.SimpleNamespace(platform="tpu")
    for sizes, given in (((1, 2, 1), True), ((2, 1, 1), False)):
        tpu = types.SimpleNamespace(devices=np.array([chip, chip]).reshape(sizes), shape={"fsdp": sizes[1]})
        assert (mesh.gather_options(tpu) is not None) == given
