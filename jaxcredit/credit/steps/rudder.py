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
    """Returns of the differences of a predicted outcome, less the mean of the peers (our design).

        r_k = g_{k+1} - g_k + e_k,   sum_k e_k = R - sum_k (g_{k+1} - g_k);   A_ik = G_ik - mean_j G_jk,   G_ik = r_ik + gamma G_i,k+1

    RUDDER, arXiv 1806.07857. Signal: info, the prediction g of R before each segment and after the last. residual="last" leaves e to
    the last segment, "uniform" gives all an equal share; the new rewards add up to R. The redistribution is the paper's; the policy
    gradient around it is our design: the return from a segment on, against its peers at that segment.
    """
    real = group.segment_mask
    r = shaping(group["info"], real)
    share = (
        is_last(real) if residual == "last" else real / jnp.maximum(real.sum(-1, keepdims=True), 1)
    )
    r = r + (outcome(group) - r.sum(-1))[:, None] * share.astype(r.dtype)
    return to_tokens(returns_over_peers(r, gamma=gamma, where=real), group)
