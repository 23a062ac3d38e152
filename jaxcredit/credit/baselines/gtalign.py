from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import nash_welfare, standardize, to_tokens
from jaxcredit.rollout import Rollout, trajectory_mask


@per_group(
    needs=("utility",),
    paper="2510.08872",
    fidelity="ours",
    family="baselines",
    cost="a utility of the answer for each player",
    reduces_to="grpo where all players' utilities are the outcome (and not negative)",
)
def gtalign(group: Rollout, *, ddof: int = 0, eps: float = 1e-6):
    """GRPO on the geometric mean of all players' utilities (our design).

        A_i = (W_i - mean W) / (std W + eps),   W_i = (prod_a u_ia)^(1/A), for user and model sqrt(u_user u_model)

    GTAlign's reward, by its released code, which hands W to PPO with a critic; our design is the group in the critic's place. Signal:
    utility (`rewards.gtalign_utilities`). Nobody can be made to pay: W is 0 where any utility is 0 or less.
    """
    return to_tokens(
        standardize(
            nash_welfare(group["utility"]), where=trajectory_mask(group), ddof=ddof, eps=eps
        ),
        group,
    )
