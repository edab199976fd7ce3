"""The objective: forward KL over the full vocabulary, from hidden states, as (sum, count).

Paper section 3: sum over target sentences s and positions t of
KL(p_teacher(. | context, s_<t) || p_student(. | s_<t)). Both distributions come from the same frozen head,
so the teacher's is kept as its final hidden state, D numbers in place of V.
"""

import jax
import jax.numpy as jnp

from selfparam_jax.model import apply_head


def kl_from_logits(teacher: jax.Array, student: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL(softmax(teacher / temperature) || softmax(student / temperature)), float32 [M], from logits [M, V]."""
    teacher = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature, axis=-1)
    student = jax.nn.log_softmax(student.astype(jnp.float32) / temperature, axis=-1)
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def kl_divergence(
    teacher_hidden: jax.Array,
    student_hidden: jax.Array,
    head: jax.Array,
    weights: jax.Array,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Weighted KL over positions.

    Args:
      teacher_hidden, student_hidden: final normed hidden states [M, D].
      head: [V, D]; frozen.
      weights: float32 [M]; 0 leaves a position out.
      temperature: softens (> 1) or sharpens (< 1) both distributions; 1 is the paper's.

    Returns:
      (sum of weight * KL, sum of weights), float32 scalars.
    """
    teacher = jax.lax.stop_gradient(apply_head(teacher_hidden, head))
    student = apply_head(student_hidden, jax.lax.stop_gradient(head))
    losses = kl_from_logits(teacher, student, temperature)
    # `where`, not only the product: an unused slot must not turn an infinity elsewhere into a NaN.
    return jnp.sum(jnp.where(weights > 0, losses * weights, 0.0)), jnp.sum(weights)


def cross_entropy(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted next-token loss: hidden [M, D], targets int32 [M], weights [M] -> (sum, sum of weights)."""
    logits = apply_head(hidden, head)
    picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.sum(jnp.where(weights > 0, losses * weights, 0.0)), jnp.sum(weights)
