"""Masks and values along a sequence: last entries, runs of equal numbers, forward filling, turns.

All functions run over the last axis unless they say otherwise. `where` marks the entries that
exist.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxcredit.kernels.multistep import returns_to_go


def is_last(where: Bool[Array, "*b K"]) -> Bool[Array, "*b K"]:
    """Mask of the last entry that exists.

    Args:
        where: [..., K] entries that exist.

    Returns:
        [..., K] mask with at most one True in a row.

    >>> is_last(jnp.array([True, True, False])).tolist()
    [False, True, False]
    """
    position = jnp.arange(where.shape[-1])
    return where & (position == jnp.where(where, position, -1).max(-1, keepdims=True, initial=-1))


def first_value(x: Float[Array, "*b K"], where: Bool[Array, "*b K"]) -> Float[Array, "*b"]:
    """Value of the first entry that exists, 0 where there is none.

    Args:
        x: [..., K] values.
        where: [..., K] entries that exist.

    Returns:
        [...] values.
    """
    position = jnp.argmax(where, -1, keepdims=True)
    return jnp.where(where.any(-1), jnp.take_along_axis(x, position, -1)[..., 0], 0)


def forward_fill(x: Num[Array, "*b K"], where: Bool[Array, "*b K"]) -> Num[Array, "*b K"]:
    """Value of the last existing entry up to each position, 0 before the first.

    Args:
        x: [..., K] values.
        where: [..., K] entries that exist.

    Returns:
        [..., K] values.

    >>> forward_fill(jnp.array([7, 0, 5]), jnp.array([True, False, True])).tolist()
    [7, 7, 5]
    """
    position = jax.lax.cummax(jnp.where(where, jnp.arange(x.shape[-1]), -1), axis=x.ndim - 1)
    return jnp.where(position >= 0, jnp.take_along_axis(x, jnp.maximum(position, 0), -1), 0)


def is_run_end(number: Int[Array, "*b T"], where: Bool[Array, "*b T"]) -> Bool[Array, "*b T"]:
    """Mask of the last entry of each run of equal numbers. A hole does not end a run.

    Args:
        number: [..., T] labels.
        where: [..., T] entries that exist.

    Returns:
        [..., T] mask.

    >>> is_run_end(jnp.array([1, 1, 2]), jnp.ones(3, bool)).tolist()
    [False, True, True]
    """
    next_number = jnp.concatenate(
        [returns_to_go(number, 0, where=where)[..., 1:], jnp.zeros_like(number[..., :1])], -1
    )
    return (where & (next_number != number)) | is_last(where)


def is_run_start(number: Int[Array, "*b T"], where: Bool[Array, "*b T"]) -> Bool[Array, "*b T"]:
    """Mask of the first entry of each run of equal numbers. A hole does not end a run.

    Args:
        number: [..., T] labels.
        where: [..., T] entries that exist.

    Returns:
        [..., T] mask.
    """
    return jnp.flip(is_run_end(jnp.flip(number, -1), jnp.flip(where, -1)), -1)


def run_cumsum(
    x: Float[Array, "*b T"], begins: Bool[Array, "*b T"], where: Bool[Array, "*b T"]
) -> Float[Array, "*b T"]:
    """Cumulative sum that restarts at the beginning of each run.

        s_t = x_t + s_{t-1},   s_{t-1} = 0 where a run begins

    At the end of a run this is the run's total. A hole shows the sum so far.

    Args:
        x: [..., T] values.
        begins: [..., T] entries at which a run begins.
        where: [..., T] entries that exist.

    Returns:
        [..., T] sums.

    >>> starts = jnp.array([True, False, True])
    >>> run_cumsum(jnp.array([1.0, 2.0, 4.0]), starts, jnp.ones(3, bool)).tolist()
    [1.0, 3.0, 4.0]
    """
    keep = jnp.where(begins, 0, 1).astype(x.dtype)
    return jnp.flip(
        returns_to_go(jnp.flip(x, -1), jnp.flip(keep, -1), where=jnp.flip(where, -1)), -1
    )


def map_turns(
    fn: Callable,
    x: Float[Array, "G K"],
    where: Bool[Array, "G K"],
    slack: Float[Array, "G K"] | None = None,
) -> Float[Array, "G K"]:
    """Function of one turn of all trajectories, applied to every turn.

    Args:
        fn: fn(x, where=mask) or fn(x, where=mask, slack=bound) on arrays [G], such as `center`.
        x: [G, K] values of K turns.
        where: [G, K] turns that took place.
        slack: [G, K] bound on rounding errors. None: fn is called without it.

    Returns:
        [G, K] results.
    """
    if slack is None:
        return jax.vmap(lambda x, where: fn(x, where=where), 1, 1)(x, where)
    return jax.vmap(lambda x, where, slack: fn(x, where=where, slack=slack), 1, 1)(x, where, slack)


def previous_value(x: Num[Array, "*b K"], where: Bool[Array, "*b K"]) -> Num[Array, "*b K"]:
    """Value of the last existing entry before each position, 0 where there is none.

    Args:
        x: [..., K] values.
        where: [..., K] entries that exist.

    Returns:
        [..., K] values.

    >>> previous_value(jnp.array([7, 0, 5]), jnp.array([True, False, True])).tolist()
    [0, 7, 7]
    """
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), forward_fill(x, where)[..., :-1]], -1)


def intersect_partitions(a: Int[Array, "*s"], b: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """Common refinement of two partitions: units share a number where both of theirs are equal.

    Args:
        a: [...] numbers of the first partition.
        b: [...] numbers of the second partition.

    Returns:
        [...] numbers 0, 1, ... without gaps.

    >>> intersect_partitions(jnp.array([5, 5, 9]), jnp.array([1, 2, 2])).tolist()
    [0, 1, 2]
    """
    x, y = a.reshape(-1), b.reshape(-1)
    order = jnp.lexsort((x, y))  # sorting is faster than an equality matrix for many units
    x, y = x[order], y[order]
    starts = jnp.concatenate([jnp.zeros(1, bool), (x[1:] != x[:-1]) | (y[1:] != y[:-1])])
    return (
        jnp.zeros_like(order)
        .at[order]
        .set(jnp.cumsum(starts), unique_indices=True)
        .reshape(a.shape)
    )


def peer_count(by: Int[Array, "*s"], where: Bool[Array, "*s"]) -> Int[Array, "*s"]:
    """Number of units with the same number as each unit, itself included; 0 off `where`.

    Args:
        by: [...] partition.
        where: [...] units that exist.

    Returns:
        [...] counts.

    >>> peer_count(jnp.array([5, 5, 9]), jnp.ones(3, bool)).tolist()
    [2, 2, 1]
    """
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
    """Reliability of each trajectory's answer, from agreement and from the support of its sources.

        q(c) = m(c) e^{eta r(c)} / sum_c' m(c') e^{eta r(c')},   m(c) = |c| / n
        r(c) = mean {reliability_i : i in c, observed_i}, 0 where none is observed

    Source: SIOP, arXiv 2605.04984.

    Args:
        cluster: [G] cluster c of each answer; equal answers have equal numbers.
        reliability: [G] support of each trajectory's answer.
        observed: [G] trajectories whose reliability is known. None: all.
        where: [G] trajectories with an answer. None: all. The others get 0.
        eta: weight of reliability against agreement, >= 0.

    Returns:
        [G] weight q of each answer's cluster; a single answer gets 1.
    """
    where = jnp.ones(cluster.shape, bool) if where is None else where
    known = where if observed is None else where & observed
    same = (cluster[:, None] == cluster) & where[:, None] & where
    members = same & known
    r = jnp.where(members, reliability, 0).sum(-1) / jnp.maximum(members.sum(-1), 1)
    logit = jnp.where(where, eta * r, -jnp.inf)
    largest = jnp.max(logit, initial=-jnp.inf)
    share = jnp.where(where, jnp.exp(logit - jnp.where(jnp.isfinite(largest), largest, 0)), 0)
    return same.sum(-1) * share / jnp.where(where.any(), share.sum(), 1)
