"""Evidence of decisions: energy of the policy gradient by class of token position, over groups.

A class of positions is called a place, such as a range of depths in the answer. The sums add up
over prompts and over steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Evidence(NamedTuple):
    """Sums of the evidence of decisions at each place.

    Attributes:
        found: [B] energy of the policy gradient at the place beyond chance. 0 in expectation where
            nothing is decided.
        noise: [B] energy that chance alone puts into the gradient.
        square: [B] sum over groups of found^2: the variance of `found` where nothing is decided.
        tokens: [B] number of tokens that the policy sampled.
    """

    found: Float[Array, "*B"]
    noise: Float[Array, "*B"]
    square: Float[Array, "*B"]
    tokens: Float[Array, "*B"]


def gradient_coherence(
    x: Float[Array, "R"],
    tokens: Int[Array, "R T"],
    mask: Bool[Array, "R T"],
    prefix: Int[Array, "R R"],
) -> Float[Array, "R T"]:
    """Squared length of the expected policy gradient at each token's node, estimated without bias.

        sum_c (n_c (mean_c - mean))^2 - s^2 (n - sum_c n_c^2 / n)

    Sums run over the choices c at a node. The first term is the squared gradient of a table with
    one row for the node. The second is its mean over all permutations of the node's rewards, s^2
    being their variance over n - 1. Each row gets its share of its node. Rows i and j meet in a
    node at column t if both sample there and prefix_ij >= t. With `common_prefix` a node is a
    shared prefix; with T everywhere it is a column.

    Args:
        x: [R] return of each row.
        tokens: [R, T] token ids.
        mask: [R, T] tokens that the policy sampled.
        prefix: [R, R] number of shared columns.

    Returns:
        [R, T] energies, of either sign.
    """
    column, zero, has_tokens = (
        jnp.arange(tokens.shape[1]),
        jnp.zeros(tokens.shape, x.dtype),
        mask.any(-1),
    )
    x = jnp.where(
        has_tokens, x - jnp.where(has_tokens, x, 0).sum() / jnp.maximum(has_tokens.sum(), 1), 0
    )

    # A scan over rows: no temporary is larger than [R, T].
    def meet(sums, other):
        y, chosen, shared, r = other
        same_node = mask & chosen & (shared[:, None] >= column)
        same_choice = same_node & (tokens == y)
        terms = (
            same_node * 1.0,
            jnp.where(same_node, r, 0),
            jnp.where(same_node, r * r, 0),
            same_choice * 1.0,
            jnp.where(same_choice, r, 0),
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
    """Evidence of one group, summed by place.

        noise = sum v (1 - p),   v = variance of x in the group

    E (1 - p) = 1 - sum_a pi_a^2 is the expected squared score of a softmax.

    Args:
        coherent: [R, T] energies from `gradient_coherence`.
        x: [R] return of each row.
        logp: [R, T] log-probability of each token.
        mask: [R, T] tokens that the policy sampled.
        place: [R, T] place of each token, 0..places-1.
        places: number of places B.

    Returns:
        Arrays [B].
    """
    has_tokens = mask.any(-1)
    n = jnp.maximum(has_tokens.sum(), 1)
    centered = jnp.where(has_tokens, x - jnp.where(has_tokens, x, 0).sum() / n, 0)
    v = (centered * centered).sum() / jnp.maximum(n - 1, 1)
    terms = (coherent, jnp.where(mask, v * (1 - jnp.exp(logp)), 0), mask.astype(x.dtype))
    found, noise, tokens = (jnp.zeros(places, x.dtype).at[place].add(y) for y in terms)
    return Evidence(found, noise, found * found, tokens)


def accumulate_evidence(old: Evidence, new: Evidence, decay: float | Float[Array, ""]) -> Evidence:
    """Running total of evidence: decay * old + new. Squares decay by decay^2.

    Args:
        old: running total.
        new: evidence of a new batch.
        decay: factor of the old total, in [0, 1].

    Returns:
        The new total.
    """
    return Evidence(
        *(
            b + a * (decay * decay if name == "square" else decay)
            for name, a, b in zip(old._fields, old, new, strict=True)
        )
    )


def evidence_weights(e: Evidence, least: float | Float[Array, ""] = 0.1) -> Float[Array, "B"]:
    """Weights of places by signal over noise, with mean 1 over tokens, shrunk toward their mean.

        s_b = found_b / noise_b,   e_b^2 = square_b / noise_b^2,   m = sum found / sum noise
        <y> = sum_b noise_b y_b / sum noise,   tau^2 = max(0, <(s - m)^2 - e^2>)
        z_b = max(0, m + tau^2 / (tau^2 + e_b^2) (s_b - m)) + <e^2>^(1/2)
        w_b ~ least + (1 - least) z_b / max z

    Weights proportional to signal over noise maximize that ratio of the whole gradient. The
    shrinkage is that of a random-effects mean (DerSimonian and Laird 1986). Places that differ by
    no more than chance get nearly equal weights.

    Args:
        e: evidence, arrays [B].
        least: smallest weight relative to the largest, in [0, 1].

    Returns:
        [B] weights; 1 without evidence.
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
