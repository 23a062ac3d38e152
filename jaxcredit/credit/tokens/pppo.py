import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import rounding, standardize, to_tokens, token_positions, trajectory_lengths
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
    """Credit for an answer's beginning alone, which is worth how many of its continuations come out right.

        A_it = [t <= max(1, floor(eta n_i))] (S_i - mean S) / (std S + eps),   S_i = R_i + continued_i

    PPPO, arXiv 2512.15274. Signal: continued, out of as many tries from the first eta of the answer. n_i are the policy's tokens; those
    after the beginning stay in the loss's denominator, as in the paper. eta grows during training: `jaxcredit.signals.retention`.
    """
    more = group["continued"]
    A = standardize(
        outcome(group) + more,
        where=trajectory_mask(group),
        ddof=ddof,
        eps=eps,
        slack=return_rounding(group) + rounding(jnp.abs(more)),
    )
    n = trajectory_lengths(group).astype(A.dtype)
    kept = jnp.maximum(
        jnp.floor(eta * n * (1 + 1e-6)), 1
    )  # so that 0.35 of 20 tokens are 7 in float32, too
    return jnp.where(token_positions(group) <= to_tokens(kept, group), to_tokens(A, group), 0)
