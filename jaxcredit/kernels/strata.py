"""How much of a group's variance lies between its strata."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.masked import masked_mean
from jaxcredit.kernels.peers import centre


def variance_parts(
    x: Float[Array, "*s"], by: Int[Array, "*s"], where: Bool[Array, "*s"] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Var_G, Var_S and what lies between: Var_G - Var_S = 1/n sum_k n_k (mean_k - mean)^2 >= 0 (arXiv 2510.06214).

    Var_G is the variance of x - mean, Var_S that of x - mean_k, k the stratum of each. The third number is computed from the means.
    """
    whole, within = centre(x, where=where), centre(x, by, where)
    whole, within, between = (masked_mean(y * y, where) for y in (whole, within, whole - within))
    return whole, within, jnp.asarray(between)
