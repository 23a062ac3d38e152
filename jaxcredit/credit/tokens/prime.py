from typing import Literal

import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import (
    center,
    chain_rows,
    returns_to_go,
    rounding,
    standardize,
    to_tokens,
    trajectory_lengths,
)
from jaxcredit.rollout import Rollout, outcome, return_rounding, trajectory_mask


@per_batch(
    needs=("prm_logp", "ref_logp"),
    paper="2502.01456",
    fidelity="paper",
    granularity="token",
    family="tokens",
    cost="2 forward passes: the implicit reward model and the reference",
    reduces_to="rloo where prm_logp is ref_logp",
)
def prime(
    batch: Rollout,
    *,
    beta: float = 0.05,
    gamma: float = 1.0,
    outcome_weight: float = 1.0,
    form: Literal["paper", "code"] = "paper",
    whiten: bool = False,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Rewards of each token from a model trained on outcomes alone, against the others' mean token, with the outcome's own credit.

        A_it = sum_{s >= t} gamma^(s-t) (r_is - b_i) + outcome_weight (R_i - mean_{j != i} R_j),   r = beta (log pi_prm - log pi_ref)
        b_i = mean_{j != i} m_j,   m_j = mean_t r_jt

    PRIME, arXiv 2502.01456. Signals: prm_logp, ref_logp. The released code (form="code") takes n/(n-1) (r_is - mean_j m_j) for r_is - b_i
    and then whitens over the batch (whiten=True, ddof=1). Alone in its group a trajectory gets 0.
    """

    def one(group):
        there, row = trajectory_mask(group), group.row
        r = jnp.where(group.action_mask, beta * (group["prm_logp"] - group["ref_logp"]), 0)
        m = jax.ops.segment_sum(r.sum(-1), row, there.shape[0]) / jnp.maximum(
            trajectory_lengths(group), 1
        )
        m, n = jnp.where(there, m, 0), there.sum()
        others = jnp.maximum(n - 1, 1)
        step = (
            r - ((m.sum() - m) / others)[row][:, None]
            if form == "paper"
            else (n * r - m.sum()) / others
        )
        process = chain_rows(returns_to_go(step, gamma, where=group.action_mask), gamma, group)
        final = to_tokens(
            outcome_weight * center(outcome(group), where=there, leave_one_out=True), group
        )
        return jnp.where(n > 1, process + final, 0)

    A = jax.vmap(one)(batch)
    if not whiten:
        return A
    size = jnp.where(batch.action_mask, jnp.abs(batch["prm_logp"]) + jnp.abs(batch["ref_logp"]), 0)
    error = abs(outcome_weight) * return_rounding(batch).max() + rounding(
        beta * size.sum(-1).max(), size.shape[-1]
    )
    return standardize(A, where=batch.action_mask, ddof=ddof, eps=eps, slack=error)
