"""What a teacher adds to credit."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def toward_teacher(
    advantage: Float[Array, "*b T"],
    logp: Float[Array, "*b T"],
    teacher_logp: Float[Array, "*b T"],
    where: Bool[Array, "*b T"],
    *,
    coef: float = 0.05,
) -> Float[Array, "*b T"]:
    """A_t - coef (log p_t - log p_teacher,t) where `where` holds, A_t elsewhere.

    On-policy distillation of failures (HyperEyes, arXiv 2605.07177, and its released code): `where` marks the tokens of wrong answers.
    """
    gap = jnp.where(where, logp, 0) - jnp.where(where, teacher_logp, 0)
    return advantage - coef * gap


def two_path_weights(
    logp: Float[Array, "*b G"],
    teacher_logp: Float[Array, "*b G"],
    correct: Bool[Array, "*b G"],
    where: Bool[Array, "*b G"] | None = None,
    *,
    temperature: float = 1.0,
    to_size: bool = False,
    inverted: bool = False,
) -> Float[Array, "*b G"]:
    """How much each trajectory of a group counts on its path: right ones are imitated, wrong ones corrected by the teacher.

        w ~ PPL^(1/temperature) over the right ones,   w ~ PPL_teacher^(-1/temperature) over the wrong ones;   each path sums to 1

    SCOPE, arXiv 2604.10688; logp are mean log-probabilities of the tokens, so PPL = exp(-logp). Right answers the student finds unlikely
    and wrong ones the teacher understands count most. Released code sums each path to its size (`to_size`), and as configured turns the
    student's weights round, against its comment and the paper (`inverted`). 0 off `where`.
    """
    where = jnp.ones(correct.shape, bool) if where is None else where
    right, wrong = correct & where, ~correct & where
    student = _softmax((logp if inverted else -logp) / temperature, right, to_size)
    return student + _softmax(teacher_logp / temperature, wrong, to_size)


def _softmax(x, where, to_size):
    top = jnp.max(x, -1, keepdims=True, where=where, initial=-jnp.inf)
    e = jnp.where(where, jnp.exp(jnp.where(where, x - top, 0)), 0)
    w = e / jnp.maximum(e.sum(-1, keepdims=True), 1)
    return w * where.sum(-1, keepdims=True) if to_size else w
