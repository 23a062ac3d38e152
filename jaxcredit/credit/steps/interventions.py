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
    """Weights for supervised training on the steps up to the corrected one.

        A_ik = w_ik = 1 if k <= pivot_i, else 0

    Each trajectory is a wrong answer whose first wrong step t* was replaced by a proposed step y~.
    With the objective `nll` the loss is the paper's

        -log pi(y~_t* | y_<t*) - sum_{t < t*} log pi(y_t | y_<t)

    The paper trains with GRPO afterwards.

    Signals: pivot [N, G] (int), the step that was replaced. -1: no proposed step led any
    continuation to the right answer, and the trajectory has weight 0. The rollout's own reward is
    not used.

    Returns:
        Dict of `advantage` and `weight`, each [N, R, T]: 1 on the policy's tokens up to the end of
        the replaced step, 0 on the others. `weight` is a token's weight in the loss.

    Source: InT, arXiv 2601.14209.
    """
    K = group.segment_mask.shape[1]
    trained = group.segment_mask & (jnp.arange(K) <= group["pivot"][:, None])
    w = to_tokens(trained.astype(group.logp.dtype), group)
    return {"advantage": w, "weight": w}
