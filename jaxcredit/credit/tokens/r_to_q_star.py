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
    """Implicit token advantage of a policy trained on preferences: its log-ratio.

        A_t = beta (log pi(y_t) - log pi_ref(y_t)) = r_t + V*(s_(t+1)) - V*(s_t)

    pi is the policy of the rollout's `logp`. In every state E_ref exp(A / beta) = 1.
    Summed over an answer it is DPO's implicit reward. The rollout's own reward is not
    used.

    Signals: ref_logp [N, R, T].

    Args:
        beta: float > 0, the KL coefficient of the preference training.

    Returns:
        Advantage [N, R, T], one number a token.

    Source: From r to Q*, arXiv 2404.12358.
    """
    return beta * (group.logp - group["ref_logp"])
