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
    """Only the best of the group is credited, with its lead over the second: the gradient of the group's maximum.

        A_i = max(0, R_i - max_{j != i} R_j) / (std R + eps)

    Optimising pass@k, arXiv 2503.19595, as in verl, which takes the sample deviation (ddof=1 here) and refuses a group of one: it gets 0
    here. A tie at the top is worth 0 to everybody. `normalize=False` leaves the deviation out.
    """
    R, real = outcome(group), trajectory_mask(group)
    std = std_by(R, where=real, ddof=ddof)
    others = real & ~jnp.eye(len(R), dtype=bool)
    best_other = jnp.where(others, R, R.min()).max(-1)
    lead = jnp.where(std > 0, jnp.maximum(R - best_other, 0), 0)
    return to_tokens(lead / jnp.where(std > 0, std + eps, 1) if normalize else lead, group)
