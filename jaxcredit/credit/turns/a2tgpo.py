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
    """GRPO plus rescaled sums of each turn's information gain, normalized per turn number.

        A_ik = (R_i - mean R) / (std R + eps) + alpha D_ik
        D_ik = sum_{l >= k} gamma^(l - k) n_il / sqrt(number of terms)
        n_ik = (IG_ik - mean_i IG_ik) / (std_i IG_ik + eps)
        clip_ik = 1 + kappa (2 sigmoid(n_ik) - 1)

    R_i is the sum of trajectory i's rewards. The mean and the deviation in n_ik are over the
    group's trajectories that have turn k before their last turn. The last turn is the answer: it
    has no gain, D = 0 and clip = 1. The division by the square root keeps the variance of D equal
    in all turns.

    Signals: gain [N, G, K], the information gain IG of each turn; the last turn's is not used.

    Args:
        alpha: float, weight of the gains; 0.3 in the paper.
        kappa: float in [0, 1), range of the clip width; 0.3 in the paper.
        gamma: float in [0, 1], discount per turn; 1 in the paper.
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Columns `advantage` and `clip`, each [N, R, T], the same for all tokens of a turn. `clip`
        multiplies the objective's clip width; `losses.turn_clip` is the paper's objective. A turn
        that no other trajectory has gets n = 0, which counts as a term of D. Tokens outside any
        turn get the outcome term alone, with clip 1.

    Departs from released code: a turn is a segment, not a run of tokens with equal advantage.

    Source: A2TGPO, arXiv 2605.06200.
    """
    normalize = partial(standardize, ddof=ddof, eps=eps)
    gain_turns = group.segment_mask & ~is_last(group.segment_mask)
    n = map_turns(normalize, group["gain"], gain_turns)
    terms = returns_to_go(jnp.ones_like(n), where=gain_turns)
    D = returns_to_go(n, gamma, where=gain_turns) / root(jnp.maximum(terms, 1))
    A = to_tokens(normalize(outcome(group), where=trajectory_mask(group)), group)
    width = jnp.where(gain_turns, kappa * (2 * jax.nn.sigmoid(n) - 1), 0)
    return {
        "advantage": A + alpha * to_tokens(jnp.where(gain_turns, D, 0), group),
        "clip": 1 + to_tokens(width, group),
    }
