"""Costs: what is read from a compiled program is what can be worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selfparam_jax.plan.costs import costs, item_bytes


def text_of(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def over(sizes, names):
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))


def test_products_in_a_loop_count_as_often_as_it_runs():
    x, w = jnp.ones((6, 16)), jnp.ones((5, 16, 16))

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    assert costs(text_of(layers, x, w)).flops == 5 * 2 * 6 * 16 * 16
    twice = costs(text_of(lambda x, w: layers(layers(x, w), w) @ w[0, :, :4], x, w))
    assert twice.flops == 2 * 5 * 2 * 6 * 16 * 16 + 2 * 6 * 16 * 4


def test_a_loop_that_does_not_say_how_often_it_runs():
    w = jnp.ones((8, 8))

    def loop(x, w, count):
        return jax.lax.fori_loop(0, count, lambda _, x: jnp.tanh(x @ w), x)

    text = text_of(loop, jnp.ones((4, 8)), w, 3)
    assert costs(text).flops == 2 * 4 * 8 * 8
    assert costs(text, unknown_trips=7).flops == 7 * 2 * 4 * 8 * 8


def test_batched_products():
    a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))
    assert costs(text_of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), a, b)).flops == 3 * 2 * 4 * 5 * 6


def test_what_crosses_devices():
    devices = over((2, 4), ("a", "b"))

    def put(shape, *split):
        return jax.device_put(jnp.ones(shape), NamedSharding(devices, PartitionSpec(*split)))

    x, w = put((8, 64), "a", "b"), put((64, 32), "b", None)
    # Summed over the four that share the inner axis: [4, 32] of float32, twice 3/4 of it.
    assert costs(text_of(jnp.matmul, x, w)).sent == {"all-reduce": 2 * 0.75 * 4 * 32 * 4}

    def gathered(x):
        return jax.lax.with_sharding_constraint(x, NamedSharding(devices, PartitionSpec("a")))

    assert costs(text_of(gathered, x)).sent == {"all-gather": 0.75 * 4 * 64 * 4}


@pytest.mark.parametrize(
    ("groups", "size"),
    [("{{0,1,2,3},{4,5,6,7}}", 4), ("[4,2]<=[8]", 2), ("mesh['x'=4,'y'=2] {'x'}, dimensions={0}", 4),
     ("mesh['x'=4,'y'=2] {'x','y'}", 8)],
)  # fmt: skip
def test_the_ways_to_write_groups(groups, size):
    text = (
        "ENTRY %main (p: f32[10]) -> f32[10] {\n"
        "  %p = f32[10]{0} parameter(0)\n"
        f"  ROOT %r = f32[10]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%sum\n}}\n"
    )
    assert costs(text).sent["all-reduce"] == pytest.approx(2 * 40 * (size - 1) / size)
    with pytest.raises(ValueError, match=r"costs\.py must learn"):
        costs(text.replace(groups, "<new>"))


def test_bytes_of_types():
    assert [item_bytes(name) for name in ("f32", "bf16", "s4", "pred", "u8", "f8e4m3fn")] == [4, 2, 0.5, 1, 1, 1]
