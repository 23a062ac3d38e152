"""Arrays in, arrays out, for one group: differentiable, in float32 and float64, `vmap` outside. Only jax and jaxtyping are needed."""

from jaxcredit.kernels.games import (
    centre_roles,
    choice_advantage,
    mix,
    mixing_slope,
    pareto,
    pareto_choice,
    prefixes,
    random_orders,
    sampled_shapley_values,
    shapley_values,
    welfare,
)
from jaxcredit.kernels.masked import masked_mean, masked_std, masked_var
from jaxcredit.kernels.peers import centre, mean_by, standardise, std_by
from jaxcredit.kernels.prefix import at_branches, branches, common_prefix, prefix_value, shared_with
from jaxcredit.kernels.resolution import after_row, at_end, length, link, per_segment, spread, tokens_in
from jaxcredit.kernels.returns import following, gae, min_to_go, to_go
from jaxcredit.kernels.strata import variance_parts

__all__ = [
    "after_row",
    "at_branches",
    "at_end",
    "branches",
    "centre",
    "centre_roles",
    "choice_advantage",
    "common_prefix",
    "following",
    "gae",
    "length",
    "link",
    "masked_mean",
    "masked_std",
    "masked_var",
    "mean_by",
    "min_to_go",
    "mix",
    "mixing_slope",
    "pareto",
    "pareto_choice",
    "per_segment",
    "prefix_value",
    "prefixes",
    "random_orders",
    "sampled_shapley_values",
    "shapley_values",
    "shared_with",
    "spread",
    "standardise",
    "std_by",
    "to_go",
    "tokens_in",
    "variance_parts",
    "welfare",
]
