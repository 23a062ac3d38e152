import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import (
    rounding_bound,
    standardize,
    to_tokens,
    token_positions,
    trajectory_lengths,
)
from jaxcredit.rollout import Rollout, outcome, return_rounding, trajectory_mask


@per_group(
    needs=("continued",),
    paper="2512.15274",
    fidelity="paper",
    granularity="token",
    family="tokens",
    cost="8 continuations of each answer's beginning",
    reduces_to="grpo with eta=1 and nothing continued",
)
def pppo(group: Rollout, *, eta: float = 0.15, ddof: int = 0, eps: float = 1e-6):
    """Group-normalized credit for an answer's beginning, scored by its continuations.

        S_i = R_i + continued_i
        A_it = (S_i - mean S) / (std S + eps) if t <= max(1, floor(eta n_i)), else 0

    n_i is the number of policy tokens of trajectory i, t counts them from 1. Tokens
    after the beginning stay in the loss's denominator, as in the paper.

    Signals: continued [N, G], how many continuations of the answer's first eta n_i
    tokens came out right.

    Args:
        eta: float in (0, 1], the share of the answer that is the beginning. The paper
            grows it from 0.15 to 0.35 (`jaxcredit.signals.schedules.retention`).
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], equal on the tokens of a beginning, 0 after it.

    Source: PPPO, arXiv 2512.15274.
    """
    continued = group["continued"]
    A = standardize(
        outcome(group) + continued,
        where=trajectory_mask(group),
        ddof=ddof,
        eps=eps,
        slack=return_rounding(group) + rounding_bound(jnp.abs(continued)),
    )
    n = trajectory_lengths(group).astype(A.dtype)
    # The factor makes 0.35 of 20 tokens 7 in float32, too.
    beginning = jnp.maximum(jnp.floor(eta * n * (1 + 1e-6)), 1)
    return jnp.where(token_positions(group) <= to_tokens(beginning, group), to_tokens(A, group), 0)
