from functools import partial

import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import is_last, map_turns, returns_to_go, standardize, to_tokens
from jaxcredit.kernels.masked import root
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    needs=("gain",),
    paper="2605.06200",
    fidelity="paper",
    granularity="turn",
    family="turns",
    cost="log p(gold answer) after each turn",
    reduces_to="grpo with alpha=0 and kappa=0",
)
def a2tgpo(
    group: Rollout,
    *,
    alpha: float = 0.3,
    kappa: float = 0.3,
    gamma: float = 1.0,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """The outcome, and what each turn's information gain was among the same turns of the group, in units of one variance.

        A_ik = (R_i - mean R) / (std R + eps) + alpha D_ik,   D_ik = sum_{l >= k} gamma^(l - k) n_il / sqrt(number of terms)
        clip_ik = 1 + kappa (2 sigmoid(n_ik) - 1),   n_ik = (IG_ik - mean_k) / (std_k + eps)

    A2TGPO, arXiv 2605.06200. Signal: gain, of all turns but the last (the answer, which has the outcome alone and clip 1). A turn that
    only one trajectory has gives n = 0, which still counts as a term. Meant for `losses.turn_clip`. Departs from released code: turns
    are segments, not runs of equal advantage.
    """
    asks = group.segment_mask & ~is_last(group.segment_mask)
    n = map_turns(partial(standardize, ddof=ddof, eps=eps), group["gain"], asks)
    terms = returns_to_go(jnp.ones_like(n), where=asks)
    D = returns_to_go(n, gamma, where=asks) / root(jnp.maximum(terms, 1))
    A = to_tokens(
        standardize(outcome(group), where=trajectory_mask(group), ddof=ddof, eps=eps), group
    )
    width = jnp.where(asks, kappa * (2 * jax.nn.sigmoid(n) - 1), 0)
    return {
        "advantage": A + alpha * to_tokens(jnp.where(asks, D, 0), group),
        "clip": 1 + to_tokens(width, group),
    }
