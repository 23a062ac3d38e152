"""What methods of several turns compare: a turn with the same turn of others, with its past, and answers with those that agree."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxcredit.kernels.runs import carried


def each_turn(
    fn: Callable, x: Float[Array, "G K"], where: Bool[Array, "G K"], slack: Float[Array, "G K"] | None = None
) -> Float[Array, "G K"]:
    """fn(x_k, where=where_k, slack=slack_k) for each turn k: a turn's peers are the other trajectories' turns of the same number.

    Without `slack` (as in `standardise`), fn is called without it.
    """
    if slack is None:
        return jax.vmap(lambda x, where: fn(x, where=where), 1, 1)(x, where)
    return jax.vmap(lambda x, where, slack: fn(x, where=where, slack=slack), 1, 1)(x, where, slack)


def before(x: Num[Array, "*b K"], where: Bool[Array, "*b K"]) -> Num[Array, "*b K"]:
    """x at the last real position before this one; 0 where there is none."""
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), carried(x, where)[..., :-1]], -1)


def joint(a: Int[Array, "*s"], b: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """A partition finer than two: units have equal numbers where both of theirs are equal. Numbers are 0, 1, .. without gaps."""
    x, y = a.reshape(-1), b.reshape(-1)
    order = jnp.lexsort((x, y))  # sorted, where comparing every unit with every other takes four times as long at 256
    x, y = x[order], y[order]
    new = jnp.concatenate([jnp.zeros(1, bool), (x[1:] != x[:-1]) | (y[1:] != y[:-1])])
    return jnp.zeros_like(order).at[order].set(jnp.cumsum(new), unique_indices=True).reshape(a.shape)


def count_by(by: Int[Array, "*s"], where: Bool[Array, "*s"]) -> Int[Array, "*s"]:
    """How many units each has for peers, itself included; 0 off `where`."""
    dense, real = joint(by, by).reshape(-1), where.reshape(-1)
    count = jax.ops.segment_sum(real.astype(jnp.int32), dense, real.size)
    return jnp.where(real, count[dense], 0).reshape(by.shape)


def answer_weights(
    cluster: Int[Array, "G"],
    reliability: Float[Array, "G"],
    *,
    observed: Bool[Array, "G"] | None = None,
    where: Bool[Array, "G"] | None = None,
    eta: float = 1.0,
) -> Float[Array, "G"]:
    """How far to trust each answer, from how many agree with it and how well what was found supports it.

        q(c) = m(c) e^{eta r(c)} / sum_c' m(c') e^{eta r(c')},   m(c) = |c| / n,   r(c) = mean {reliability_i : i in c, observed_i}

    SIOP, arXiv 2605.04984. `where` marks trajectories with an answer; others get 0, and one answer alone gets 1. A cluster of which
    nothing was observed has r = 0; `observed=None`: all were.
    """
    where = jnp.ones(cluster.shape, bool) if where is None else where
    seen = where if observed is None else where & observed
    same = (cluster[:, None] == cluster) & where[:, None] & where
    known = same & seen
    r = jnp.where(known, reliability, 0).sum(-1) / jnp.maximum(known.sum(-1), 1)
    logit = jnp.where(where, eta * r, -jnp.inf)
    top = jnp.max(logit, initial=-jnp.inf)
    each = jnp.where(where, jnp.exp(logit - jnp.where(jnp.isfinite(top), top, 0)), 0)
    return same.sum(-1) * each / jnp.where(where.any(), each.sum(), 1)
