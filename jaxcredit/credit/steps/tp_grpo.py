import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import masked_mean, standardize, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    needs=("error",),
    paper="2507.23317",
    fidelity="paper",
    granularity="step",
    family="steps",
    cost="one pass of a judge over each answer",
    reduces_to="grpo where error is 0 on right answers and 1 on wrong ones, and on right answers "
    "with alpha=0",
)
def tp_grpo(
    group: Rollout, *, alpha: float = 0.5, correct: float = 0.5, ddof: int = 0, eps: float = 1e-6
):
    """GRPO that penalizes wrong thoughts of right answers and spares right thoughts of wrong ones.

        A_ik = o_i - alpha acc e_ik   if R_i > correct   (a right answer)
        A_ik = e_ik o_i               otherwise          (a wrong answer)
        o_i = (R_i - mean R) / (std R + eps),   acc = share of right answers in the group

    R_i is the sum of trajectory i's rewards. A thought is a segment.

    Signals: error [N, G, K], e. In a right answer 1 marks a wrong thought. In a wrong answer 1
    marks a thought that agrees with the answer, and 0 one that does not.

    Args:
        alpha: float, penalty of a wrong thought. The paper's value is not known.
        correct: float, return above which an answer is right.
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a thought.

    This is the paper's closed form. It equals o_i plus the paper's process rewards (+-alpha acc, or
    +-o_i) summed from the thought to the end, if labels alternate and the last thought has no
    process reward.

    Source: Good Learners Think Their Thinking (TP-GRPO), arXiv 2507.23317.
    """
    R, trajectories = outcome(group), trajectory_mask(group)
    right = R > correct
    o = standardize(R, where=trajectories, ddof=ddof, eps=eps)[:, None]
    penalty = alpha * masked_mean(right.astype(R.dtype), trajectories)
    error = jnp.where(group.segment_mask, group["error"], 0)
    return to_tokens(jnp.where(right[:, None], o - penalty * error, error * o), group)
