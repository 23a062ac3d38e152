from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import is_last, returns_to_go, rounding_bound, standardize, to_tokens
from jaxcredit.rollout import Rollout, outcome, return_rounding


@per_group(
    needs=("info",),
    paper="2510.14967",
    fidelity="code",
    granularity="turn",
    family="turns",
    cost="log p(gold answer) before the first turn and after each",
    reduces_to="grpo with one turn",
)
def igpo(
    group: Rollout,
    *,
    kind: Literal["log", "prob"] = "log",
    pool: Literal["separate", "joint"] = "separate",
    gamma: float = 1.0,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Return of normalized information gains of turns, with the normalized outcome as last reward.

        A_ik = x_ik + gamma A_i,k+1
        x_ik = z(IG_ik), and z(R_i) in the last turn,   IG_ik = m_i,k+1 - m_ik
        z(y) = (y - mean y) / (std y + eps)   over the group

    m_ik is the mean log-probability of the gold answer's tokens before turn k. R_i is the sum of
    trajectory i's rewards. A gain that is not finite counts as absent (x = 0).

    Signals: info [N, G, K+1], m before each turn and after the last one.

    Args:
        kind: "log" (gains are differences of m) or "prob" (of exp(m), the released code's default).
        pool: "separate" (z of the gains and z of the outcomes, the authors' script) or "joint"
            (one z over both, the released code's default).
        gamma: float in [0, 1], discount per turn; 1 in the paper.
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a turn.

    Raises:
        ValueError: `kind` or `pool` is not one of its values.

    Departs from released code: a turn is a segment, not a run of tokens that ends with a nonzero
    reward. The variance has no 1e-8 added.

    Source: IGPO, arXiv 2510.14967, and its released code.
    """
    turns = group.segment_mask
    m = jnp.exp(group["info"]) if kind == "prob" else group["info"]
    gain, last = m[:, 1:] - m[:, :-1], is_last(turns)
    R = jnp.broadcast_to(outcome(group)[:, None], turns.shape)
    gain_turns = turns & ~last & jnp.isfinite(gain)
    y = jnp.where(gain_turns, gain, R)
    gain_rounding = rounding_bound(jnp.abs(m[:, 1:]) + jnp.abs(m[:, :-1]))
    slack = jnp.where(gain_turns, gain_rounding, return_rounding(group)[:, None])

    def z(where):
        return standardize(y, where=where, ddof=ddof, eps=eps, slack=slack)

    x = z(gain_turns | last) if pool == "joint" else z(gain_turns) + z(last)
    return to_tokens(returns_to_go(x, gamma, where=turns), group)
