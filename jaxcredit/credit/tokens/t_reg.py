import jax

from jaxcredit.credit.compose import advantage_of
from jaxcredit.credit.lift import Credit, per_group
from jaxcredit.rollout import Rollout


@per_group(
    needs=("better_logp", "worse_logp"),
    paper="2412.02685",
    fidelity="paper",
    granularity="token",
    family="tokens",
    cost="2 forward passes of the reference: prompts for a better and a worse answer",
    min_group_size=1,
)
def t_reg(group: Rollout, *, beta: float = 1.0, mix: float = 0.5, base: Credit | None = None):
    """Token credit from contrastive prompts: better-answer against worse-answer odds.

        A_t = beta (sigmoid(log p(y_t | better) - log p(y_t | worse)) - 1/2)
            = beta (p_better / (p_better + p_worse) - 1/2)

    The policy-gradient loss of A is the paper's regularizer of DPO.

    Signals: better_logp [N, R, T] and worse_logp [N, R, T], log-probabilities under
    prompts that ask for a better and for a worse answer.

    Args:
        beta: float > 0; 0.1 in the paper.
        mix: float in [0, 1], used with `base`.
        base: None, or an estimator of one prompt: the credit is then
            (1 - mix) A_base + mix A (our design, for RL).

    Returns:
        Advantage [N, R, T], one number a token. Without `base` it is within
        [-beta / 2, beta / 2].

    Raises:
        ValueError: `base` takes statistics over the batch.

    Source: T-REG, arXiv 2412.02685 (ACL 2025).
    """
    A = beta * (jax.nn.sigmoid(group["better_logp"] - group["worse_logp"]) - 0.5)
    return A if base is None else (1 - mix) * advantage_of(base, group) + mix * A
