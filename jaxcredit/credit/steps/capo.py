import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import rounding_bound, standardize, to_tokens
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
    """Outcome minus a penalty on steps judged wrong, normalized over the group's policy tokens.

        r_it = w_whole R_i - w_proc e_ik,   k the step of token t
        A_it = (r_it - mean r) / (std r + eps)

    R_i is the sum of trajectory i's rewards, 1 or 0 in the paper. The mean and the standard
    deviation are over all policy tokens of the group, so longer answers weigh more.

    Signals: error [N, G, K], 1 if the judges' votes mark the step as wrong, else 0
    (`jaxcredit.kernels.vote` counts them). A critique that cannot be parsed marks nothing.

    Args:
        w_whole: float, weight of the outcome; 2 in the paper.
        w_proc: float, penalty of a wrong step; 1 in the paper. With w_whole > w_proc every token of
            a right answer stays above every token of a wrong one.
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a step. It is 0 if all tokens of the group
        have the same r.

    The authors released no code. The deviation over tokens is known from notes about the paper.

    Source: CAPO, arXiv 2508.02298.
    """
    error = jnp.where(group.segment_mask, group["error"], 0)
    r = to_tokens(w_whole * outcome(group), group) - w_proc * to_tokens(error, group)
    slack = abs(w_whole) * return_rounding(group).max() + rounding_bound(
        abs(w_proc) * jnp.abs(error).max()
    )
    return standardize(r, where=group.action_mask, ddof=ddof, eps=eps, slack=slack)
