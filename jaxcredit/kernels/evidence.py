"""Where in an answer something is decided, pooled over groups: sums by place that can be added up over prompts and over steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Evidence(NamedTuple):
    """Sums over the visited nodes of each place. A node is answers at one token, its children those of them that choose alike there.

    Only nodes that tell something count: more than one child, and one of them shared (1 < C < n).
    """

    found: Float[
        Array, "*B"
    ]  # SSB - (C - 1) s^2: the children's scatter beyond what chance explains; 0 in expectation if nothing is decided
    most: Float[Array, "*B"]  # s^2 (n - C): what that would be if the token decided all
    noise: Float[Array, "*B"]  # variance of `found` where nothing is decided: 2 (C - 1)(n - C)/(n + 1) s^4
    tokens: Float[Array, "*B"]  # how many the policy chose there


def evidence(
    x: Float[Array, "R"],
    tokens: Int[Array, "R T"],
    mask: Bool[Array, "R T"],
    prefix: Int[Array, "R R"],
    place: Int[Array, "R T"],
    places: int,
) -> Evidence:
    """What one group says. Rows i and j are at one node at column t if both choose there and prefix_ij >= t.

    SSB = sum_c n_c (mean_c - mean)^2, and s^2 the node's variance of x over n - 1. However the rewards of a node are dealt out to its
    answers, SSB is (C - 1) s^2 on average, so nothing need be known of noise, of other prompts or of the scale of rewards.
    `prefix` is `common_prefix` (a node is a beginning) or T everywhere (a node is a column, whatever came before).
    """
    R, T = tokens.shape
    column, zero = jnp.arange(T), jnp.zeros((R, T), x.dtype)
    there = mask.any(-1)
    x = jnp.where(there, x - jnp.where(there, x, 0).sum() / jnp.maximum(there.sum(), 1), 0)
    others = (tokens, mask, prefix.T, x)

    def meet(sums, other):  # one row after the other: nothing larger than [R, T]
        y, chosen, shared, r = other
        here = mask & chosen & (shared[:, None] >= column)
        like = here & (tokens == y)
        return jax.tree.map(jnp.add, sums, (here * 1.0, here * r, here * r * r, like * 1.0, like * r)), None

    (n, s, q, k, c), _ = jax.lax.scan(meet, (zero,) * 5, others)
    n, k = jnp.maximum(n, 1), jnp.maximum(k, 1)

    def count(C, other):
        chosen, shared, k = other
        return C + (mask & chosen & (shared[:, None] >= column)) / k, None

    C = jnp.round(jax.lax.scan(count, zero, (mask, prefix.T, k))[0])
    variance = jnp.maximum(q - s * s / n, 0) / jnp.maximum(n - 1, 1)
    tells = mask & (C > 1) & (C < n)
    # Each row brings its share of its node's sums.
    each = Evidence(
        found=(c / k - s / n) ** 2 - variance * (1 / k - 1 / n),
        most=variance * (1 - 1 / k),
        noise=2 * (C - 1) * (n - C) / (n + 1) * variance**2 / n,
        tokens=zero,
    )
    each = Evidence(*(jnp.where(tells, v, 0) for v in each))._replace(tokens=mask.astype(x.dtype))
    return Evidence(*(jnp.zeros(places, x.dtype).at[place].add(v) for v in each))


def remember(old: Evidence, new: Evidence, decay: float | Float[Array, ""]) -> Evidence:
    """decay * old + new, a running total: what is `decay` as much has a variance of `decay`^2."""
    return Evidence(*(b + a * (decay * decay if name == "noise" else decay) for name, a, b in zip(old._fields, old, new, strict=True)))


def relative_weight(e: Evidence, least: float | Float[Array, ""] = 0.1) -> Float[Array, "B"]:
    """Weights with mean 1 over the tokens, by the places' shares of decided variance, shrunk to their mean as far as chance scatters them.

        share_b = found_b / most_b,  e_b^2 = noise_b / most_b^2,  m = sum found / sum most
        tau^2 = max(0, sum_b most_b ((share_b - m)^2 - e_b^2) / sum most),   z_b = m + tau^2 / (tau^2 + e_b^2) (share_b - m)
        w_b ~ least + (1 - least) max(z_b, 0) / max_b z_b

    Where a share over what chance explains is the signal-to-noise ratio of one answer's gradient, these are the weights that make the
    whole gradient's largest. A place of which nothing is known has z = m; if places do not differ beyond chance, all weigh 1.
    """
    known = e.most > 0
    most, total = jnp.where(known, e.most, 1), jnp.maximum(e.most.sum(), jnp.finfo(e.most.dtype).tiny)
    share, error2, m = e.found / most, e.noise / most**2, e.found.sum() / total
    tau2 = jnp.maximum((e.most * ((share - m) ** 2 - error2)).sum() / total, 0)
    trust = jnp.where(known & (tau2 > 0), tau2 / jnp.where(tau2 > 0, tau2 + error2, 1), 0)
    z = jnp.maximum(m + trust * (share - m), 0)
    top = z.max()
    w = jnp.where(top > 0, least + (1 - least) * z / jnp.where(top > 0, top, 1), 1)
    n = e.tokens.sum()
    mean = jnp.where(n > 0, (w * e.tokens).sum() / jnp.where(n > 0, n, 1), 1)
    return w / mean
