from typing import Literal

import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import (
    center,
    chain_rows,
    returns_to_go,
    rounding_bound,
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
    """Returns of implicit process rewards plus the leave-one-out outcome advantage.

        r_it = beta (log pi_prm - log pi_ref),   m_j = mean_t r_jt
        b_i  = mean_(j != i) m_j
        A_it = sum_(s >= t) gamma^(s-t) (r_is - b_i) + outcome_weight (R_i - mean_(j != i) R_j)

    form="code" replaces r_is - b_i by n / (n - 1) (r_is - mean_j m_j), where n is the
    number of trajectories in the group.

    Signals: prm_logp [N, R, T] (log-probability under the implicit reward model) and
    ref_logp [N, R, T].

    Args:
        beta: float > 0, scale of the process rewards; 0.05 in the paper.
        gamma: float in [0, 1], discount for each policy token.
        outcome_weight: float >= 0, weight of the outcome's advantage.
        form: "paper" or "code", the baselines above.
        whiten: bool. True: normalized over the batch's policy tokens (released code,
            with ddof=1).
        ddof: int, 0 or 1. The variance of whitening divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], one number a token. Before whitening, a group with one
        trajectory gets 0.

    Raises:
        ValueError: `form` is not one of its values.

    Source: PRIME, arXiv 2502.01456.
    """

    def advantage(group):
        real, row = trajectory_mask(group), group.row
        r = jnp.where(group.action_mask, beta * (group["prm_logp"] - group["ref_logp"]), 0)
        m = jax.ops.segment_sum(r.sum(-1), row, real.shape[0]) / jnp.maximum(
            trajectory_lengths(group), 1
        )
        m, n = jnp.where(real, m, 0), real.sum()
        peers = jnp.maximum(n - 1, 1)
        step = (
            r - ((m.sum() - m) / peers)[row][:, None]
            if form == "paper"
            else (n * r - m.sum()) / peers
        )
        process = chain_rows(returns_to_go(step, gamma, where=group.action_mask), gamma, group)
        outcomes = to_tokens(
            outcome_weight * center(outcome(group), where=real, leave_one_out=True), group
        )
        return jnp.where(n > 1, process + outcomes, 0)

    A = jax.vmap(advantage)(batch)
    if not whiten:
        return A
    size = jnp.where(batch.action_mask, jnp.abs(batch["prm_logp"]) + jnp.abs(batch["ref_logp"]), 0)
    error = abs(outcome_weight) * return_rounding(batch).max() + rounding_bound(
        beta * size.sum(-1).max(), size.shape[-1]
    )
    return standardize(A, where=batch.action_mask, ddof=ddof, eps=eps, slack=error)
