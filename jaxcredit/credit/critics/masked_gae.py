from jaxcredit.credit.critics.ppo import ppo
from jaxcredit.credit.lift import per_batch
from jaxcredit.rollout import Rollout


@per_batch(
    needs=("token_value",),
    paper="2510.01132",
    fidelity="code",
    granularity="token",
    family="critics",
    cost="a critic",
    min_group_size=1,
    reduces_to="ppo, always, at equal gamma and lam: the difference is in the rewards of the turns",
)
def masked_gae(
    batch: Rollout,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """GAE over several turns with a reward for each: what the environment wrote neither earns nor costs time.

        A_t = r_t + gamma V_next - V_t + gamma lam A_next,   next: the policy's next token, across what was observed between

    A practitioner's guide to multi-turn agentic RL, arXiv 2510.01132, and its released code (ddof=1 there). Signal: token_value. Turn
    rewards lie on each turn's last token. The same numbers as GAE of the row with the observations cut out.
    """
    return ppo.unlifted(batch, gamma=gamma, lam=lam, whiten=whiten, ddof=ddof, eps=eps)
