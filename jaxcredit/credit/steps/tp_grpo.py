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
    reduces_to="grpo where right answers have no error and wrong ones nothing else, or on right answers with alpha=0",
)
def tp_grpo(
    group: Rollout, *, alpha: float = 0.5, correct: float = 0.5, ddof: int = 0, eps: float = 1e-6
):
    """GRPO, with wrong thoughts of right answers marked down and right thoughts of wrong answers left alone.

        A_ik = o_i - alpha acc e_ik   if R_i > correct,   else   e_ik o_i;   o = grpo's number, acc = share of right answers

    TP-GRPO (Good Learners Think Their Thinking), arXiv 2507.23317. Signal: error of a thought; in a wrong answer 1 where the thought
    agrees with the wrong answer, 0 where it does not. This is the paper's closed form: its process rewards (+-alpha acc, or +-o_i)
    summed from each thought on say the same where labels alternate and the last thought is of the kind that ends the answer. Its alpha
    is not known to us.
    """
    R, there = outcome(group), trajectory_mask(group)
    right = R > correct
    o = standardize(R, where=there, ddof=ddof, eps=eps)[:, None]
    penalty = alpha * masked_mean(right.astype(R.dtype), there)
    error = jnp.where(group.segment_mask, group["error"], 0)
    return to_tokens(jnp.where(right[:, None], o - penalty * error, error * o), group)
