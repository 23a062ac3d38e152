import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import rounding_bound, standardize, to_tokens
from jaxcredit.rollout import Rollout, trajectory_mask


@per_batch(
    needs=("components",),
    paper="2601.05242",
    fidelity="code",
    family="baselines",
    reduces_to="grpo, whitened over the batch, with one component",
)
def gdpo(
    batch: Rollout,
    *,
    weights: tuple[float, ...] | None = None,
    per_token: bool = True,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Per-reward group normalization: each reward component is normalized by itself.

        a_i = sum_c w_c (r_ic - mean r_c) / (std r_c + eps)      in each group
        A_i = (a_i - mean a) / (std a + eps)                     over the batch

    Signals: components [N, G, C], the parts of the reward. The rollout's own reward
    is not used. Two answers with the same total from different parts get different
    advantages.

    Args:
        weights: tuple of C floats w_c, or None for 1 each.
        per_token: bool. True: the batch's mean and deviation count every policy
            token (the released code). False: they count every trajectory once.
        ddof: int, 0 or 1. The variance divides by n - ddof in both
            normalizations; the released code takes 1.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a trajectory.

    Departs from released code: a group with one trajectory, or with equal
    components, has a_i = 0 before the batch is normalized (the code gives a single
    trajectory its whole components).

    Source: GDPO, arXiv 2601.05242, and its released code.
    """
    parts, real = batch["components"], trajectory_mask(batch)
    normalize = jax.vmap(lambda r, mask: standardize(r, where=mask, ddof=ddof, eps=eps))
    normalized = jax.vmap(normalize, (2, None), 2)(parts, real)
    normalized = normalized * (
        jnp.ones(parts.shape[-1]) if weights is None else jnp.asarray(weights)
    ).astype(parts.dtype)
    total, slack = (
        normalized.sum(-1),
        rounding_bound(jnp.abs(normalized).sum(-1).max(), parts.shape[-1]),
    )
    if per_token:
        return standardize(
            jax.vmap(to_tokens)(total, batch),
            where=batch.action_mask,
            ddof=ddof,
            eps=eps,
            slack=slack,
        )
    return jax.vmap(to_tokens)(
        standardize(total, where=real, ddof=ddof, eps=eps, slack=slack), batch
    )
