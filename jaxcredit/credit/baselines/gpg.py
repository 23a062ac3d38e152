from typing import Literal

import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import center, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_batch(
    paper="2504.02546",
    fidelity="code",
    family="baselines",
    zero_sum=True,
    reduces_to="dr_grpo where no outcome is 0 (form='paper': where no group is flat)",
)
def gpg(batch: Rollout, *, f_norm: float = 1.0, form: Literal["code", "paper"] = "code"):
    """The outcome less the group's mean, enlarged by the share of the batch that teaches something.

        A_i = alpha (R_i - mean R) / f_norm,   alpha = #trajectories / #{j : R_j != 0}        (form="code")
                                               alpha = #groups / #{groups with unequal R}     (form="paper")

    Group policy gradient, arXiv 2504.02546. The default is the form that verl carries; the paper counts the groups without a gradient.
    Where nothing counts, alpha is that of a count of one; a group of one gets 0 (the code gives its whole reward).
    """
    R, real = outcome(batch), trajectory_mask(batch)
    far = jax.vmap(lambda R, real: center(R, where=real))(R, real)
    all_of, some = (real, real & (R != 0)) if form == "code" else (real.any(-1), (far != 0).any(-1))
    alpha = all_of.sum() / jnp.maximum(some.sum(), 1)
    return jax.vmap(to_tokens)(far * (alpha / f_norm).astype(far.dtype), batch)
