"""Runs along the last axis: the last real entry, what was seen last, and neighbours with equal numbers (macro actions, thoughts)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxcredit.kernels.multistep import returns_to_go


def is_last(where: Bool[Array, "*b K"]) -> Bool[Array, "*b K"]:
    """True at the last real entry alone."""
    place = jnp.arange(where.shape[-1])
    return where & (place == jnp.where(where, place, -1).max(-1, keepdims=True, initial=-1))


def first_value(x: Float[Array, "*b K"], where: Bool[Array, "*b K"]) -> Float[Array, "*b"]:
    """x at the first real entry; 0 where there is none."""
    place = jnp.argmax(where, -1, keepdims=True)
    return jnp.where(where.any(-1), jnp.take_along_axis(x, place, -1)[..., 0], 0)


def forward_fill(x: Num[Array, "*b K"], where: Bool[Array, "*b K"]) -> Num[Array, "*b K"]:
    """f_k = x at the last real position up to k; 0 before the first. What was last seen is still so."""
    here = jax.lax.cummax(jnp.where(where, jnp.arange(x.shape[-1]), -1), axis=x.ndim - 1)
    return jnp.where(here >= 0, jnp.take_along_axis(x, jnp.maximum(here, 0), -1), 0)


def is_run_end(number: Int[Array, "*b T"], where: Bool[Array, "*b T"]) -> Bool[Array, "*b T"]:
    """True at the last real entry of each run of equal numbers. A hole does not cut a run."""
    next_number = jnp.concatenate(
        [returns_to_go(number, 0, where=where)[..., 1:], jnp.zeros_like(number[..., :1])], -1
    )
    return (where & (next_number != number)) | is_last(where)


def is_run_start(number: Int[Array, "*b T"], where: Bool[Array, "*b T"]) -> Bool[Array, "*b T"]:
    """True at the first real entry of each run of equal numbers."""
    return jnp.flip(is_run_end(jnp.flip(number, -1), jnp.flip(where, -1)), -1)


def run_cumsum(
    x: Float[Array, "*b T"], begins: Bool[Array, "*b T"], where: Bool[Array, "*b T"]
) -> Float[Array, "*b T"]:
    """s_t = x_t + s_{t-1}, from 0 where a run begins: at its end this is the run's total. A hole shows the sum so far."""
    step = jnp.where(begins, 0, 1).astype(x.dtype)
    return jnp.flip(
        returns_to_go(jnp.flip(x, -1), jnp.flip(step, -1), where=jnp.flip(where, -1)), -1
    )


def map_turns(
    fn: Callable,
    x: Float[Array, "G K"],
    where: Bool[Array, "G K"],
    slack: Float[Array, "G K"] | None = None,
) -> Float[Array, "G K"]:
    """fn(x_k, where=where_k, slack=slack_k) for each turn k: a turn's peers are the other trajectories' turns of the same number.

    Without `return_rounding` (as in `standardize`), fn is called without it.
    """
    if slack is None:
        return jax.vmap(lambda x, where: fn(x, where=where), 1, 1)(x, where)
    return jax.vmap(lambda x, where, slack: fn(x, where=where, slack=slack), 1, 1)(x, where, slack)


def previous_value(x: Num[Array, "*b K"], where: Bool[Array, "*b K"]) -> Num[Array, "*b K"]:
    """x at the last real position before this one; 0 where there is none."""
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), forward_fill(x, where)[..., :-1]], -1)


def intersect_partitions(a: Int[Array, "*s"], b: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """A partition finer than two: units have equal numbers where both of theirs are equal. Numbers are 0, 1, .. without gaps."""
    x, y = a.reshape(-1), b.reshape(-1)
    order = jnp.lexsort(
        (x, y)
    )  # sorted, where comparing every unit with every other takes four times as long at 256
    x, y = x[order], y[order]
    new = jnp.concatenate([jnp.zeros(1, bool), (x[1:] != x[:-1]) | (y[1:] != y[:-1])])
    return (
        jnp.zeros_like(order).at[order].set(jnp.cumsum(new), unique_indices=True).reshape(a.shape)
    )


def peer_count(by: Int[Array, "*s"], where: Bool[Array, "*s"]) -> Int[Array, "*s"]:
    """How many units each has for peers, itself included; 0 off `where`."""
    dense, real = intersect_partitions(by, by).reshape(-1), where.reshape(-1)
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
