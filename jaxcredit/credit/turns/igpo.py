from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import is_last, returns_to_go, rounding, standardize, to_tokens
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
    """A turn earns what it adds to the probability of the gold answer, the last turn the outcome; all in the group's deviations.

        A_ik = x_ik + gamma A_i,k+1,   x_ik = z(IG_ik), and z(R_i) for the last turn,   IG_ik = m_i,k+1 - m_ik

    IGPO, arXiv 2510.14967, and its released code. Signal: info, m_ik = the mean log-probability of the gold answer's tokens before turn
    k. `kind="prob"` takes differences of exp(m). `pool`: gains and outcomes have a mean and deviation each ("separate", the paper's
    script) or share one ("joint"). Departs from the code: turns are segments (there, runs of nonzero reward), and the variance has no
    1e-8 added. A gain that is not finite is no gain.
    """
    m = jnp.exp(group["info"]) if kind == "prob" else group["info"]
    gain, last, R = (
        m[:, 1:] - m[:, :-1],
        is_last(group.segment_mask),
        jnp.broadcast_to(outcome(group)[:, None], group.segment_mask.shape),
    )
    asks = group.segment_mask & ~last & jnp.isfinite(gain)
    x = jnp.where(asks, gain, R)
    error = jnp.where(
        asks, rounding(jnp.abs(m[:, 1:]) + jnp.abs(m[:, :-1])), return_rounding(group)[:, None]
    )

    def z(where):
        return standardize(x, where=where, ddof=ddof, eps=eps, slack=error)

    x = z(asks | last) if pool == "joint" else z(asks) + z(last)
    return to_tokens(returns_to_go(x, gamma, where=group.segment_mask), group)
