import dataclasses

import jax.numpy as jnp

from jaxcredit.credit.baselines.reinforce_pp import reinforce_pp
from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import next_value, shaping
from jaxcredit.rollout import FilledRollout


@per_batch(
    needs=("info",),
    paper="2508.10293",
    fidelity="paper",
    granularity="step",
    family="steps",
    cost="n short answers forced before each step and at the end",
    min_group_size=1,
    reduces_to="reinforce_pp where no step changes the accuracy",
)
def vsrm(
    batch: FilledRollout,
    *,
    gamma: float = 0.7,
    Q: int = 3,
    threshold: float = 0.05,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """REINFORCE++ on the outcome plus step rewards: each step's change of the accuracy.

        d_k = a_{k+1} - a_k
        r_k = d_k               if |d_k| >= threshold
        r_k = gamma^q d_{k+q}   otherwise, for the first q <= Q with |d_{k+q}| >= threshold
        r_k = 0                 if there is no such q
        A_t = (G_t - mean G) / (std G + eps)

    G_t sums the rollout's rewards and the step rewards r from token t on; both are earned at the
    last token of a step. Mean and deviation are over all policy tokens of the batch.

    Signals: info [N, G, K+1], the accuracy a of answers that are forced before each step and after
    the last one.

    Args:
        gamma: float in [0, 1], discount of a later step's change. The paper's value is not known.
        Q: int >= 0, the most steps to look ahead. The paper's value is not known.
        threshold: float >= 0, the least change that counts. The paper's value is not known.
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T].

    The paper trains by REINFORCE++ or PPO; this is REINFORCE++, with discount 1.

    Source: VSRM, arXiv 2508.10293.
    """
    segments = batch.segment_mask
    d = shaping(batch["info"], segments)
    large = segments & (jnp.abs(d) >= threshold)
    step = jnp.cumsum(segments, -1).astype(d.dtype)
    q = next_value(step, large) - step  # negative after the last large change
    delayed = jnp.where((q > 0) & (q <= Q), next_value(d, large) * gamma ** jnp.clip(q, 1, Q), 0)
    r = jnp.where(segments, jnp.where(large, d, delayed), 0)
    return reinforce_pp.unlifted(
        dataclasses.replace(batch, reward=batch.reward + r), ddof=ddof, eps=eps
    )
