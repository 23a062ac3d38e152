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
    """Base credit plus a share of its magnitude at planning tokens.

        A'_it = A_it + alpha |A_it| at planning tokens, else A_it

    Signals: planning [N, R, T] (1 or 0); with form="code" also entropy [N, R, T].

    Args:
        alpha: float in [0, 1), 0.2 in the paper; 0 leaves the base as it is.
        base: the credit A, an estimator of one prompt; dr_grpo in the paper, grpo in
            the released branch.
        form: "paper", or "code" (the released branch), which also raises tokens whose
            entropy is above the top `share` of their row, in trajectories with A > 0
            that are longer than the group's mean.
        share: float in [0, 1], used with form="code"; 0.3 in the released branch.

    Returns:
        Advantage [N, R, T], one number a token. A group no longer sums to 0.

    Raises:
        ValueError: `form` is not one of its values, or `base` takes statistics over
            the batch.

    Source: HICRA, arXiv 2509.03646.
    """
    A = advantage_of(base, group)
    chosen = group["planning"] > 0
    if form == "code":
        real, entropy, n = trajectory_mask(group), group["entropy"], group.action_mask.sum(-1)
        lengths = jnp.where(real, trajectory_lengths(group), 0)
        longer = lengths * real.sum() > lengths.sum()
        count = n - jnp.floor((1 - share) * n + 1e-4).astype(n.dtype)
        uncertain = (
            entropy > kth_largest(entropy, jnp.clip(count, 0, n), group.action_mask)[:, None]
        )
        chosen |= uncertain & (A > 0) & longer[group.row][:, None]
    return jnp.where(chosen, A + alpha * jnp.abs(A), A)
