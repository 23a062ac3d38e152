import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import is_last, returns_to_go, rounding, standardize, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("info", "answer_weight"),
    paper="2605.04984",
    fidelity="code",
    granularity="turn",
    family="turns",
    cost="log p(own answer) before the first turn and after each, and entailment between the group's answers",
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
    """Without gold labels: a turn earns what it adds to the log-probability of its own answer, by how far the group trusts that answer.

        A_ik = z(r_ik) + gamma A_i,k+1,   r_ik = q_i [log(p_i,k+1 + floor) - log(p_ik + floor)],   and (1 - lam) q_i for the last turn

    SIOP, arXiv 2605.04984, and its released code (ddof=1 there). Signals: info, log p of the answer's references before each turn;
    answer_weight, q (`kernels.answer_weights`). z pools all turns of the group. As released, a trajectory of one turn has its last
    term alone, and one without an answer (q <= 0) has no reward at all. The group's rewards are not looked at.
    """
    q, real = (
        group["answer_weight"][:, None],
        group.segment_mask & (group["answer_weight"] > 0)[:, None],
    )
    logp = jnp.logaddexp(group["info"], jnp.log(jnp.maximum(floor, 1e-30)))
    gain = jnp.where(real.sum(-1, keepdims=True) > 1, logp[:, 1:] - logp[:, :-1], 0)
    last = jnp.where(is_last(real), 1 - lam, 0)
    r, size = (
        q * (gain + last),
        jnp.abs(q) * (jnp.abs(logp[:, 1:]) + jnp.abs(logp[:, :-1]) + jnp.abs(last)),
    )
    return to_tokens(
        returns_to_go(
            standardize(r, where=real, ddof=ddof, eps=eps, slack=rounding(size)), gamma, where=real
        ),
        group,
    )
