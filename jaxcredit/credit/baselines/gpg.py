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
    reduces_to="dr_grpo if no return is 0 (form='paper': if no group has equal returns)",
)
def gpg(batch: Rollout, *, f_norm: float = 1.0, form: Literal["code", "paper"] = "code"):
    """Group-mean advantage, scaled up by the share of the batch without a gradient.

        A_i = alpha (R_i - mean R) / f_norm

        form="code":   alpha = #trajectories / #{j : R_j != 0}
        form="paper":  alpha = #groups / #{groups with unequal returns}

    Args:
        f_norm: float > 0, divides the advantage; 1 in the released code.
        form: "code" (verl's scale) or "paper" (the scale of the paper's equation).

    Returns:
        Advantage [N, R, T], the same for all tokens of a trajectory. The
        trajectories of a group sum to 0.

    Raises:
        ValueError: `form` is not one of its values.

    Departs from released code: a group with one trajectory gets 0, not its whole
    return. The denominator of alpha is at least 1.

    Source: Group Policy Gradient, arXiv 2504.02546, as in verl.
    """
    R, real = outcome(batch), trajectory_mask(batch)
    centered = jax.vmap(lambda R, real: center(R, where=real))(R, real)
    counted, informative = (
        (real, real & (R != 0)) if form == "code" else (real.any(-1), (centered != 0).any(-1))
    )
    alpha = counted.sum() / jnp.maximum(informative.sum(), 1)
    return jax.vmap(to_tokens)(centered * (alpha / f_norm).astype(centered.dtype), batch)
