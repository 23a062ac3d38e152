from jaxcredit.credit.lift import per_group
from jaxcredit.rollout import Rollout


@per_group(
    needs=("ref_logp",),
    paper="2404.12358",
    fidelity="paper",
    granularity="token",
    family="tokens",
    cost="1 forward pass of the reference",
    min_group_size=1,
)
def r_to_q_star(group: Rollout, *, beta: float = 0.1):
    """The advantage that a policy trained by preferences holds implicitly in each of its tokens.

        A_t = beta (log pi(y_t) - log pi_ref(y_t)) = r_t + V*(s_{t+1}) - V*(s_t),   so that E_ref exp(A / beta) = 1 in every state

    From r to Q*, arXiv 2404.12358. Signal: ref_logp. `logp` is that of the policy whose credit is read. Summed over an answer it is the
    implicit reward of DPO. The reward of the rollout is not read.
    """
    return beta * (group.logp - group["ref_logp"])
