from jaxcredit.credit.critics.ppo import ppo
from jaxcredit.credit.lift import per_batch
from jaxcredit.rollout import FilledRollout


@per_batch(
    needs=("token_value",),
    paper="2510.01132",
    fidelity="code",
    granularity="token",
    family="critics",
    cost="a critic",
    min_group_size=1,
    reduces_to="ppo with equal gamma and lam (the turns' rewards are part of the rollout)",
)
def masked_gae(
    batch: FilledRollout,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """GAE over several turns, where tokens of the environment take no time.

        delta_t = r_t + gamma V_next - V_t,   A_t = delta_t + gamma lam A_next

    `next` is the policy's next token, across the observations in between. The result
    equals GAE of the row with the observations cut out. A turn's reward is earned at
    its last policy token.

    Signals: token_value [N, R, T].

    Args:
        gamma: float in [0, 1], discount for each policy token.
        lam: float in [0, 1], GAE's lambda.
        whiten: bool. True: the advantage is normalized over the batch's policy tokens.
        ddof: int, 0 or 1. The variance divides by n - ddof; the released
            code takes 1.
        eps: float >= 0, added to the standard deviation.

    Returns:
        A dict of "advantage" and "target" = unwhitened advantage + value, both
        [N, R, T], one number a token.

    Source: A Practitioner's Guide to Multi-Turn Agentic RL, arXiv 2510.01132, and its
    released code.
    """
    return ppo.unlifted(batch, gamma=gamma, lam=lam, whiten=whiten, ddof=ddof, eps=eps)
