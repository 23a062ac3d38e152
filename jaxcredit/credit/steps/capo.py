import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import rounding, standardize, to_tokens
from jaxcredit.rollout import Rollout, outcome, return_rounding


@per_group(
    needs=("error",),
    paper="2508.02298",
    fidelity="paper",
    granularity="step",
    family="steps",
    cost="one pass of a judge over each answer, times the votes",
    reduces_to="grpo over tokens (longer answers weigh more) with w_proc=0",
)
def capo(
    group: Rollout, *, w_whole: float = 2.0, w_proc: float = 1.0, ddof: int = 0, eps: float = 1e-6
):
    """The outcome, less something on the steps that a judge marked wrong, against all tokens of the group.

        A_it = (r_it - mean r) / (std r + eps),   r_it = w_whole R_i - w_proc e_ik;   mean and std over every policy token of the group

    CAPO, arXiv 2508.02298. Signal: error, after the votes (`jaxcredit.kernels.vote`; a critique that cannot be read marks nothing).
    R is 1 or 0. That the deviation is over tokens too is known from notes about the paper, whose code is not released.
    """
    error = jnp.where(group.segment_mask, group["error"], 0)
    r = to_tokens(w_whole * outcome(group), group) - w_proc * to_tokens(error, group)
    error_of_r = abs(w_whole) * return_rounding(group).max() + rounding(
        abs(w_proc) * jnp.abs(error).max()
    )
    return standardize(r, where=group.action_mask, ddof=ddof, eps=eps, slack=error_of_r)
