"""Where in an answer something is decided, pooled over groups: sums by place that can be added up over prompts and over steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Evidence(NamedTuple):
    """What groups say of each place."""

    found: Float[
        Array, "*B"
    ]  # energy of the policy gradient there beyond chance: 0 in expectation where nothing is decided
    noise: Float[Array, "*B"]  # what chance alone puts into a gradient there
    square: Float[
        Array, "*B"
    ]  # sum over groups of found^2, which is the variance of `found` where nothing is decided
    tokens: Float[Array, "*B"]  # how many the policy chose there


def gradient_coherence(
    x: Float[Array, "R"],
    tokens: Int[Array, "R T"],
    mask: Bool[Array, "R T"],
    prefix: Int[Array, "R R"],
) -> Float[Array, "R T"]:
    """How far peers who choose alike earn alike, beyond chance; each row has a share of its node.

        sum_c (n_c (mean_c - mean))^2 - s^2 (n - sum_c n_c^2 / n)

    The first term is the squared gradient of a table with one row for the node, the second its mean over all deals of the node's rewards
    (s^2 their variance over n - 1). So it estimates the squared length of the expected gradient, and nothing need be known of noise, of
    other prompts or of the scale of rewards. Rows i and j meet in a node at column t if both choose there and prefix_ij >= t: with
    `common_prefix` a node is a beginning, with T everywhere a column, whatever came before.
    """
    column, zero, there = (
        jnp.arange(tokens.shape[1]),
        jnp.zeros(tokens.shape, x.dtype),
        mask.any(-1),
    )
    x = jnp.where(there, x - jnp.where(there, x, 0).sum() / jnp.maximum(there.sum(), 1), 0)

    def meet(sums, other):  # one row after the other: nothing is larger than [R, T]
        y, chosen, shared, r = other
        here = mask & chosen & (shared[:, None] >= column)
        like = here & (tokens == y)
        terms = (
            here * 1.0,
            jnp.where(here, r, 0),
            jnp.where(here, r * r, 0),
            like * 1.0,
            jnp.where(like, r, 0),
        )
        return jax.tree.map(jnp.add, sums, terms), None

    (n, s, q, k, c), _ = jax.lax.scan(meet, (zero,) * 5, (tokens, mask, prefix.T, x))
    n, k = jnp.maximum(n, 1), jnp.maximum(k, 1)
    variance = jnp.maximum(q - s * s / n, 0) / jnp.maximum(n - 1, 1)
    return jnp.where(mask, k * (c / k - s / n) ** 2 - variance * (1 - k / n), 0)


def bin_evidence(
    coherent: Float[Array, "R T"],
    x: Float[Array, "R"],
    logp: Float[Array, "R T"],
    mask: Bool[Array, "R T"],
    place: Int[Array, "R T"],
    places: int,
) -> Evidence:
    """One group's sums by place. noise = sum v (1 - p), v the group's variance: E (1 - p) = 1 - sum_a pi_a^2 = E |score|^2 of a softmax."""
    there = mask.any(-1)
    n = jnp.maximum(there.sum(), 1)
    far = jnp.where(there, x - jnp.where(there, x, 0).sum() / n, 0)
    v = (far * far).sum() / jnp.maximum(n - 1, 1)
    each = (coherent, jnp.where(mask, v * (1 - jnp.exp(logp)), 0), mask.astype(x.dtype))
    found, noise, tokens = (jnp.zeros(places, x.dtype).at[place].add(y) for y in each)
    return Evidence(found, noise, found * found, tokens)


def accumulate_evidence(old: Evidence, new: Evidence, decay: float | Float[Array, ""]) -> Evidence:
    """decay * old + new, a running total; squares fade by decay^2."""
    return Evidence(
        *(
            b + a * (decay * decay if name == "square" else decay)
            for name, a, b in zip(old._fields, old, new, strict=True)
        )
    )


def evidence_weights(e: Evidence, least: float | Float[Array, ""] = 0.1) -> Float[Array, "B"]:
    """Weights with mean 1 over the tokens, by the places' signal over noise, shrunk to their mean as far as chance scatters them.

        s_b = found_b / noise_b,   e_b^2 = square_b / noise_b^2,   m = sum found / sum noise,   <y> = sum_b noise_b y_b / sum noise
        tau^2 = max(0, <(s - m)^2 - e^2>),   z_b = max(0, m + tau^2 / (tau^2 + e_b^2) (s_b - m)) + <e^2>^(1/2)
        w_b ~ least + (1 - least) z_b / max z

    Of all weights by place, those as signal over noise give the whole gradient the largest ratio of the two. The shrinkage is that of a
    random-effects mean (DerSimonian and Laird). Places that do not differ beyond chance weigh nearly alike; before any evidence, 1.
    """
    total = e.noise.sum()
    share = e.noise / jnp.where(total > 0, total, 1)
    noise = jnp.where(e.noise > 0, e.noise, 1)
    s, error2 = e.found / noise, e.square / noise**2
    m = e.found.sum() / jnp.where(total > 0, total, 1)
    tau2 = jnp.maximum((share * ((s - m) ** 2 - error2)).sum(), 0)
    trust = jnp.where((e.noise > 0) & (tau2 > 0), tau2 / jnp.where(tau2 > 0, tau2 + error2, 1), 0)
    z = jnp.maximum(m + trust * (s - m), 0) + jnp.sqrt((share * error2).sum())
    top = z.max()
    w = jnp.where(top > 0, least + (1 - least) * z / jnp.where(top > 0, top, 1), 1)
    n = e.tokens.sum()
    return w / jnp.where(n > 0, (w * e.tokens).sum() / jnp.where(n > 0, n, 1), 1)
