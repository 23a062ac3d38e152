import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("pivot",),
    paper="2601.14209",
    fidelity="paper",
    granularity="step",
    family="steps",
    cost="a reference solution, a proposed step, and 32 continuations that test it",
    min_group_size=1,
)
def interventions(group: Rollout):
    """Supervision up to the intervention on the first wrong step: what led there and the new step, and nothing after it.

        A_ik = w_ik = 1[k <= pivot_i]

    InT, arXiv 2601.14209. Signal: pivot, the step that was replaced; -1 where no intervention was found that any continuation could
    finish, and nothing is learned. The reward is not looked at. With the objective `nll` this is the paper's
    -log pi(y~_t* | y_<t*) - sum_{t < t*} log pi(y_t | y_<t); GRPO follows it.
    """
    upto = group.segment_mask & (jnp.arange(group.segment_mask.shape[1]) <= group["pivot"][:, None])
    w = to_tokens(upto.astype(group.logp.dtype), group)
    return {"advantage": w, "weight": w}
