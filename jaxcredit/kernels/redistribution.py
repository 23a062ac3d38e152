"""Rewards moved along a trajectory: potentials, what is left over, and the losses by which a decomposition of the return is learned."""

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
    """F_k = gamma Phi_{k+1} - Phi_k from potentials before and after each of K entries; 0 where nothing is real (Ng et al. 1999).

    Where `ended`, the state after the last real entry has the potential 0, whatever is given: then the discounted sum of F is -Phi_0
    on every path, and no policy becomes better or worse than another. With gamma=1 and nothing ended these are plain differences.
    """
    after = jnp.where(is_last(where) & jnp.asarray(ended)[..., None], 0, potential[..., 1:])
    return jnp.where(where, gamma * after - potential[..., :-1], 0)


def returns_over_peers(
    reward: Float[Array, "G K"],
    *,
    gamma: float | int | Float[Array, ""] = 1.0,
    where: Bool[Array, "G K"],
) -> Float[Array, "G K"]:
    """A_ik = G_ik - mean_j G_jk with G_ik = r_ik + gamma G_i,k+1; peers are the trajectories that have a segment k.

    The plain policy gradient of rewards inside a trajectory. Alone at its position a segment gets exactly 0.
    """
    G = returns_to_go(reward, gamma, where=where)
    return jnp.where(where, G - masked_mean(G, where, axis=0, keepdims=True), 0)


def decomposition_loss(
    reward: Float[Array, "*b K"], total: Float[Array, "*b"], where: Bool[Array, "*b K"]
) -> Float[Array, "*b"]:
    """(mean_k r_k - R / n)^2 over a trajectory's n real entries: a learned reward adds up to the return."""
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
    """`decomposition_loss` seen through `chosen`, m of the n real entries drawn without replacement (RRD, arXiv 2111.13485).

        (mean_m r - R / n)^2 - (1 - m / n) / m  var_m r,   var with m - 1

    The second term makes the mean over all draws exactly the loss of the whole. It needs m >= 2: of a single entry no variance is known,
    and the loss stays the biased one. With m = n there is nothing to correct.
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
    """`count` of each trajectory's real entries at random, without replacement; all of them where they are fewer."""
    lot = jnp.where(where, jax.random.uniform(key, where.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(lot, -1), -1)
    return where & (rank < count)


def utterance_rewards(
    mark: Float[Array, "G K D"],
    score: Float[Array, "G D"],
    where: Bool[Array, "G K"],
    *,
    form: UtteranceForm = "scaled",
    decay: float = 0.9,
) -> Float[Array, "G K D"]:
    """What utterance k of n earns of the score S in each dimension (Sotopia-RL, arXiv 2508.03905, released code).

        scaled      a_k / 3 S for marks 0 to 3, and -1 where a_k < 0        progress   a_k / 10 S, marks 0 to 10
        normalised  a_k / sum a S, marks below 0 counting 0; S / n where all do      discount   decay^(n - 1 - k) S
        uniform     S                                                       key        S for the utterance of the highest mark

    Of equal marks the first is `key`. The `normalized` rewards sum to S, the others do not.
    """
    check_choice("utterance_rewards", "form", form, get_args(UtteranceForm))
    real = where[..., None]
    S = jnp.broadcast_to(score[:, None], mark.shape)
    a = jnp.where(real, jnp.maximum(mark, 0), 0)
    total, n = a.sum(1, keepdims=True), jnp.maximum(real.sum(1, keepdims=True), 1)
    left = returns_to_go(jnp.ones(where.shape, score.dtype), where=where)[..., None] - 1
    top = real & (mark == jnp.max(mark, 1, where=real, initial=-jnp.inf, keepdims=True))
    forms = {
        "scaled": lambda: jnp.where(mark < 0, -1, mark / 3 * S),
        "normalized": lambda: jnp.where(total > 0, a / jnp.where(total > 0, total, 1), 1 / n) * S,
        "progress": lambda: mark / 10 * S,
        "discount": lambda: decay**left * S,
        "uniform": lambda: S,
        "key": lambda: jnp.where(top & (jnp.cumsum(top, 1) == 1), S, 0),
    }
    return jnp.where(real, forms[form](), 0)
