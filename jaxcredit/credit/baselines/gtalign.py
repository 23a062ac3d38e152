from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import nash_welfare, standardize, to_tokens
from jaxcredit.rollout import Rollout, trajectory_mask


@per_group(
    needs=("utility",),
    paper="2510.08872",
    fidelity="ours",
    family="baselines",
    cost="a utility of the answer for each player",
    reduces_to="grpo if every utility is the outcome and none is negative",
)
def gtalign(group: Rollout, *, ddof: int = 0, eps: float = 1e-6):
    """GRPO on the geometric mean of all players' utilities (our design).

        W_i = (prod_a u_ia)^(1/A),   with a user and a model sqrt(u_user u_model)
        A_i = (W_i - mean W) / (std W + eps)

    Signals: utility [N, G, A], the trajectory's utility for each player
    (`rewards.gtalign_utilities`). W is 0 where any utility is 0 or less. The
    rollout's own reward is not used.

    Args:
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a trajectory.

    Departs from the paper: its released code gives W as the reward to PPO with a
    critic. Here the group replaces the critic.

    Source: GTAlign, arXiv 2510.08872 (the reward W).
    """
    return to_tokens(
        standardize(
            nash_welfare(group["utility"]), where=trajectory_mask(group), ddof=ddof, eps=eps
        ),
        group,
    )
