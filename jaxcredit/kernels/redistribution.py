"""Redistribution of rewards along a trajectory: potentials, shares, and losses that learn them."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxcredit.kernels.choices import check_choice
from jaxcredit.kernels.masked import masked_mean, masked_var
from jaxcredit.kernels.multistep import returns_to_go
from jaxcredit.kernels.sequences import is_last

UtteranceForm = Literal["scaled", "normalized", "progress", "discount", "uniform", "key"]


def shaping(
    potential: Float[Array, "*b K1"],
    where: Bool[Array, "*b K"],
    *,
    gamma: float | int | Float[Array, ""] = 1.0,
    ended: Bool[Array, "*c"] | bool = False,
) -> Float[Array, "*b K"]:
    """Potential-based shaping rewards (Ng, Harada and Russell 1999).

        F_k = gamma Phi_{k+1} - Phi_k

    In a trajectory that `ended` the potential after the last entry is 0. Then the discounted sum of
    F is -Phi_0 on every path, and the order of policies is unchanged.

    Args:
        potential: [..., K+1] potentials Phi before the first entry and after each entry.
        where: [..., K] entries that took place.
        gamma: discount factor in [0, 1].
        ended: [...] True if the trajectory ended, False if it was truncated.

    Returns:
        [..., K] shaping rewards, 0 off `where`.

    >>> shaping(jnp.array([1.0, 3.0, 2.0]), jnp.ones(2, bool)).tolist()
    [2.0, -1.0]
    """
    after = jnp.where(is_last(where) & jnp.asarray(ended)[..., None], 0, potential[..., 1:])
    return jnp.where(where, gamma * after - potential[..., :-1], 0)


def returns_over_peers(
    reward: Float[Array, "G K"],
    *,
    gamma: float | int | Float[Array, ""] = 1.0,
    where: Bool[Array, "G K"],
) -> Float[Array, "G K"]:
    """Returns to go of segments, minus the mean over trajectories that have the same segment.

        A_ik = G_ik - mean_j G_jk,   G_ik = r_ik + gamma G_i,k+1

    Exactly 0 for a segment that no other trajectory has.

    Args:
        reward: [G, K] reward of each segment.
        gamma: discount factor in [0, 1].
        where: [G, K] segments that took place.

    Returns:
        [G, K] advantages.

    >>> reward = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    >>> returns_over_peers(reward, where=jnp.ones((2, 2), bool)).tolist()
    [[0.5, 0.5], [-0.5, -0.5]]
    """
    G = returns_to_go(reward, gamma, where=where)
    return jnp.where(where, G - masked_mean(G, where, axis=0, keepdims=True), 0)


def decomposition_loss(
    reward: Float[Array, "*b K"], total: Float[Array, "*b"], where: Bool[Array, "*b K"]
) -> Float[Array, "*b"]:
    """Squared error of a learned reward whose sum should be the return.

        (mean_k r_k - R / n)^2   over the n entries of a trajectory

    Args:
        reward: [..., K] learned reward r of each entry.
        total: [...] return R.
        where: [..., K] entries that took place.

    Returns:
        [...] losses.
    """
    n = jnp.maximum(where.sum(-1), 1)
    return jnp.where(where.any(-1), (masked_mean(reward, where, -1) - total / n) ** 2, 0)


def sampled_decomposition_loss(
    reward: Float[Array, "*b K"],
    total: Float[Array, "*b"],
    where: Bool[Array, "*b K"],
    chosen: Bool[Array, "*b K"],
    *,
    unbiased: bool = True,
) -> Float[Array, "*b"]:
    """`decomposition_loss` estimated from m of the n entries, drawn without replacement.

        (mean_m r - R / n)^2 - (1 - m / n) / m  var_m r,   var with m - 1

    The second term makes the estimate unbiased. It needs m >= 2; with m = 1 the loss stays biased.
    Source: RRD, arXiv 2111.13485.

    Args:
        reward: [..., K] learned reward r of each entry.
        total: [...] return R.
        where: [..., K] entries that took place.
        chosen: [..., K] the m entries, from `draw_entries`.
        unbiased: subtract the second term.

    Returns:
        [...] losses.
    """
    chosen = chosen & where
    n, m = jnp.maximum(where.sum(-1), 1), jnp.maximum(chosen.sum(-1), 1)
    loss = (masked_mean(reward, chosen, -1) - total / n) ** 2
    if unbiased:
        loss = loss - (1 - m / n) / m * masked_var(reward, chosen, -1, ddof=1)
    return jnp.where(chosen.any(-1), loss, 0)


def draw_entries(
    where: Bool[Array, "*b K"], count: int | Int[Array, ""], *, key: PRNGKeyArray
) -> Bool[Array, "*b K"]:
    """Random subset of each trajectory's entries, without replacement.

    Args:
        where: [..., K] entries that took place.
        count: size of the subset; all entries if there are fewer.
        key: PRNG key.

    Returns:
        [..., K] mask.
    """
    draw = jnp.where(where, jax.random.uniform(key, where.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(draw, -1), -1)
    return where & (rank < count)


def utterance_rewards(
    mark: Float[Array, "G K D"],
    score: Float[Array, "G D"],
    where: Bool[Array, "G K"],
    *,
    form: UtteranceForm = "scaled",
    decay: float = 0.9,
) -> Float[Array, "G K D"]:
    """Share of each utterance in the scores of its episode, in each dimension.

        scaled      a_k / 3 S for marks 0 to 3, and -1 where a_k < 0
        normalized  a_k / sum a S, negative marks counting 0; S / n where all are 0
        progress    a_k / 10 S, for marks 0 to 10
        discount    decay^(n - 1 - k) S
        uniform     S
        key         S for the utterance of the highest mark, the first of equal ones

    Only the `normalized` shares sum to S. Source: Sotopia-RL, arXiv 2508.03905, released code.

    Args:
        mark: [G, K, D] judge's mark a of each utterance in each dimension.
        score: [G, D] score S of each episode.
        where: [G, K] utterances that took place, n of them in an episode.
        form: one of the forms above.
        decay: factor of "discount", in [0, 1].

    Returns:
        [G, K, D] rewards.

    Raises:
        ValueError: `form` is unknown.
    """
    check_choice("utterance_rewards", "form", form, get_args(UtteranceForm))
    real = where[..., None]
    S = jnp.broadcast_to(score[:, None], mark.shape)
    a = jnp.where(real, jnp.maximum(mark, 0), 0)
    total, n = a.sum(1, keepdims=True), jnp.maximum(real.sum(1, keepdims=True), 1)
    remaining = returns_to_go(jnp.ones(where.shape, score.dtype), where=where)[..., None] - 1
    highest = real & (mark == jnp.max(mark, 1, where=real, initial=-jnp.inf, keepdims=True))
    forms = {
        "scaled": lambda: jnp.where(mark < 0, -1, mark / 3 * S),
        "normalized": lambda: jnp.where(total > 0, a / jnp.where(total > 0, total, 1), 1 / n) * S,
        "progress": lambda: mark / 10 * S,
        "discount": lambda: decay**remaining * S,
        "uniform": lambda: S,
        "key": lambda: jnp.where(highest & (jnp.cumsum(highest, 1) == 1), S, 0),
    }
    return jnp.where(real, forms[form](), 0)
