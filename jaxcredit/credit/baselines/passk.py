import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import std_by, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    paper="2503.19595",
    fidelity="code",
    family="baselines",
    affine=True,
)
def passk(group: Rollout, *, normalize: bool = True, ddof: int = 0, eps: float = 1e-6):
    """Gradient of the group's maximum: the best answer's lead over the second best.

        A_i = max(0, R_i - max_(j != i) R_j) / (std R + eps)

    Args:
        normalize: bool. False: no division by the standard deviation.
        ddof: int, 0 or 1. The variance divides by n - ddof; the released
            code takes 1.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a trajectory: >= 0, and
        above 0 for at most one trajectory of a group. A tie at the top gives 0 to all.

    Departs from released code: a group with one trajectory gets 0 (the code
    refuses it).

    Source: Optimizing Language Models for Inference Time Objectives, arXiv 2503.19595, as in verl.
    """
    R, real = outcome(group), trajectory_mask(group)
    std = std_by(R, where=real, ddof=ddof)
    others = real & ~jnp.eye(len(R), dtype=bool)
    best_other = jnp.where(others, R, R.min()).max(-1)
    lead = jnp.where(std > 0, jnp.maximum(R - best_other, 0), 0)
    return to_tokens(lead / jnp.where(std > 0, std + eps, 1) if normalize else lead, group)
