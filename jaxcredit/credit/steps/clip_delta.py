import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import is_last, next_value, returns_over_peers, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("process",),
    paper="2410.15115",
    fidelity="ours",
    granularity="step",
    family="steps",
    reduces_to="returns of the reward alone with alpha=0; of every process score with eta=None, delta=False",
)
def clip_delta(
    group: Rollout,
    *,
    alpha: float = 1.0,
    eta: float | None = 0.0,
    delta: bool = True,
    last_step: bool = False,
    gamma: float = 1.0,
):
    """Returns of process scores that are clipped from above and differenced, less the mean of the peers (our design).

        clip: c_k = min(p_k - eta, 0);   delta: q_k = c_k - c_{k+1}, the last step without a score;   reward r_k + alpha q_k
        A_ik = G_ik - mean_j G_jk,   G_ik = sum_{l >= k} gamma^{l-k} (r_il + alpha q_il)

    On Designing Effective RL Reward at Training Time (Clip and Delta), arXiv 2410.15115. Signal: process. `eta=None` and `delta=False`
    leave one of the two out. Whether the last step keeps its score (`last_step=True`) is not certain in our sources; as a default its
    place is the verifier's. Our design: the paper trains by PPO with a critic; here a return is compared with its peers' at that step.
    eta=0 is the middle of scores in [-1, 1].
    """
    q, real = group["process"], group.segment_mask
    q = q if eta is None else jnp.minimum(q - eta, 0)
    if delta:
        q = q if last_step else jnp.where(is_last(real), 0, q)
        q = q - next_value(q, real)
    return to_tokens(
        returns_over_peers(group.reward + alpha * jnp.where(real, q, 0), gamma=gamma, where=real),
        group,
    )
