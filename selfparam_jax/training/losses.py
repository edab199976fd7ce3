"""The objective: forward KL over the full vocabulary, from hidden states, as (sum, count).

Paper section 3: sum over target sentences s and positions t of
KL(p_teacher(. | context, s_<t) || p_student(. | s_<t)). The teacher's distribution is stored as its final hidden
state, D numbers instead of V, and comes from its frozen head: the student's own, or that of another model.

No array of all positions by V is ever made. The positions are processed in chunks, and a chunk's gradient with
respect to the student's hidden states, (p_student - p_teacher) @ head, is taken while its logits are in memory. The
vocabulary may be sharded: then only a chunk's reductions over V and its product with the head cross devices.
"""

import functools

import flax
import jax
import jax.numpy as jnp
from jax import lax

from selfparam_jax.models.decoder import Head, apply_head, head_matrix, is_rounded, slope_before_cap

DEFAULT_CHUNK = 128


def kl_from_logits(teacher: jax.Array, student: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL(softmax(teacher / temperature) || softmax(student / temperature)), float32 [M], from logits [M, V].

    >>> kl_from_logits(jnp.zeros((1, 3)), jnp.zeros((1, 3))).tolist()
    [0.0]
    """
    teacher = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature, axis=-1)
    student = jax.nn.log_softmax(student.astype(jnp.float32) / temperature, axis=-1)
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


@flax.struct.dataclass
class Signal:
    """What the student's hidden states [S, N, D] are compared with; positions from `used` on are left out.

    S groups of positions are processed together, chunk by chunk; on a mesh each is on one part of the rows' axes.

    Attributes:
      used: int32 [S], how many of a group's positions count; those come first.
      teacher: [S, N, D] final normed hidden states, of the teacher's own D; or None for no KL.
      weights: float32 [S, N], weight of the KL (None without a teacher).
      targets: int32 [S, N], next token ids, or None for no next-token loss.
      supervision: float32 [S, N], weight of the next-token loss (None without targets).
    """

    used: jax.Array
    teacher: jax.Array | None = None
    weights: jax.Array | None = None
    targets: jax.Array | None = None
    supervision: jax.Array | None = None


def chunked_loss(
    student: jax.Array,
    head: Head,
    signal: Signal,
    temperature: float = 1.0,
    chunk: int = DEFAULT_CHUNK,
    teacher_head: Head | None = None,
    by_confidence: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Weighted KL to the teacher plus weighted next-token loss, over the positions in use.

    Only `student` gets a gradient: the heads are frozen, and so is the teacher.

    Args:
      student: final normed hidden states [S, N, D].
      head: of the language model, [V, D].
      signal: the teacher's states, target tokens, or both, with their weights.
      temperature: softens (> 1) or sharpens (< 1) both distributions of the KL; 1 is the paper's.
      chunk: positions of a group whose logits are in memory at a time; S x chunk x V float32 numbers at the peak.
      teacher_head: the head of a teacher that is another model, [V', D']; None: the teacher has the student's. Where
        one has more rows, for tokens that no tokenizer knows, both are cut to those that they share.
      by_confidence: at a position with both losses, a teacher that gives the target the probability p keeps p of the
        KL's weight; the next-token loss gets the rest. The sum of the weights stays.

    Returns:
      (sum of weight * loss, sum of weights), float32 scalars.

    Raises:
      ValueError: the signal has neither a teacher nor targets.
    """
    if signal.teacher is None and signal.targets is None:
        raise ValueError("the loss has nothing to compare with; give the signal a teacher, targets, or both")
    for what, weights in (("teacher", "weights"), ("targets", "supervision")):
        if (getattr(signal, what) is None) != (getattr(signal, weights) is None):
            raise ValueError(f"a signal has {what} and {weights} both or neither; got one of them")
    if teacher_head is not None and head.shape[0] != teacher_head.shape[0]:
        shared = min(head.shape[0], teacher_head.shape[0])
        head, teacher_head = jax.tree.map(lambda weight: weight[:shared], (head, teacher_head))
    positions = student.shape[1]
    chunk = min(chunk, positions)
    missing = -positions % chunk

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2)) if missing and x.ndim > 1 else x

    signal = jax.tree.map(lambda x: lax.stop_gradient(pad(x)), signal)
    total = _chunked(
        pad(student), *lax.stop_gradient((head, teacher_head)), signal, temperature, chunk, by_confidence
    )
    valid = jnp.arange(positions + missing, dtype=jnp.int32)[None, :] < signal.used[:, None]
    parts = [w for w in (signal.weights, signal.supervision) if w is not None]
    return total, sum(jnp.sum(jnp.where(valid, weights, 0.0)) for weights in parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _chunked(student, head, teacher_head, signal, temperature, chunk, by_confidence):
    arguments = student, head, teacher_head, signal, temperature, chunk, by_confidence
    return _over_chunks(*arguments, with_gradient=False)[0]


def _chunked_forward(student, head, teacher_head, signal, temperature, chunk, by_confidence):
    # The gradient is computed now, while the logits exist; the backward pass only scales it.
    arguments = student, head, teacher_head, signal, temperature, chunk, by_confidence
    return _over_chunks(*arguments, with_gradient=True)


def _chunked_backward(temperature, chunk, by_confidence, gradient, cotangent):
    return ((gradient.astype(jnp.float32) * cotangent).astype(gradient.dtype), None, None, None)


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _over_chunks(student, head, teacher_head, signal, temperature, chunk, by_confidence, with_gradient):
    """(sum of weighted losses, gradient [S, N, D] or None), one chunk of positions at a time."""
    groups, _, width = student.shape

    def body(i, carry):
        total, gradient = carry
        begin = i * chunk

        def part(x):
            # Groups and positions as one axis: one product of matrices is faster than a batch of them.
            if x is None:
                return None
            x = lax.dynamic_slice_in_dim(x, begin, chunk, axis=1)
            return x.reshape(groups * chunk, *x.shape[2:])

        offsets = begin + jnp.arange(chunk, dtype=jnp.int32)
        valid = (offsets[None, :] < signal.used[:, None]).reshape(-1)
        pieces = [part(x) for x in (signal.teacher, signal.weights, signal.targets, signal.supervision)]
        losses, slope = _chunk_terms(part(student), head, teacher_head, valid, *pieces, temperature, by_confidence)
        if with_gradient:
            # A product in the head's dtype: a float32 copy of the head would cost as much as the head itself.
            weight = head_matrix(head)
            dtype = weight.dtype if is_rounded(weight, student.dtype) else student.dtype
            slope = jnp.einsum(
                "mv,vd->md", slope.astype(dtype), weight.astype(dtype), preferred_element_type=jnp.float32
            )
            slope = slope.astype(student.dtype).reshape(groups, chunk, width)
            gradient = lax.dynamic_update_slice_in_dim(gradient, slope, begin, axis=1)
        return total + losses, gradient

    # Only the chunks with positions in use.
    count = (jnp.max(signal.used) + chunk - 1) // chunk
    gradient = jnp.zeros_like(student) if with_gradient else None
    return lax.fori_loop(0, count, body, (jnp.zeros((), jnp.float32), gradient))


def _softmax_parts(logits):
    """exp(logits - max) [M, V], its sum [M, 1], and the logarithm [M, 1] of the sum of exp(logits)."""
    highest = jnp.max(logits, axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - highest)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return exponentials, total, highest + jnp.log(total)


def _chunk_terms(
    student, head, teacher_head, valid, teacher, weights, targets, supervision, temperature, by_confidence
):
    """Summed losses of M positions [M, D], and their slope with respect to the student's uncapped logits [M, V].

    States without weight are zeroed before the head: multiplied by the weight alone, they could still give a NaN.
    Every exponential is computed once; the rest are sums along V and factors per position.
    """
    total, slope, active = 0.0, 0.0, jnp.zeros_like(valid)
    if teacher is not None:
        weights = jnp.where(valid, weights, 0.0)[:, None]
        active |= weights[:, 0] > 0
    if targets is not None:
        supervision = jnp.where(valid, supervision, 0.0)[:, None]
        active |= supervision[:, 0] > 0
        # Compared, not gathered: an elementwise operation along V needs no communication if V is sharded.
        hit = targets[:, None] == jnp.arange(head.shape[0], dtype=jnp.int32)[None, :]
    logits = apply_head(jnp.where(active[:, None], student, 0), head)
    if teacher is not None:
        scaled = logits / temperature
        of_teacher = head if teacher_head is None else teacher_head
        wanted = apply_head(jnp.where(weights > 0, teacher, 0), of_teacher) / temperature
        e_student, z_student, log_student = _softmax_parts(scaled)
        e_teacher, z_teacher, log_teacher = _softmax_parts(wanted)
        if by_confidence and targets is not None:
            confidence = jnp.sum(jnp.where(hit, e_teacher, 0.0), axis=-1, keepdims=True) / z_teacher
            doubted = jnp.where(supervision > 0, weights * (1 - confidence), 0.0)
            weights, supervision = weights - doubted, supervision + doubted
        mean = jnp.sum(e_teacher * (wanted - scaled), axis=-1, keepdims=True) / z_teacher
        total += jnp.sum(weights * (mean + log_student - log_teacher))
        scale = weights / temperature
        slope += e_student * (scale / z_student) - e_teacher * (scale / z_teacher)
    if targets is not None:
        exponentials, z, log_sum = _softmax_parts(logits)
        total += jnp.sum(supervision * (log_sum - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1, keepdims=True)))
        slope += exponentials * (supervision / z) - jnp.where(hit, supervision, 0.0)
    return total, slope_before_cap(slope, logits, head)
