from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import is_last, returns_over_peers, shaping, to_tokens
from jaxcredit.rollout import Rollout, outcome


@per_group(
    needs=("info",),
    paper="1806.07857",
    fidelity="ours",
    granularity="step",
    family="steps",
    cost="a model of the return, learned beside the policy",
    reduces_to="dr_grpo with one segment",
)
def rudder(group: Rollout, *, residual: Literal["last", "uniform"] = "last", gamma: float = 1.0):
    """Return of a predicted outcome's differences, less the peers' mean (our design).

        r_k = g_{k+1} - g_k + e_k,   sum_k e_k = R - sum_k (g_{k+1} - g_k)
        A_ik = G_ik - mean_j G_jk,   G_ik = r_ik + gamma G_i,k+1

    The redistributed rewards r of a trajectory add up to its outcome R, the sum of its rewards. The
    mean is over the trajectories of the group that have a segment k.

    Signals: info [N, G, K+1], a model's prediction g of R before each segment and after the last.

    Args:
        residual: "last" (the last segment gets all of what the differences leave of R) or "uniform"
            (all segments get an equal share of it).
        gamma: float in [0, 1], discount per segment.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Raises:
        ValueError: `residual` is not one of its values.

    Departs from the paper: the redistribution is the paper's; the return less the peers' mean is
    not.

    Source: RUDDER, arXiv 1806.07857 (the redistribution).
    """
    segments = group.segment_mask
    r = shaping(group["info"], segments)
    share = (
        is_last(segments)
        if residual == "last"
        else segments / jnp.maximum(segments.sum(-1, keepdims=True), 1)
    )
    r = r + (outcome(group) - r.sum(-1))[:, None] * share.astype(r.dtype)
    return to_tokens(returns_over_peers(r, gamma=gamma, where=segments), group)
