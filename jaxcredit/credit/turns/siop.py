import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import is_last, returns_to_go, rounding_bound, standardize, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("info", "answer_weight"),
    paper="2605.04984",
    fidelity="code",
    granularity="turn",
    family="turns",
    cost="log p(own answer) before the first turn and after each, and entailment between the "
    "group's answers",
    reduces_to="igpo's log gains where answer_weight is 1 and lam=1",
)
def siop(
    group: Rollout,
    *,
    lam: float = 0.5,
    gamma: float = 1.0,
    floor: float = 1e-8,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Return of normalized gains in the log-probability of the own answer, times its reliability.

        A_ik = z(r_ik) + gamma A_i,k+1,   z(r) = (r - mean r) / (std r + eps) over the group's turns
        r_ik = q_i [log(p_i,k+1 + floor) - log(p_ik + floor)],   plus (1 - lam) q_i in the last turn

    p_ik is the probability of trajectory i's own answer before turn k, and q_i the reliability of
    that answer among the group's answers. No gold label is needed, and the rollout's own reward is
    not used.

    Signals: info [N, G, K+1], log p before each turn and after the last one; answer_weight [N, G],
    q (`jaxcredit.kernels.answer_weights`), 0 or below for a trajectory without an answer.

    Args:
        lam: float in [0, 1]. The last turn earns (1 - lam) q_i more; 0.5 in the released code.
        gamma: float in [0, 1], discount per turn; 1 in the released code.
        floor: float > 0, added to the probabilities; 1e-8 in the released code.
        ddof: int, 0 or 1. The variance divides by n - ddof; released code takes 1.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a turn. As in the released code, a
        trajectory of one turn has r = (1 - lam) q_i without a gain. One without an answer gets 0
        and is not part of z.

    Source: SIOP, arXiv 2605.04984, and its released code.
    """
    q = group["answer_weight"][:, None]
    turns = group.segment_mask & (group["answer_weight"] > 0)[:, None]
    logp = jnp.logaddexp(group["info"], jnp.log(jnp.maximum(floor, 1e-30)))
    gain = jnp.where(turns.sum(-1, keepdims=True) > 1, logp[:, 1:] - logp[:, :-1], 0)
    last = jnp.where(is_last(turns), 1 - lam, 0)
    r = q * (gain + last)
    magnitude = jnp.abs(q) * (jnp.abs(logp[:, 1:]) + jnp.abs(logp[:, :-1]) + jnp.abs(last))
    z = standardize(r, where=turns, ddof=ddof, eps=eps, slack=rounding_bound(magnitude))
    return to_tokens(returns_to_go(z, gamma, where=turns), group)
