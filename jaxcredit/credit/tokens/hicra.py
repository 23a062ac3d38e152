from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.baselines.dr_grpo import dr_grpo
from jaxcredit.credit.compose import advantage_of
from jaxcredit.credit.lift import Credit, per_group
from jaxcredit.kernels import kth_largest, trajectory_lengths
from jaxcredit.rollout import Rollout, trajectory_mask


@per_group(
    needs=("planning",),
    paper="2509.03646",
    fidelity="paper",
    granularity="token",
    family="tokens",
    reduces_to="its base (dr_grpo) with alpha=0, or without planning tokens",
)
def hicra(
    group: Rollout,
    *,
    alpha: float = 0.2,
    base: Credit = dr_grpo,
    form: Literal["paper", "code"] = "paper",
    share: float = 0.3,
):
    """Tokens that plan get more credit when things went well, and less blame when they did not.

        A'_it = A_it + alpha |A_it| where the token plans, else A_it

    HICRA, arXiv 2509.03646. Signal: planning. The released branch (form="code", and signal entropy) also takes the tokens whose entropy
    is above the top `share` of their row's, in trajectories that are right (A > 0) and longer than the group's mean. Sums over a group
    are no longer 0. The branch's base is grpo.
    """
    A = advantage_of(base, group)
    chosen = group["planning"] > 0
    if form == "code":
        there, entropy, n = trajectory_mask(group), group["entropy"], group.action_mask.sum(-1)
        size = jnp.where(there, trajectory_lengths(group), 0)
        longer = size * there.sum() > size.sum()
        kept = n - jnp.floor((1 - share) * n + 1e-4).astype(n.dtype)
        unsure = entropy > kth_largest(entropy, jnp.clip(kept, 0, n), group.action_mask)[:, None]
        chosen |= unsure & (A > 0) & longer[group.row][:, None]
    return jnp.where(chosen, A + alpha * jnp.abs(A), A)
