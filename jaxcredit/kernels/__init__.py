"""Arrays in, arrays out, for one group: differentiable, in float32 and float64, `vmap` outside. Only jax and jaxtyping are needed."""

from jaxcredit.kernels.assignment import greedy_assignment, matched, optimal_assignment, transport, turn_mean
from jaxcredit.kernels.attention import fai, local_and_global, look_back, waad
from jaxcredit.kernels.attribution import utterance_rewards
from jaxcredit.kernels.cuts import cut_points
from jaxcredit.kernels.distillation import toward_teacher, two_path_weights
from jaxcredit.kernels.evidence import Evidence, coherence, evidence, relative_weight, remember
from jaxcredit.kernels.fits import expectile, implicit_rewards, polyak, progress_loss, td_target, trajectory_preference_loss
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
from jaxcredit.kernels.partings import Partings, partings, staircase
from jaxcredit.kernels.peers import centre, mean_by, standardise, std_by
from jaxcredit.kernels.prefix import at_branches, branches, common_prefix, prefix_value, shared_with
from jaxcredit.kernels.redistribution import decomposition_loss, draw_entries, returns_over_peers, sampled_decomposition_loss, shaping
from jaxcredit.kernels.resolution import after_row, at_end, length, link, per_segment, spread, tokens_in
from jaxcredit.kernels.returns import following, gae, min_to_go, returns, to_go
from jaxcredit.kernels.rounding import binade, merge_equal, rounding
from jaxcredit.kernels.rows import gae_over_rows, place
from jaxcredit.kernels.runs import at_first, carried, final, run_begins, run_ends, run_sums
from jaxcredit.kernels.select import kth_largest, top_share
from jaxcredit.kernels.strata import variance_parts
from jaxcredit.kernels.tree import (
    Tree,
    along,
    at_nodes,
    backup_rounding,
    child_mean,
    from_children,
    from_parent,
    on_edges,
    over_children,
    path_mean,
    tree_of,
)
from jaxcredit.kernels.turns import answer_weights, before, count_by, each_turn, joint
from jaxcredit.kernels.vote import vote

__all__ = [
    "Evidence",
    "Partings",
    "Tree",
    "after_row",
    "along",
    "answer_weights",
    "at_branches",
    "at_end",
    "at_first",
    "at_nodes",
    "backup_rounding",
    "before",
    "binade",
    "branches",
    "carried",
    "centre",
    "centre_roles",
    "child_mean",
    "choice_advantage",
    "coherence",
    "common_prefix",
    "count_by",
    "cut_points",
    "decomposition_loss",
    "draw_entries",
    "each_turn",
    "evidence",
    "expectile",
    "fai",
    "final",
    "following",
    "from_children",
    "from_parent",
    "gae",
    "gae_over_rows",
    "greedy_assignment",
    "implicit_rewards",
    "joint",
    "kth_largest",
    "length",
    "link",
    "local_and_global",
    "look_back",
    "masked_mean",
    "masked_std",
    "masked_var",
    "matched",
    "mean_by",
    "merge_equal",
    "min_to_go",
    "mix",
    "mixing_slope",
    "on_edges",
    "optimal_assignment",
    "over_children",
    "pareto",
    "pareto_choice",
    "partings",
    "path_mean",
    "per_segment",
    "place",
    "polyak",
    "prefix_value",
    "prefixes",
    "progress_loss",
    "random_orders",
    "relative_weight",
    "remember",
    "returns",
    "returns_over_peers",
    "rounding",
    "run_begins",
    "run_ends",
    "run_sums",
    "sampled_decomposition_loss",
    "sampled_shapley_values",
    "shaping",
    "shapley_values",
    "shared_with",
    "spread",
    "staircase",
    "standardise",
    "std_by",
    "td_target",
    "to_go",
    "tokens_in",
    "top_share",
    "toward_teacher",
    "trajectory_preference_loss",
    "transport",
    "tree_of",
    "turn_mean",
    "two_path_weights",
    "utterance_rewards",
    "variance_parts",
    "vote",
    "waad",
    "welfare",
]
