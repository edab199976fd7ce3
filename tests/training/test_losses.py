import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extras import require
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selfparam_jax.models.decoder import CappedHead
from selfparam_jax.training.losses import DEFAULT_CHUNK, Signal, chunked_loss, kl_from_logits

GROUPS, POSITIONS, SIZE, VOCABULARY = 4, 10, 6, 37
USED = (7, POSITIONS, 0, 1)
KINDS = ("kl", "next token", "both")
TEMPERATURES = (0.5, 1.0, 2.5)
CHUNKS = (1, 5, 4, 64)  # one, a divisor of POSITIONS, not a divisor, more than there are
# (temperature, chunk): every one of either, but not every pair, to spare compilations.
SETTINGS = sorted({(2.5, chunk) for chunk in CHUNKS} | {(temperature, 4) for temperature in TEMPERATURES})


def make_case(kind="both", used=USED, positions=POSITIONS, size=SIZE, vocabulary=VOCABULARY, seed=0):
    """(student, head, signal); logits of a size at which softmax is not flat, weights of 0 among those in use."""
    rng = np.random.default_rng(seed)
    shape = (len(used), positions)
    student, teacher, head = (
        rng.standard_normal(s).astype(np.float32) for s in ((*shape, size), (*shape, size), (vocabulary, size))
    )
    weights, supervision = (rng.choice([0.25, 1.0, 3.0], shape).astype(np.float32) for _ in range(2))
    weights[:, 1::3] = 0.0
    supervision[:, 2::4] = 0.0
    targets = rng.integers(0, vocabulary, shape).astype(np.int32)
    signal = Signal(np.array(used, np.int32))
    if kind != "next token":
        signal = signal.replace(teacher=teacher, weights=weights)
    if kind != "kl":
        signal = signal.replace(targets=targets, supervision=supervision)
    return as_jax((student, head, signal))


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def in_use(signal, positions=POSITIONS):
    """Bool [S, N]."""
    return np.arange(positions)[None] < np.asarray(signal.used)[:, None]


def fill(array, where, value):
    """`array` with `value` at the places [S, N] that `where` names."""
    return jnp.asarray(np.where(where.reshape(where.shape + (1,) * (array.ndim - where.ndim)), value, array))


def direct_loss(student, head, signal, temperature=1.0, cap=None, by_confidence=False):
    """The same loss with the logits of all positions at once."""

    def logits_of(states):
        logits = jnp.einsum("snd,vd->snv", states, head)
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    valid = jnp.arange(student.shape[1])[None] < signal.used[:, None]
    logits = logits_of(student)
    total, count = jnp.zeros(()), jnp.zeros(())
    if by_confidence:
        p = jax.nn.softmax(logits_of(signal.teacher) / temperature, axis=-1)
        kept = jnp.take_along_axis(p, signal.targets[..., None], axis=-1)[..., 0]
        kept = jnp.where(signal.supervision > 0, kept, 1.0)
        moved = signal.weights * (1 - kept)
        signal = signal.replace(weights=signal.weights * kept, supervision=signal.supervision + moved)
    if signal.teacher is not None:
        p = jax.nn.log_softmax(logits_of(signal.teacher) / temperature, axis=-1)
        q = jax.nn.log_softmax(logits / temperature, axis=-1)
        weights = jnp.where(valid, signal.weights, 0.0)
        total += jnp.sum(weights * jnp.sum(jnp.exp(p) * (p - q), axis=-1))
        count += jnp.sum(weights)
    if signal.targets is not None:
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), signal.targets[..., None], axis=-1)
        supervision = jnp.where(valid, signal.supervision, 0.0)
        total -= jnp.sum(supervision * log_p[..., 0])
        count += jnp.sum(supervision)
    return total, count


@functools.cache
def chunked(temperature=1.0, chunk=DEFAULT_CHUNK):
    """Jitted (student, head, signal) -> ((sum of losses, sum of weights), gradient of the student)."""
    loss = functools.partial(chunked_loss, temperature=temperature, chunk=chunk)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def direct(temperature=1.0):
    return jax.jit(jax.value_and_grad(functools.partial(direct_loss, temperature=temperature), has_aux=True))


def assert_close(found, expected, tolerance=1e-5):
    """Each number to `tolerance` of itself, or, where it is the rest of a cancellation, of the largest."""
    expected = np.asarray(expected, np.float64)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=tolerance, atol=tolerance * largest)


def assert_same_result(found, expected, tolerance=1e-5):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.shape == theirs.shape
        assert_close(ours, theirs, tolerance)


def test_a_capped_head():
    """Both losses and their gradient where the logits are cap * tanh(logits / cap), as in Gemma 2."""
    student, head, signal = make_case("both")
    loss = functools.partial(direct_loss, temperature=2.5, cap=1.5)
    expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(student, head, signal)
    found = chunked(2.5, 4)(student, CappedHead(head, 1.5), signal)
    assert_same_result(found, expected)
    assert np.abs(np.asarray(found[1]) - np.asarray(chunked(2.5, 4)(student, head, signal)[1])).max() > 0.1


@pytest.mark.parametrize(("temperature", "chunk"), SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_equal_the_direct_computation(kind, temperature, chunk):
    student, head, signal = make_case(kind)
    (total, count), gradient = chunked(temperature, chunk)(student, head, signal)
    assert total.dtype == count.dtype == gradient.dtype == jnp.float32
    assert total.shape == count.shape == ()
    assert_same_result(((total, count), gradient), direct(temperature)(student, head, signal))
    assert float(total) > 1.0
    valid = in_use(signal)
    weights = sum(np.asarray(w) for w in (signal.weights, signal.supervision) if w is not None)
    assert float(count) == float(weights[valid].sum())  # multiples of 1/4: exact
    assert not np.any(gradient[~valid])
    assert not np.any(gradient[valid & (weights == 0)])
    assert np.all(np.any(gradient[valid & (weights > 0)], axis=-1))
    assert (valid & (weights > 0)).sum() >= 9  # of the 18 in use


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_doubting_teacher_leaves_its_weight_to_the_next_token_loss(temperature):
    student, head, signal = make_case("both")
    loss = functools.partial(direct_loss, temperature=temperature, by_confidence=True)
    (total, count), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(student, head, signal)
    ours = functools.partial(chunked_loss, temperature=temperature, chunk=4, by_confidence=True)
    found = jax.jit(jax.value_and_grad(ours, has_aux=True))(student, head, signal)
    assert_same_result(found, ((total, count), gradient))
    plain = chunked(temperature, 4)(student, head, signal)
    assert float(count) == pytest.approx(float(plain[0][1]))  # no weight is lost
    assert abs(float(total) - float(plain[0][0])) > 1.0


@pytest.mark.parametrize("kind", ["kl", "next token"])
def test_alone_a_loss_keeps_its_weight_whatever_the_teacher_thinks(kind):
    student, head, signal = make_case(kind)
    found = chunked_loss(student, head, signal, 2.5, 4, by_confidence=True)
    assert_same_result(found, chunked_loss(student, head, signal, 2.5, 4))


def test_a_sure_and_a_doubting_teacher_by_hand():
    """Two words; the student thinks both equally likely, and the second is said."""
    head, student = jnp.eye(2), jnp.zeros((1, 2, 2))
    teacher = jnp.log(jnp.array([[[0.1, 0.9], [0.75, 0.25]]]))
    ones = jnp.ones((1, 2))
    signal = Signal(jnp.array([2], jnp.int32), teacher, ones, jnp.array([[1, 1]], jnp.int32), 0.5 * ones)
    total, count = chunked_loss(student, head, signal, by_confidence=True)
    kl = [p * math.log(2 * p) + (1 - p) * math.log(2 - 2 * p) for p in (0.9, 0.25)]
    expected = 0.9 * kl[0] + 0.25 * kl[1] + (0.5 + 0.1 + 0.5 + 0.75) * math.log(2)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(count) == 3.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_without_a_derivative_is_the_same(kind):
    student, head, signal = make_case(kind)
    found = chunked_loss(student, head, signal, 2.5, 4)
    assert [x.dtype for x in found] == [jnp.float32] * 2
    assert_same_result(found, direct(2.5)(student, head, signal)[0])


def test_the_kinds_of_weights_are_not_exchanged():
    student, head, signal = make_case("both")
    only_kl = signal.replace(supervision=jnp.zeros_like(signal.supervision))
    only_next = signal.replace(weights=jnp.zeros_like(signal.weights))
    assert_same_result(chunked(chunk=4)(student, head, only_kl), direct()(*make_case("kl")))
    assert_same_result(chunked(chunk=4)(student, head, only_next), direct()(*make_case("next token")))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("used", [(POSITIONS,) * 4, (0,) * 4, (0, POSITIONS, 4, 8), (5,) * 4, (0, 0, 1, 0)])
def test_any_number_of_positions_in_use(used, chunk):
    student, head, signal = make_case("both", used)
    found = chunked(2.5, chunk)(student, head, signal)
    assert_same_result(found, direct(2.5)(student, head, signal))
    (total, count), gradient = found
    assert (float(total) > 0) == (float(count) > 0) == np.any(gradient) == (max(used) > 0)
    assert not np.any(gradient[~in_use(signal)])


@pytest.mark.parametrize(("used", "positions"), [((8,), 10), ((1,), 1), ((3, 2), 3)])
def test_any_number_of_groups_and_positions(used, positions):
    student, head, signal = make_case("both", used, positions)
    assert_same_result(chunked(2.5, 4)(student, head, signal), direct(2.5)(student, head, signal))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_equal_torch(kind, temperature):
    torch = require("torch")
    student, head, signal = make_case(kind)
    valid = torch.from_numpy(in_use(signal))
    leaf = torch.from_numpy(np.array(student)).double().requires_grad_()
    theirs = torch.zeros((), dtype=torch.float64)
    weight = torch.from_numpy(np.array(head)).double()
    logits = (leaf @ weight.T)[valid]
    if signal.teacher is not None:
        wanted = (torch.from_numpy(np.array(signal.teacher)).double() @ weight.T)[valid]
        p, q = (torch.log_softmax(x / temperature, dim=-1) for x in (wanted, logits))
        losses = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
        theirs = theirs + losses @ torch.from_numpy(np.array(signal.weights)).double()[valid]
    if signal.targets is not None:
        targets = torch.from_numpy(np.array(signal.targets)).long()[valid]
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        theirs = theirs + losses @ torch.from_numpy(np.array(signal.supervision)).double()[valid]
    theirs.backward()
    (total, _), gradient = chunked(temperature, 4)(student, head, signal)
    assert float(total) == pytest.approx(theirs.item(), rel=1e-5)
    assert_close(gradient, leaf.grad.numpy())
    assert np.abs(gradient).max() > 0.1


def test_kl_of_two_words_by_hand():
    logits = jnp.asarray(np.log([[0.5, 0.5], [0.25, 0.75]]), jnp.float32)
    forward, backward = kl_from_logits(logits[:1], logits[1:]), kl_from_logits(logits[1:], logits[:1])
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75), and with the roles exchanged: the direction matters.
    assert float(forward[0]) == pytest.approx(0.1438410, abs=1e-6)
    assert float(backward[0]) == pytest.approx(0.1308120, abs=1e-6)
    assert float(kl_from_logits(2 * logits[:1] + 5, 2 * logits[1:] - 3, 2.0)[0]) == pytest.approx(0.1438410, abs=1e-6)


def test_loss_of_three_words_by_hand():
    # Under the identity as head a hidden state is its own logits.
    head = jnp.eye(3)
    student, teacher = (jnp.asarray(np.log([[p]]), jnp.float32) for p in ([0.25, 0.5, 0.25], [0.5, 0.25, 0.25]))
    one, two = jnp.ones((1, 1)), jnp.full((1, 1), 2.0)
    used = jnp.ones(1, jnp.int32)
    kl = Signal(used, teacher=teacher, weights=two)
    next_token = Signal(used, targets=jnp.full((1, 1), 1), supervision=one)

    (total, count), gradient = chunked()(student, head, kl)
    # 0.5 ln(0.5 / 0.25) + 0.25 ln(0.25 / 0.5) + 0 = 0.25 ln 2, twice; the slope is p_student - p_teacher.
    assert (float(total), float(count)) == (pytest.approx(0.5 * math.log(2), rel=1e-6), 2.0)
    np.testing.assert_allclose(gradient, [[[-0.5, 0.5, 0.0]]], atol=1e-6)

    (total, count), gradient = chunked()(student, head, next_token)
    assert (float(total), float(count)) == (pytest.approx(math.log(2), rel=1e-6), 1.0)
    np.testing.assert_allclose(gradient, [[[0.25, -0.5, 0.25]]], atol=1e-6)

    # Temperature 2 on doubled logits is the same KL with half the slope. The next-token loss knows no temperature:
    # doubled logits are the squares of the probabilities, 1/6, 4/6, 1/6.
    both = kl.replace(teacher=2 * teacher, targets=next_token.targets, supervision=one)
    (total, count), gradient = chunked(2.0)(2 * student, head, both)
    assert float(total) == pytest.approx(0.5 * math.log(2) + math.log(1.5), rel=1e-6)
    assert float(count) == 3.0
    np.testing.assert_allclose(gradient, [[[-0.25 + 1 / 6, 0.25 - 1 / 3, 1 / 6]]], atol=1e-6)


@pytest.mark.parametrize(("temperature", "chunk"), SETTINGS)
def test_kl_to_itself_is_zero(temperature, chunk):
    _, head, signal = make_case("kl")
    (total, count), gradient = chunked(temperature, chunk)(signal.teacher, head, signal)
    assert float(total) == 0.0
    assert float(count) > 0
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_is_not_negative(temperature):
    """Position by position, for the student at growing distances from the teacher."""
    _, head, signal = make_case("kl", (POSITIONS,))
    noise = np.random.default_rng(5).standard_normal(signal.teacher.shape).astype(np.float32)
    before = np.zeros(POSITIONS)
    for distance in (0.1, 0.3, 1.0, 3.0):
        student = signal.teacher + distance * noise
        one = [signal.replace(weights=jnp.eye(POSITIONS)[i : i + 1]) for i in range(POSITIONS)]
        found = np.array([float(chunked(temperature, 5)(student, head, s)[0][0]) for s in one])
        assert np.all(found > before)  # KL is convex along a line in the logits, and zero at its start
        before = found


@pytest.mark.parametrize("garbage", [1e4, -1e4])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("kind", KINDS)
def test_finite_garbage_at_unused_positions_changes_nothing(kind, chunk, garbage):
    student, head, signal = make_case(kind)
    unused = ~in_use(signal)
    expected = chunked(2.5, chunk)(student, head, signal)
    other = {name: x if x is None else fill(x, unused, garbage) for name, x in vars(signal).items() if name != "used"}
    if kind != "kl":
        other["targets"] = fill(signal.targets, unused, 10**6).astype(jnp.int32)
    found = chunked(2.5, chunk)(fill(student, unused, garbage), head, signal.replace(**other))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_past_those_in_use_are_never_read(kind, garbage):
    student, head, signal = make_case(kind, (3, 8, 0), positions=21)
    expected = chunked(0.5, 4)(student, head, signal)
    unread = np.broadcast_to(np.arange(21)[None] >= 8, (3, 21))
    floats = ("teacher", "weights", "supervision")
    other = {name: fill(x, unread, garbage) for name, x in vars(signal).items() if name in floats and x is not None}
    found = chunked(0.5, 4)(fill(student, unread, garbage), head, signal.replace(**other))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.any(found[1])
    # The same one position earlier is seen: the value above could have been NaN.
    read = np.arange(21)[None] == [[2], [7], [-1]]
    assert not np.isfinite(chunked(0.5, 4)(fill(student, read, garbage), head, signal)[1]).all()


@pytest.mark.parametrize("garbage", [1e4, np.nan, np.inf])
@pytest.mark.parametrize("kind", ["kl", "next token"])
def test_weight_zero_leaves_a_position_out(kind, garbage):
    student, head, signal = make_case(kind)
    expected = chunked(1.0, 4)(student, head, signal)
    weights = signal.weights if kind == "kl" else signal.supervision
    left_out = np.asarray(weights) == 0
    assert (left_out & in_use(signal)).sum() >= 3
    student = fill(student, left_out, garbage)
    if kind == "kl":
        signal = signal.replace(teacher=fill(signal.teacher, left_out, garbage))
    (total, count), gradient = chunked(1.0, 4)(student, head, signal)
    assert float(total) == float(expected[0][0])
    assert float(count) == float(expected[0][1])
    np.testing.assert_array_equal(gradient[~left_out], expected[1][~left_out])
    if np.isfinite(garbage):
        np.testing.assert_array_equal(gradient, expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_counts_of_parts_add_up(kind):
    student, head, signal = make_case(kind)
    whole, gradient = chunked(1.0, 4)(student, head, signal)
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 1], (student, signal)) for i in range(GROUPS)]
    parts = [chunked(1.0, 4)(student, head, signal) for student, signal in parts]
    assert float(whole[0]) == pytest.approx(sum(float(part[0][0]) for part in parts), rel=1e-5)
    assert float(whole[1]) == sum(float(part[0][1]) for part in parts)
    assert_close(np.concatenate([part[1] for part in parts]), gradient)


def test_no_gradient_reaches_the_head_or_the_signal():
    student, head, signal = make_case("both")

    def loss(student, head, teacher, weights, supervision):
        compared = signal.replace(teacher=teacher, weights=weights, supervision=supervision)
        return sum(chunked_loss(student, head, compared, 2.5, 4))  # the count takes part too

    arguments = (student, head, signal.teacher, signal.weights, signal.supervision)
    gradients = jax.grad(loss, argnums=tuple(range(5)))(*arguments)
    assert np.any(gradients[0])
    for gradient, argument in zip(gradients[1:], arguments[1:], strict=True):
        assert gradient.shape == argument.shape
        assert not np.any(gradient)


def test_the_gradient_follows_what_is_made_of_the_loss():
    student, head, signal = make_case("both")
    (total, count), gradient = chunked(1.0, 4)(student, head, signal)

    def of(function):
        return jax.jit(jax.grad(lambda x: function(*chunked_loss(x, head, signal, 1.0, 4))))(student)

    np.testing.assert_allclose(of(lambda total, count: 3 * total + 5 * count), 3 * gradient, rtol=1e-6)
    np.testing.assert_allclose(of(lambda total, count: -(total**2) / count), -2 * total / count * gradient, rtol=1e-5)

    @jax.jit
    @jax.grad
    def before(scale):
        return chunked_loss(scale * student, head, signal, 1.0, 4)[0]

    assert float(before(jnp.float32(1.0))) == pytest.approx(float(jnp.sum(gradient * student)), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_scored_and_summed_in_float32(kind):
    many = 1025  # bfloat16 holds 1024 and 1032, nothing between
    student, head, signal = make_case(kind, (many,), positions=1500)
    ones = {name: jnp.ones((1, 1500)) for name in ("weights", "supervision") if getattr(signal, name) is not None}
    signal = signal.replace(**ones)
    student, head = student.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    if signal.teacher is not None:
        signal = signal.replace(teacher=signal.teacher.astype(jnp.bfloat16))
    (total, count), gradient = chunked(1.0, 64)(student, head, signal)
    assert total.dtype == count.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    assert float(count) == many * len(ones)

    in_float32 = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, (student, signal))
    expected = direct()(in_float32[0], head.astype(jnp.float32), in_float32[1])
    assert float(total) == pytest.approx(float(expected[0][0]), rel=1e-4)
    assert_close(gradient, expected[1], 2e-2)
    assert np.any(gradient[:, :many], axis=-1).all()
    assert not np.any(gradient[:, many:])


def test_a_float32_head_may_go_with_bfloat16_states():
    student, head, signal = make_case("both")
    student, signal = student.astype(jnp.bfloat16), signal.replace(teacher=signal.teacher.astype(jnp.bfloat16))
    (total, _), gradient = chunked(1.0, 4)(student, head, signal)
    (expected, _), slope = chunked(1.0, 4)(student, head.astype(jnp.bfloat16), signal)
    assert float(total) == float(expected)
    np.testing.assert_array_equal(gradient, slope)


def test_a_signal_of_nothing_is_refused():
    student, head, signal = make_case("kl")
    with pytest.raises(ValueError, match="nothing to compare with; give the signal a teacher, targets, or both"):
        chunked_loss(student, head, Signal(signal.used))


COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"


def results_of(operation, text):
    """Element counts of the results of operations (a regular expression) in HLO text, tuples taken apart."""
    found = []
    for types in re.findall(rf"= (\S+|\([^=]*?\)) (?:{operation})(?:-start)?\(", text):
        for dimensions in re.findall(r"\w+\[([\d,]*)\]", types):
            found.append(math.prod(int(d) for d in dimensions.split(",") if d))
    return found


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def test_results_of_reads_hlo():
    text = """
      %a = f32[64,8]{1,0} all-gather(f32[16,8]{1,0} %p), channel_id=1
      %b = (f32[16]{0}, bf16[3,5]{1,0}) all-gather-start(f32[4]{0} %q, %r)
      %c = f32[] all-reduce(%d), to_apply=%add
      ROOT %e = f32[7] fusion(%all-gather.1), calls=%all-gather(%x)
    """
    assert results_of("all-gather", text) == [512, 16, 15]
    assert results_of("all-reduce", text) == [1]
    assert results_of(COLLECTIVES, text) == [512, 16, 15, 1]


def test_results_of_sees_a_gathered_head(mesh):
    head = jax.device_put(jnp.ones((64, SIZE)), NamedSharding(mesh, PartitionSpec("tensor", None)))

    def gathers(head):
        return jax.lax.with_sharding_constraint(head, NamedSharding(mesh, PartitionSpec())) + 1.0

    assert 64 * SIZE in results_of("all-gather", jax.jit(gathers).lower(head).compile().as_text())


@pytest.mark.parametrize(("temperature", "chunk"), [(2.5, 4), (1.0, 64)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_vocabulary_stays_where_it_is(mesh, kind, chunk, temperature):
    vocabulary, size = 1000, 24
    student, head, signal = make_case(kind, size=size, vocabulary=vocabulary)
    head = head / 2  # or one word of the thousand would take all the probability
    expected = chunked(temperature, chunk)(student, head, signal)
    assert_same_result(expected, direct(temperature)(student, head, signal))

    by_rows = NamedSharding(mesh, PartitionSpec("data"))
    arguments = (
        jax.device_put(student, by_rows),
        jax.device_put(head, NamedSharding(mesh, PartitionSpec("tensor", None))),
        jax.device_put(signal, by_rows),
    )
    compiled = chunked(temperature, chunk).lower(*arguments).compile()
    found = compiled(*arguments)
    assert_same_result(jax.device_get(found), expected)
    assert found[1].sharding.is_equivalent_to(by_rows, 3)

    text = compiled.as_text()
    moved = results_of(COLLECTIVES, text)
    assert moved  # sums over the vocabulary cross devices
    assert vocabulary * size not in results_of("all-gather", text)
    assert max(moved) < vocabulary * size // 4  # nor does a device's own part move, under whatever name
    # No device ever holds all words, whether of the head or of some positions' logits.
    assert not re.search(rf"\[(\d+,)*{vocabulary}(,\d+)*\]", text)
    assert re.search(rf"\[(\d+,)*{vocabulary // 4}(,\d+)*\]", text)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_positions_times_vocabulary(kind):
    few, many, vocabulary, size = 64, 512, 4096, 16

    def temporary_bytes(function, positions):
        case = make_case(kind, (positions,), positions, size, vocabulary)
        return function.lower(*case).compile().memory_analysis().temp_size_in_bytes

    logits = (many - few) * vocabulary * 4
    ours, theirs = (temporary_bytes(f, many) - temporary_bytes(f, few) for f in (chunked(1.0, 16), direct()))
    assert ours < 0.1 * logits
    assert theirs >= logits
