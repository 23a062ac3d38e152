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
    cost="2 forward passes of the reference, with a prompt that asks for a better answer and one for a worse",
    min_group_size=1,
)
def t_reg(group: Rollout, *, beta: float = 1.0, mix: float = 0.5, base: Credit | None = None):
    """How much more a token belongs to a better answer than to a worse, by the model's own word.

        A_t = beta (sigmoid(log p(y_t | better) - log p(y_t | worse)) - 1/2) = beta (p_b / (p_b + p_w) - 1/2)

    T-REG, arXiv 2412.02685. Signals: better_logp, worse_logp. The policy-gradient loss of this credit is the paper's regulariser of DPO
    (beta = 0.1 there). With a `base` (our design, for RL): (1 - mix) A_base + mix A.
    """
    A = beta * (jax.nn.sigmoid(group["better_logp"] - group["worse_logp"]) - 0.5)
    return A if base is None else (1 - mix) * advantage_of(base, group) + mix * A
