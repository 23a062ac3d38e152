import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import rounding, standardize, to_tokens
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
    """Each part of the reward against the group by itself; the sum in standard deviations of the batch.

        A_i = (a_i - mean a) / (std a + eps),   a_i = sum_c w_c (r_ic - mean r_c) / (std r_c + eps)

    GDPO, arXiv 2601.05242. Signal: components; the rollout's own reward is not read. Two answers that earn the same sum in different
    parts stay apart. The batch's mean and deviation are over policy tokens, as in the released code; `per_token=False` counts every
    trajectory once. The code takes sample deviations (ddof=1); weights=None is 1 each.
    """
    parts, real = batch["components"], trajectory_mask(batch)
    column = jax.vmap(lambda r, there: standardize(r, where=there, ddof=ddof, eps=eps))
    each = jax.vmap(column, (2, None), 2)(parts, real)
    each = each * (jnp.ones(parts.shape[-1]) if weights is None else jnp.asarray(weights)).astype(
        parts.dtype
    )
    a, slack = each.sum(-1), rounding(jnp.abs(each).sum(-1).max(), parts.shape[-1])
    if per_token:
        return standardize(
            jax.vmap(to_tokens)(a, batch), where=batch.action_mask, ddof=ddof, eps=eps, slack=slack
        )
    return jax.vmap(to_tokens)(standardize(a, where=real, ddof=ddof, eps=eps, slack=slack), batch)
