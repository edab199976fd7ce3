import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfparam_jax.objective import cross_entropy, kl_divergence, kl_from_logits

COUNT, SIZE, VOCABULARY = 7, 6, 11
WEIGHTS = np.array([1, 0, 0.5, 2, 0, 1, 1], np.float32)


@pytest.fixture
def states():
    """Teacher's and student's hidden states and the head; logits of a size at which softmax is not flat."""
    rng = np.random.default_rng(0)
    shapes = ((COUNT, SIZE), (COUNT, SIZE), (VOCABULARY, SIZE))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def kl_by_hand(teacher, student, head, temperature):
    """KL per position, float64."""
    teacher, student, head = (np.asarray(x, np.float64) for x in (teacher, student, head))
    p, q = (log_softmax(h @ head.T / temperature) for h in (teacher, student))
    return (np.exp(p) * (p - q)).sum(axis=-1)


def as_jax(*arrays):
    return [jnp.asarray(x) for x in arrays]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_kl_equals_numpy_and_torch(states, temperature):
    total, count = kl_divergence(*as_jax(*states, WEIGHTS), temperature)
    assert total.dtype == count.dtype == jnp.float32
    expected = kl_by_hand(*states, temperature)
    assert expected.min() > 0.05
    assert float(total) == pytest.approx((expected * WEIGHTS).sum(), rel=1e-5)
    assert float(count) == 5.5

    torch = pytest.importorskip("torch")
    teacher, student, head = (torch.from_numpy(x).double() for x in states)
    p, q = (torch.log_softmax(h @ head.T / temperature, dim=-1) for h in (teacher, student))
    theirs = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    assert float(total) == pytest.approx(float((theirs * torch.from_numpy(WEIGHTS)).sum()), rel=1e-5)


def test_kl_of_two_words_by_hand():
    logits = np.log([[0.5, 0.5], [0.25, 0.75]]).astype(np.float32)
    forward, backward = (
        kl_from_logits(*as_jax(logits[:1], logits[1:])),
        kl_from_logits(*as_jax(logits[1:], logits[:1])),
    )
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75), and with the roles exchanged: the direction matters.
    assert float(forward[0]) == pytest.approx(0.1438410, abs=1e-6)
    assert float(backward[0]) == pytest.approx(0.1308120, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_gradient_equals_torch(states, temperature):
    torch = pytest.importorskip("torch")
    teacher, student, head = as_jax(*states)
    weights = jnp.asarray(WEIGHTS)
    gradients = jax.grad(lambda t, s, h: kl_divergence(t, s, h, weights, temperature)[0], argnums=(0, 1, 2))(
        teacher, student, head
    )
    assert not gradients[0].any()  # the teacher and the head are frozen
    assert not gradients[2].any()

    leaf = torch.from_numpy(states[1]).double().requires_grad_()
    teacher, head = torch.from_numpy(states[0]).double(), torch.from_numpy(states[2]).double()
    p = torch.log_softmax(teacher @ head.T / temperature, dim=-1)
    q = torch.log_softmax(leaf @ head.T / temperature, dim=-1)
    (
        torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
        @ torch.from_numpy(WEIGHTS).double()
    ).backward()
    np.testing.assert_allclose(gradients[1], leaf.grad.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(gradients[1]).max() > 0.1


def test_kl_of_equal_states_is_zero(states):
    teacher, _, head = as_jax(*states)
    weights = jnp.asarray(WEIGHTS)
    assert float(kl_divergence(teacher, teacher, head, weights)[0]) == 0.0
    gradient = jax.grad(lambda s: kl_divergence(teacher, s, head, weights)[0])(teacher)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_a_bfloat16_state_is_scored_in_float32(states):
    teacher, student, head = (jnp.asarray(x, jnp.bfloat16) for x in states)
    total, count = kl_divergence(teacher, student, head, jnp.asarray(WEIGHTS))
    assert total.dtype == count.dtype == jnp.float32
    rounded = [np.asarray(x.astype(jnp.float32)) for x in (teacher, student, head)]
    assert float(total) == pytest.approx((kl_by_hand(*rounded, 1.0) * WEIGHTS).sum(), rel=1e-4)


@pytest.mark.parametrize("garbage", [1e4, np.nan, np.inf])
def test_weight_zero_leaves_a_position_out(states, garbage):
    teacher, student, head = states
    kept = WEIGHTS > 0
    expected = kl_divergence(*as_jax(teacher[kept], student[kept], head, WEIGHTS[kept]))
    student, teacher = student.copy(), teacher.copy()
    student[~kept] = teacher[~kept] = garbage
    student[~kept, 0] *= -1
    found = kl_divergence(*as_jax(teacher, student, head, WEIGHTS))
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    assert float(found[1]) == float(expected[1])
    if np.isfinite(garbage):
        gradient = jax.grad(lambda s: kl_divergence(*as_jax(teacher), s, *as_jax(head, WEIGHTS))[0])(
            jnp.asarray(student)
        )
        assert np.isfinite(gradient).all()
        assert not gradient[~kept].any()
        assert gradient[kept].any(axis=1).all()


def test_no_position_at_all(states):
    total, count = kl_divergence(*as_jax(*states, np.zeros(COUNT, np.float32)))
    assert (float(total), float(count)) == (0.0, 0.0)


def test_sums_and_counts_of_halves_add_up(states):
    teacher, student, head = states
    targets = np.arange(COUNT, dtype=np.int32)
    halves = slice(0, 3), slice(3, COUNT)
    for loss, first in ((kl_divergence, (teacher, student)), (cross_entropy, (student,))):
        rest = (targets, WEIGHTS) if loss is cross_entropy else (WEIGHTS,)
        whole = loss(*as_jax(*first, head, *rest))
        parts = [loss(*as_jax(*(x[h] for x in first), head, *(x[h] for x in rest))) for h in halves]
        assert float(whole[0]) == pytest.approx(sum(float(part[0]) for part in parts), rel=1e-6)
        assert float(whole[1]) == sum(float(part[1]) for part in parts) == 5.5


def test_cross_entropy_equals_torch(states):
    torch = pytest.importorskip("torch")
    _, hidden, head = states
    targets = np.array([0, 10, 3, 3, 7, 1, 9], np.int32)
    total, count = cross_entropy(*as_jax(hidden, head, targets, WEIGHTS))
    gradient = jax.grad(lambda h: cross_entropy(h, *as_jax(head, targets, WEIGHTS))[0])(jnp.asarray(hidden))
    leaf = torch.from_numpy(hidden).double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(
        leaf @ torch.from_numpy(head).double().T, torch.from_numpy(targets).long(), reduction="none"
    )
    theirs = losses @ torch.from_numpy(WEIGHTS).double()
    theirs.backward()
    assert float(total) == pytest.approx(theirs.item(), rel=1e-5)
    assert float(count) == 5.5
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_cross_entropy_leaves_out_weight_zero(states):
    _, hidden, head = states
    targets, kept = np.arange(COUNT, dtype=np.int32), WEIGHTS > 0
    expected = cross_entropy(*as_jax(hidden[kept], head, targets[kept], WEIGHTS[kept]))
    hidden = np.where(kept[:, None], hidden, np.inf).astype(np.float32)
    found = cross_entropy(*as_jax(hidden, head, targets, WEIGHTS))
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-6)
