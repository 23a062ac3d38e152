from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import rounding, standardize, to_tokens
from jaxcredit.rollout import Rollout, outcome, return_rounding, trajectory_mask


@per_group(
    needs=("density",),
    paper="2602.03647",
    fidelity="ours",
    family="baselines",
    cost="a mark for each retrieved passage",
    reduces_to="grpo with weight=0, or where density is equal and form is gated",
)
def search_r2(
    group: Rollout,
    *,
    weight: float = 0.5,
    form: Literal["gated", "weighted", "product"] = "gated",
    ddof: int = 0,
    eps: float = 1e-6,
):
    """GRPO on the outcome joined with the share of useful retrieved passages (our design).

        A_i = (H_i - mean H) / (std H + eps),   H_i = R_i (1 + weight d_i)   gated
                                                H_i = R_i + weight d_i       weighted
                                                H_i = R_i d_i                product

    Search-R2, arXiv 2602.03647, names both parts; how they are joined is our design (gated: nothing without a right answer). Signal:
    density, 0 where nothing was retrieved. Rows of the refiner are rows of its trajectory and share this credit (our design too).
    """
    R, d = outcome(group), group["density"]
    H = {"gated": R * (1 + weight * d), "weighted": R + weight * d, "product": R * d}[form]
    error = (
        return_rounding(group) + rounding(jnp.abs(weight * d)) if form == "weighted" else None
    )  # a product cancels nothing
    return to_tokens(
        standardize(H, where=trajectory_mask(group), ddof=ddof, eps=eps, slack=error), group
    )
