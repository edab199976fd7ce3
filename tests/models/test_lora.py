import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny

from selfparam_jax.distributed import backend
from selfparam_jax.models.decoder import Decoder, Projection, param_shapes
from selfparam_jax.models.lora import (
    MODULES,
    DeltaSum,
    LazyKernel,
    LoraConfig,
    compose_lora,
    delta_norms,
    extend_lora,
    init_lora,
    merge_adapters,
    merge_adapters_lazily,
    merge_lora,
    merge_lora_lazily,
    parameter_count,
    recompress_lora,
)

ALL = LoraConfig(rank=3, alpha=6.0, dropout=0.5, target_modules=tuple(MODULES))


def random_adapter(params, config=ALL, seed=0):
    """An adapter whose `b` is not zero."""
    lora = init_lora(jax.random.key(seed), params, config)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), jnp.float32), lora)


@functools.partial(jax.jit, static_argnames=("model", "deterministic"))
def run(model, variables, ids, positions, deterministic, key):
    rngs = None if key is None else {"dropout": key}
    return model.apply(variables, ids, positions, jnp.ones_like(ids), deterministic=deterministic, rngs=rngs)[0]


def hidden_of(model, variables, ids, deterministic=True, key=None):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    return np.asarray(run(model, variables, jnp.asarray(ids), positions, deterministic, key))


@pytest.fixture
def student(tiny_model):
    return Decoder(tiny_model.config, lora_scale=ALL.scale, lora_dropout=ALL.dropout)


# --- a fresh adapter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_fresh_adapter_is_bitwise_the_teacher(tiny_model, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), tiny_model.params)
    lora = init_lora(jax.random.key(0), params, ALL)
    model = Decoder(tiny_model.config, dtype=dtype, lora_scale=ALL.scale)
    ids = tiny.token_ids(9)
    teacher, student = (hidden_of(model, v, ids) for v in ({"params": params}, {"params": params, "lora": lora}))
    np.testing.assert_array_equal(teacher, student)
    merged = merge_lora(params, lora, ALL.scale)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_shapes_and_values_of_a_fresh_adapter(tiny_model):
    lora = init_lora(jax.random.key(0), tiny_model.params, ALL)
    sizes = {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32)}
    sizes |= {"gate_proj": (32, 48), "up_proj": (32, 48), "down_proj": (48, 32)}
    assert sorted(lora) == ["layers"]
    assert {n for projections in lora["layers"].values() for n in projections} == set(sizes)
    for name, (inputs, outputs) in sizes.items():
        factors = lora["layers"][MODULES[name]][name]
        assert factors["a"].shape == (3, inputs, 3)
        assert factors["b"].shape == (3, 3, outputs)
        assert factors["a"].dtype == factors["b"].dtype == jnp.float32
        assert not factors["b"].any()
        # Uniform in +-1/sqrt(inputs): a standard deviation of that bound over sqrt(3).
        assert np.abs(factors["a"]).max() <= inputs**-0.5
        assert float(factors["a"].std()) == pytest.approx((3 * inputs) ** -0.5, rel=0.15)
    assert parameter_count(lora) == 3 * 3 * sum(map(sum, sizes.values()))
    flat = [np.asarray(f["a"])[:, :16].ravel() for p in lora["layers"].values() for f in p.values()]
    assert len({a.tobytes() for a in flat}) == 7  # no two projections start alike


def test_initialisation_depends_on_the_key_and_on_shapes_only(tiny_model):
    first, again = (init_lora(jax.random.key(1), tiny_model.params, ALL) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    shapes = param_shapes(tiny_model.config)
    jax.tree.map(np.testing.assert_array_equal, first, init_lora(jax.random.key(1), shapes, ALL))
    other = init_lora(jax.random.key(2), tiny_model.params, ALL)
    q = first["layers"]["self_attn"]["q_proj"]["a"]
    assert (q != other["layers"]["self_attn"]["q_proj"]["a"]).all()


# --- what it computes ---------------------------------------------------------------------------------


def test_one_projection_by_hand():
    x = np.array([[[1.0, 2.0]]], np.float32)
    params = {"kernel": jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])}
    # x a = 1*3 + 2*(-1) = 1, times b = (2, 4, 6), times alpha / rank = 8 / 2.
    lora = {"a": jnp.array([[3.0, 0.0], [-1.0, 0.0]]), "b": jnp.array([[2.0, 4.0, 6.0], [9.0, 9.0, 9.0]])}
    scale = LoraConfig(rank=2, alpha=8.0).scale
    assert scale == 4.0
    layer = Projection(3, False, scale, 0.0)
    found = layer.apply({"params": params, "lora": lora}, jnp.asarray(x), True)
    assert found.tolist() == [[[1.0 + 8.0, 2.0 + 16.0, 3.0 + 24.0]]]
    with_bias = Projection(3, True, scale, 0.0)
    params["bias"] = jnp.array([0.5, 0.0, -1.0])
    found = with_bias.apply({"params": params, "lora": lora}, jnp.asarray(x), True)
    assert found.tolist() == [[[9.5, 18.0, 26.0]]]


def test_defaults_are_those_of_the_configurations():
    config = LoraConfig()
    assert (config.rank, config.alpha, config.scale, config.dropout) == (8, 16.0, 2.0, 0.0)
    assert set(config.target_modules) == set(MODULES) - {"o_proj"}


@pytest.mark.parametrize("case", ["gqa", "biases", "mqa"])
def test_merged_equals_adapter(case, random_params):
    from selfparam_jax.models.registry import model_config_from_hf

    config = model_config_from_hf(tiny.hf_config(case))
    params = random_params(config)
    lora = random_adapter(params)
    model, ids = Decoder(config, lora_scale=ALL.scale), tiny.token_ids(12)
    adapted = hidden_of(model, {"params": params, "lora": lora}, ids)
    merged = hidden_of(model, {"params": merge_lora(params, lora, ALL.scale)}, ids)
    np.testing.assert_allclose(adapted, merged, rtol=0, atol=3e-5)
    assert np.abs(adapted - hidden_of(model, {"params": params}, ids)).max() > 0.3


def test_merging_rounds_once(tiny_model):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_model.params)
    lora = random_adapter(params)
    merged = merge_lora(params, lora, 2.0)
    for name, module in MODULES.items():
        kernel = np.asarray(params["layers"][module][name]["kernel"]).astype(np.float64)
        factors = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), lora["layers"][module][name])
        exact = kernel + 2.0 * factors["a"] @ factors["b"]
        found = merged["layers"][module][name]["kernel"]
        assert found.dtype == jnp.bfloat16
        # float32 sums may fall on the other side of a tie now and then; a delta rounded on its own
        # to bfloat16 would differ in a fifth of the entries.
        once, twice = (
            exact.astype(ml_dtypes.bfloat16),
            (kernel + (exact - kernel).astype(ml_dtypes.bfloat16).astype(np.float64)).astype(ml_dtypes.bfloat16),
        )
        assert np.mean(np.asarray(found) != once) < 0.002
        assert np.mean(twice != once) > 0.05  # the test can tell


def test_merge_leaves_its_inputs_and_the_rest_alone(tiny_model):
    params = tiny_model.params
    before = jax.tree.map(np.array, params)
    config = LoraConfig(rank=2, target_modules=("v_proj", "down_proj"))
    merged = merge_lora(params, random_adapter(params, config), config.scale)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    changed = {
        tuple(key.key for key in path)
        for (path, old), new in zip(
            jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(merged), strict=True
        )
        if (old != new).any()
    }
    assert changed == {("layers", "self_attn", "v_proj", "kernel"), ("layers", "mlp", "down_proj", "kernel")}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lazily_merged_kernels_are_the_merged_kernels(tiny_model, dtype, monkeypatch):
    """Nothing is merged before it is read, every reading gives the merged kernel, and nothing else is touched."""
    from selfparam_jax.models import lora as module

    params = jax.tree.map(lambda leaf: leaf.astype(dtype), tiny_model.params)
    config = LoraConfig(rank=2, alpha=8.0, target_modules=("v_proj", "down_proj"))  # scaling by 4 rounds nothing
    adapter = random_adapter(params, config)
    merged = merge_lora(params, adapter, config.scale)
    calls, merge_now = [], module.merge_kernel
    monkeypatch.setattr(module, "merge_kernel", lambda *args: (calls.append(args), merge_now(*args))[1])
    lazy = merge_lora_lazily(params, adapter, config.scale)
    assert jax.tree.structure(lazy) == jax.tree.structure(params)
    assert not calls
    seen = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(lazy):
        expected, names = merged, [key.key for key in path]
        for name in names:
            expected = expected[name]
        assert leaf.shape == expected.shape
        if not isinstance(leaf, LazyKernel):
            assert leaf is expected  # the base's own array, in both
            continue
        seen.add(tuple(names))
        for found in (np.asarray(leaf), np.array(leaf)):
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, expected)
        half = np.asarray(leaf, np.float16)
        np.testing.assert_array_equal(half, np.asarray(leaf).astype(np.float16))
    assert seen == {("layers", "self_attn", "v_proj", "kernel"), ("layers", "mlp", "down_proj", "kernel")}
    assert len(calls) == 4 * len(seen)


# --- several adapters ---------------------------------------------------------------------------------


def host_adapter(params, seed, rank=3, targets=tuple(MODULES)):
    """An adapter of NumPy arrays, so that nothing is compiled for it."""
    rng = np.random.default_rng(seed)
    layers = {}
    for name in targets:
        depth, inputs, outputs = params["layers"][MODULES[name]][name]["kernel"].shape
        shapes = {"a": (depth, inputs, rank), "b": (depth, rank, outputs)}
        factors = {key: np.float32(0.2) * rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
        layers.setdefault(MODULES[name], {})[name] = factors
    return {"layers": layers}


@pytest.fixture(scope="module")
def injections(tiny_model):
    """A bfloat16 base and twenty adapters, each some percent of it, with their scales."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_model.params)
    return params, [(host_adapter(params, seed), 0.1 + 0.03 * seed) for seed in range(20)]


def exact_delta(adapters, module, name):
    """The sum of `scale * a @ b` in float64 over the adapters that have the projection."""
    having = [(lora["layers"].get(module, {}).get(name), scale) for lora, scale in adapters]
    return sum(
        scale * np.asarray(factors["a"], np.float64) @ np.asarray(factors["b"], np.float64)
        for factors, scale in having
        if factors
    )


def kernels(params):
    """((module, name), kernel) of all projections."""
    for name, module in MODULES.items():
        yield (module, name), params["layers"][module][name]["kernel"]


def steps_apart(a, b):
    """How many bfloat16 numbers lie between, plus one; 0 if equal."""
    ordered = []
    for each in (a, b):
        bits = np.asarray(each).astype(ml_dtypes.bfloat16).view(np.int16).astype(np.int64)
        ordered.append(np.where(bits < 0, -(bits & 0x7FFF), bits))
    return np.abs(ordered[0] - ordered[1])


def test_twenty_adapters_lose_nothing(injections):
    """Equal to float64 rounded once but for ties; merged one after another in bfloat16 they do lose."""
    params, adapters = injections
    merged = merge_adapters(params, adapters)
    repeated = params
    for lora, scale in adapters:
        repeated = merge_lora(repeated, lora, scale)
    differing = count = 0
    lost = {"once": 0.0, "repeated": 0.0}
    for key, kernel in kernels(params):
        exact = np.asarray(kernel, np.float64) + exact_delta(adapters, *key)
        found, again = (tree["layers"][key[0]][key[1]]["kernel"] for tree in (merged, repeated))
        assert found.dtype == jnp.bfloat16
        found = np.asarray(found)
        apart = steps_apart(found, exact)
        # Half a step of bfloat16, and what float32 can tell of a sum of these terms (a few units of their sizes).
        terms = np.abs(np.asarray(kernel, np.float64)) + exact_delta(jax.tree.map(np.abs, adapters), *key)
        half = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 8)
        assert (np.abs(found.astype(np.float64) - exact) <= half + 4 * 2.0**-24 * terms).all()
        assert apart[np.abs(exact) > 1e-3].max() <= 1  # a sum that cancels has smaller steps than float32 had
        differing, count = differing + np.sum(apart > 0), count + apart.size
        lost["once"] += np.sum((found.astype(np.float64) - exact) ** 2)
        lost["repeated"] += np.sum((np.asarray(again, np.float64) - exact) ** 2)
    assert differing / count < 0.001
    factor = np.sqrt(lost["repeated"] / lost["once"])
    assert 3 < factor < 6, factor  # twenty independent roundings: about the root of 20


def test_the_order_of_merging_and_none_at_all(injections):
    params, adapters = injections
    jax.tree.map(np.testing.assert_array_equal, merge_adapters(params, []), params)
    forward, backward = merge_adapters(params, adapters), merge_adapters(params, adapters[::-1])
    for a, b in zip(jax.tree.leaves(forward), jax.tree.leaves(backward), strict=True):
        assert steps_apart(a, b).max() <= 1


def test_one_more_adapter_is_one_more_sum_and_no_other_program(injections):
    """A sum that grows gives the bits of merging all at once, and neither compiles for a number of adapters."""
    params, adapters = injections
    counts, total, compiled = [], DeltaSum(params), backend.prepare(None)
    jax.tree.map(np.testing.assert_array_equal, total.merged(), params)
    for number in range(1, 5):
        total.add(*adapters[number - 1])
        jax.tree.map(np.testing.assert_array_equal, total.merged(), merge_adapters(params, adapters[:number]))
        counts.append(compiled.programs)
    assert counts[1:] == counts[:1] * 3
    with pytest.raises(ValueError, match="no such kernel"):
        total.add({"layers": {"mlp": {"gate": adapters[0][0]["layers"]["mlp"]["up_proj"]}}}, 1.0)


def test_merging_from_the_device_and_lazily_is_the_same(injections):
    params, adapters = injections[0], injections[1][:2]
    merged = merge_adapters(params, adapters)
    device = [(jax.tree.map(jnp.asarray, lora), scale) for lora, scale in adapters]
    jax.tree.map(np.testing.assert_array_equal, merge_adapters(params, device), merged)
    for key, kernel in kernels(merge_adapters_lazily(params, adapters)):
        assert isinstance(kernel, LazyKernel)
        np.testing.assert_array_equal(np.asarray(kernel), merged["layers"][key[0]][key[1]]["kernel"])


def test_composing_is_merging(injections, tiny_model):
    """Of adapters with other targets and ranks, too; scales go into b."""
    params, some = tiny_model.params, injections[1][:2]
    other = (host_adapter(params, 7, 5, ("v_proj", "down_proj")), -1.5)
    adapters = [*some, other, (host_adapter(params, 8, 1, ("v_proj",)), 0.3)]
    composed = compose_lora(adapters)
    assert {name for projections in composed["layers"].values() for name in projections} == set(MODULES)
    ranks = {name: composed["layers"][module][name]["a"].shape[2] for name, module in MODULES.items()}
    assert ranks == dict.fromkeys(MODULES, 6) | {"down_proj": 11, "v_proj": 12}
    found, wanted = merge_lora(params, composed, 1.0), merge_adapters(params, adapters)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), found, wanted)
    for (module, name), kernel in kernels(found):
        old = np.asarray(params["layers"][module][name]["kernel"], np.float64)
        np.testing.assert_allclose(kernel, old + exact_delta(adapters, module, name), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(
        composed["layers"]["self_attn"]["v_proj"]["b"][:, -1],
        0.3 * adapters[3][0]["layers"]["self_attn"]["v_proj"]["b"][:, 0],
    )
    assert compose_lora([]) == {"layers": {}}


def test_composing_on_the_host_stays_there(injections):
    some = [(lora, np.float64(scale)) for lora, scale in injections[1][:2]]
    host = compose_lora(some)
    device = compose_lora([(jax.tree.map(jnp.asarray, lora), scale) for lora, scale in some])
    assert {(type(leaf), leaf.dtype) for leaf in jax.tree.leaves(host)} == {(np.ndarray, np.dtype(np.float32))}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(device))
    jax.tree.map(np.testing.assert_array_equal, host, device)


def test_adapters_of_other_models_are_refused(tiny_model):
    params = tiny_model.params
    lora = host_adapter(params, 0)
    wide = jax.tree.map(lambda leaf: leaf, lora)
    wide["layers"]["mlp"]["up_proj"] = {"a": jnp.zeros((3, 32, 2)), "b": jnp.zeros((3, 2, 49))}
    with pytest.raises(ValueError, match=r"different shapes at mlp\.up_proj: \[\(3, 32, 48\), \(3, 32, 49\)\]"):
        compose_lora([(lora, 1.0), (wide, 1.0)])
    for merge in (merge_adapters, merge_adapters_lazily):
        with pytest.raises(
            ValueError, match=r"shape \(3, 32, 48\) for mlp\.up_proj, .* \(3, 32, 49\); give the model"
        ):
            merge(params, [(wide, 1.0)])
        strange = {"layers": {"moe": {"gate": wide["layers"]["mlp"]["up_proj"]}}}
        with pytest.raises(ValueError, match=r"no such kernel for moe\.gate"):
            merge(params, [(strange, 1.0)])


def product(lora, module, name):
    factors = lora["layers"][module][name]
    return np.asarray(factors["a"], np.float64) @ np.asarray(factors["b"], np.float64)


def truncated(matrix, rank):
    """NumPy's SVD of the whole matrices, cut off."""
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[..., :rank] * values[:, None, :rank]) @ v[:, :rank]


def test_recompressing_at_full_rank_is_exact(injections):
    """Twice the same adapter has half its rank; and no product has a higher rank than its kernel's sides."""
    lora = injections[1][0][0]
    doubled = compose_lora([(lora, 1.0), (lora, 1.0)])
    many = compose_lora(injections[1])
    for whole, rank in ((doubled, 3), (many, 48)):
        found, error = recompress_lora(whole, rank)
        assert error["overall"] < 1e-7 and max(error["modules"].values()) < 1e-7
        for name, module in MODULES.items():
            factors, wanted = found["layers"][module][name], product(whole, module, name)
            assert factors["a"].shape[2] == factors["b"].shape[1] == min(rank, *wanted.shape[1:])
            assert factors["a"].dtype == factors["b"].dtype == np.float32
            largest = np.abs(wanted).max()
            np.testing.assert_allclose(product(found, module, name), wanted, rtol=0, atol=1e-6 * largest)
    same, error = recompress_lora(doubled, 6)
    assert error == {"overall": 0.0, "modules": {f"{MODULES[name]}.{name}": 0.0 for name in MODULES}}
    assert all(a is b for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(doubled), strict=True))


def test_recompressing_is_the_truncated_svd(injections):
    composed = compose_lora(injections[1][:4])  # of rank 12
    composed["layers"]["self_attn"]["k_proj"] = injections[1][0][0]["layers"]["self_attn"]["k_proj"]  # of rank 3
    found, error = recompress_lora(composed, 5)
    lost = whole = 0.0
    for name, module in MODULES.items():
        exact = product(composed, module, name)
        best = truncated(exact, 5)
        assert found["layers"][module][name]["a"].shape[2] == (3 if name == "k_proj" else 5)
        np.testing.assert_allclose(product(found, module, name), best, rtol=0, atol=1e-6 * np.abs(exact).max())
        relative = np.linalg.norm(exact - best) / np.linalg.norm(exact)
        assert error["modules"][f"{module}.{name}"] == pytest.approx(relative, rel=1e-6, abs=1e-12)
        assert (relative > 0.1) == (name != "k_proj")
        lost, whole = lost + np.sum((exact - best) ** 2), whole + np.sum(exact**2)
    assert error["overall"] == pytest.approx(np.sqrt(lost / whole), rel=1e-6)
    balance = [np.linalg.norm(found["layers"]["mlp"]["up_proj"][factor]) for factor in "ab"]
    assert balance[0] == pytest.approx(balance[1], rel=1e-5)


def test_recompressing_nothing_and_to_nothing(tiny_model):
    fresh = init_lora(jax.random.key(0), tiny_model.params, ALL)
    found, error = recompress_lora(fresh, 1)
    assert error["overall"] == 0.0 and set(error["modules"].values()) == {0.0}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    with pytest.raises(ValueError, match="got rank 0 to recompress to, expected at least 1"):
        recompress_lora(fresh, 0)


def test_norms_of_deltas(injections):
    lora = injections[1][3][0]
    found = delta_norms(lora, -0.7)
    assert set(found) == {f"{module}.{name}" for name, module in MODULES.items()}
    for name, module in MODULES.items():
        expected = 0.7 * np.linalg.norm(product(lora, module, name))
        assert found[f"{module}.{name}"] == pytest.approx(expected, rel=1e-9)
    cancelling = compose_lora([(lora, 1.0), (lora, -1.0)])
    assert max(delta_norms(cancelling, 1.0).values()) < 1e-6


def test_targets_subset(tiny_model):
    config = LoraConfig(rank=2, target_modules=("v_proj",))
    lora = init_lora(jax.random.key(0), tiny_model.params, config)
    assert jax.tree.map(jnp.shape, lora) == {"layers": {"self_attn": {"v_proj": {"a": (3, 32, 2), "b": (3, 2, 16)}}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, r"lora\.rank = 0, expected a whole number from 1 to 16384"),
        ({"dropout": 1.0}, r"lora\.dropout = 1\.0, expected a number from 0 to below 1"),
        ({"dropout": -0.1}, r"lora\.dropout = -0\.1"),
        (
            {"target_modules": ("q_proj", "lm_head")},
            r"lora\.target_modules = .*'lm_head'.*expected some of .*down_proj",
        ),
        ({"alpha": float("nan")}, r"lora\.alpha = nan, expected a number from 1e-06 to 1000000"),
        ({"alpha": 0.0}, r"lora\.alpha = 0\.0, expected a number from 1e-06"),
        ({"target_modules": ()}, r"lora\.target_modules = \(\), expected some of"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**changes)


# --- dropout ------------------------------------------------------------------------------------------


def test_dropout_only_when_not_deterministic(tiny_model, student):
    variables = {"params": tiny_model.params, "lora": random_adapter(tiny_model.params)}
    ids, key = tiny.token_ids(8), jax.random.key(0)
    still = hidden_of(student, variables, ids)
    np.testing.assert_array_equal(still, hidden_of(student, variables, ids, True, key))
    without = Decoder(tiny_model.config, lora_scale=ALL.scale, lora_dropout=0.0)
    np.testing.assert_array_equal(still, hidden_of(without, variables, ids))
    moving = hidden_of(student, variables, ids, False, key)
    assert np.abs(moving - still).max() > 0.05
    np.testing.assert_array_equal(moving, hidden_of(student, variables, ids, False, key))
    assert (moving != hidden_of(student, variables, ids, False, jax.random.key(1))).any()
    # No adapter, or one that is still zero: the teacher knows no dropout.
    fresh = init_lora(jax.random.key(0), tiny_model.params, ALL)
    teacher = hidden_of(student, {"params": tiny_model.params}, ids)
    np.testing.assert_array_equal(teacher, hidden_of(student, {**variables, "lora": fresh}, ids, False, key))


def test_dropout_is_on_the_adapters_input_and_keeps_the_mean():
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.broadcast_to(rng.standard_normal((1, 1, 16)), (64, 64, 16)), jnp.float32)
    params = {"kernel": jnp.asarray(rng.standard_normal((16, 4)), jnp.float32)}
    lora = {name: jnp.asarray(rng.standard_normal(s), jnp.float32) for name, s in (("a", (16, 2)), ("b", (2, 4)))}
    layer = Projection(4, False, 1.0, 0.5)
    variables = {"params": params, "lora": lora}
    dropped = layer.apply(variables, x, False, rngs={"dropout": jax.random.key(0)})
    plain = layer.apply({"params": params}, x[:1, :1], True)
    adapted = layer.apply(variables, x[:1, :1], True)
    # Half of 16 inputs, doubled: the variance is the sum over inputs of (x_i * (a b)_i)^2.
    spread = np.sqrt(np.sum((np.asarray(x[0, 0])[:, None] * np.asarray(lora["a"] @ lora["b"])) ** 2, axis=0))
    found = np.asarray(dropped - plain).reshape(-1, 4)
    np.testing.assert_allclose(found.std(axis=0), spread, rtol=0.05)
    wanted = np.asarray(adapted - plain)[0, 0]
    assert (np.abs(found.mean(axis=0) - wanted) < 4 * spread / 64).all()


def test_extended_adapters(tiny_model):
    """The same product; factors that are 0 on both sides, and those that are added, are drawn and can learn."""
    config = LoraConfig(rank=3, alpha=6.0, target_modules=("q_proj", "up_proj"))
    key = jax.random.key(7)
    given = random_adapter(tiny_model.params, LoraConfig(rank=2, target_modules=("q_proj", "v_proj")))
    q = given["layers"]["self_attn"]["q_proj"]
    q["a"], q["b"] = q["a"].at[1, :, 1].set(0), q["b"].at[1, 1].set(0)
    made = extend_lora(key, tiny_model.params, config, given, 0.5)
    drawn = init_lora(
        key, tiny_model.params, dataclasses.replace(config, target_modules=("q_proj", "up_proj", "v_proj"))
    )
    merged = [merge_lora(tiny_model.params, *each)["layers"] for each in ((given, 0.5), (made, config.scale))]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), *merged)
    ours, theirs = (each["layers"]["self_attn"]["q_proj"] for each in (made, drawn))
    assert ours["a"].shape[2] == 3 and made["layers"]["self_attn"]["v_proj"]["a"].shape[2] == 2
    np.testing.assert_array_equal(ours["a"][:, :, 2], theirs["a"][:, :, 2])
    np.testing.assert_array_equal(ours["a"][1, :, 1], theirs["a"][1, :, 1])
    np.testing.assert_array_equal(ours["a"][0, :, :2], q["a"][0])
    jax.tree.map(np.testing.assert_array_equal, made["layers"]["mlp"], drawn["layers"]["mlp"])
    with pytest.raises(ValueError, match=r"a kernel of shape .* for self_attn\.q_proj, but the adapter is for one"):
        q["b"] = q["b"][:, :, 1:]
        extend_lora(key, tiny_model.params, config, given, 0.5)
