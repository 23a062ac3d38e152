"""Names of versions up to 0.1, for the configs, options and metrics in run folders.

A run folder holds a copy of its config file. `install` makes the old import paths and names work,
so that the run can be opened, evaluated and resumed.
"""

import importlib
import re
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> new module, both below jaxcredit.
MODULES = {
    "collect": "collect.single_turn",
    "data": "collect.batches",
    "experiment": "train.experiment",
    "hub": "policy.hub",
    "kernels.attribution": "kernels.redistribution",
    "kernels.cuts": "kernels.selection",
    "kernels.distillation": "kernels.value_learning",
    "kernels.evidence": "kernels.decision_evidence",
    "kernels.fits": "kernels.value_learning",
    "kernels.partings": "kernels.branching",
    "kernels.resolution": "kernels.segments",
    "kernels.returns": "kernels.multistep",
    "kernels.rounding": "kernels.precision",
    "kernels.rows": "kernels.segments",
    "kernels.runs": "kernels.sequences",
    "kernels.select": "kernels.selection",
    "kernels.strata": "kernels.peers",
    "kernels.turns": "kernels.sequences",
    "kernels.vote": "kernels.selection",
    "laws": "credit.laws",
    "learning_rate": "train.learning_rate",
    "mesh": "parallel.mesh",
    "params": "parallel.params",
    "plan": "train.planning.plan",
    "policy.decode": "policy.sampler",
    "policy.gguf": "policy.formats.gguf",
    "policy.hf_config": "policy.formats.hf_config",
    "policy.pretrained": "policy.formats.pretrained",
    "preferences": "losses.preferences",
    "signals.critic": "signals.value_model",
    "signals.decision": "signals.decision_points",
    "signals.greedy": "signals.greedy_baseline",
    "signals.reference": "signals.reference_policy",
    "signals.retention": "signals.schedules",
    "signals.strata": "signals.stratification",
    "synthetic": "rollout.synthetic",
    "tasks.gsm8k": "tasks.grade_school",
    "tasks.guard": "tasks.scoring",
    "tasks.gym": "tasks.reasoning_gym",
    "tasks.sums": "tasks.addition",
    "tokenize": "policy.tokenizer",
    "variants": "rollout.transforms",
}
# New module -> {old name: new name}.
NAMES = {
    "kernels": {
        "Partings": "BranchPoints",
        "along": "node_to_segment",
        "at_branches": "scatter_changes",
        "at_end": "at_segment_end",
        "at_first": "first_value",
        "at_nodes": "segment_to_node",
        "before": "previous_value",
        "binade": "floor_power_of_two",
        "branches": "prefix_value_changes",
        "carried": "forward_fill",
        "centre": "center",
        "centre_roles": "center_by_role",
        "coherence": "gradient_coherence",
        "count_by": "peer_count",
        "cut_points": "split_at_uncertainty",
        "each_turn": "map_turns",
        "evidence": "bin_evidence",
        "final": "is_last",
        "following": "next_value",
        "from_children": "sum_up_tree",
        "from_parent": "sum_down_tree",
        "implicit_rewards": "implicit_step_rewards",
        "joint": "intersect_partitions",
        "length": "trajectory_lengths",
        "link": "chain_rows",
        "local_and_global": "local_and_global_maps",
        "look_back": "mean_attention_distance",
        "matched": "match_rewards",
        "mix": "monotonic_mix",
        "mixing_slope": "monotonic_mix_slope",
        "on_edges": "edge_to_tokens",
        "over_children": "child_statistics",
        "pareto": "pareto_front",
        "partings": "branch_points",
        "per_segment": "segment_sum",
        "place": "token_positions",
        "prefixes": "coalition_prefixes",
        "relative_weight": "evidence_weights",
        "remember": "accumulate_evidence",
        "returns": "returns_with_rounding",
        "rounding": "rounding_bound",
        "run_begins": "is_run_start",
        "run_ends": "is_run_end",
        "run_sums": "run_cumsum",
        "shared_with": "common_prefix_by_trajectory",
        "spread": "to_tokens",
        "staircase": "piecewise_constant",
        "standardise": "standardize",
        "to_go": "returns_to_go",
        "tokens_in": "segment_lengths",
        "toward_teacher": "distilled_advantage",
        "transport": "optimal_transport",
        "welfare": "nash_welfare",
    },
    "parallel.mesh": {
        "batch": "batch_sharding",
        "over": "mesh_axes",
        "settled": "sampling_rules",
        "sizes": "axis_sizes",
        "ways": "shard_count",
    },
    "policy.positions": {"at_length": "resolve_rope_scaling", "near": "sliding_window_mask"},
    "policy.sampler": {"keep": "filter_logits"},
    "policy.transformer": {"causal": "causal_mask"},
    "losses": {"prefer": "bradley_terry_loss"},
    "rollout": {"alive": "trajectory_mask", "slack": "return_rounding"},
    "credit": {"int": "interventions"},
    "parallel.processes": {
        "fetch": "local_rows",
        "mine": "local_slice",
        "put": "to_global_array",
        "total": "all_process_sum",
    },
    "tasks.addition": {"value": "final_integer"},
    "tasks.grade_school": {"final": "final_number"},
    "tasks.jsonl": {"items_of": "read_items"},
    "rewards": {
        "kept": "useful_results",
        "ideal_judgements": "ideal_judgments",
        "normalised": "normalized",
        "normalised_process": "normalized_process",
    },
    "signals": {"alike": "sequence_classes", "calls": "segment_counts"},
    "signals.decision_points": {
        "same_beginning": "same_prefix",
        "unsure": "entropy_bins",
        "visited": "surprisal_bins",
    },
    "signals.exposure": {"moved": "update_baseline", "shape": "beta_parameters"},
    "signals.macro": {"randomised": "randomized"},
}
# Fields of Rollout.
FIELDS = {"mask": "action_mask", "real": "segment_mask", "valid": "token_mask"}
# Fields of Experiment.
OPTIONS = {
    "ahead": "sample_ahead",
    "group": "group_size",
    "keep": "max_to_keep",
    "micro": "micro_batch",
    "new": "max_new_tokens",
    "prompts": "prompts_per_step",
    "resample": "max_sampling_rounds",
    "sampling": "sampling_rules",
    "skips": "max_skipped_steps",
    "weights": "load_params",
}
# Fields of the policy's Config.
POLICY = {"place": "layout"}
# Keys of metrics.jsonl.
METRICS = {
    "active": "active_token_fraction",
    "clip_share": "clip_fraction",
    "groups_mixed": "signal_group_fraction",
    "groups_unmixed": "groups_without_signal",
    "partings_alone": "singleton_branch_fraction",
    "sampler_gap": "sampler_logp_diff",
    "sampler_gap_max": "sampler_logp_diff_max",
}
# The module path before a function's or a class's name.
_PATH = re.compile(r"^jaxcredit\.(?:[a-z_0-9]+\.)*?(?=[A-Z]|\w+(?:$|\.<locals>))")


class OldModules(MetaPathFinder, Loader):
    """Finder and loader of old module paths.

    An old module has all names of the new one, under their new and their old names.
    """

    def find_spec(self, fullname, path, target=None):
        """Spec of an old module, None for every other name."""
        old = fullname.removeprefix("jaxcredit.")
        return ModuleSpec(fullname, self) if old != fullname and old in MODULES else None

    def create_module(self, spec):
        """Module with the names of the new module."""
        new = importlib.import_module(f"jaxcredit.{MODULES[spec.name.removeprefix('jaxcredit.')]}")
        module = ModuleType(spec.name, new.__doc__)
        vars(module).update({name: value for name, value in vars(new).items() if name[:2] != "__"})
        _alias(module, {old: name for names in NAMES.values() for old, name in names.items()})
        if spec.name == "jaxcredit.experiment":
            vars(module)["Experiment"] = _experiment(new.Experiment)
        if spec.name == "jaxcredit.plan":
            from jaxcredit.policy.tokenizer import PlaceholderTokenizer

            vars(module)["Unread"] = PlaceholderTokenizer
        return module

    def exec_module(self, module):
        """Nothing: `create_module` filled the module."""


def install() -> None:
    """Make old import paths, names and fields of `Rollout` work in this process."""
    if any(isinstance(finder, OldModules) for finder in sys.meta_path):
        return
    sys.meta_path.append(OldModules())
    for package, names in NAMES.items():
        _alias(importlib.import_module(f"jaxcredit.{package}"), names)
    from jaxcredit.rollout import Rollout

    for old, new in FIELDS.items():
        setattr(Rollout, old, property(lambda rollout, new=new: getattr(rollout, new)))


def hint(error: ImportError) -> str:
    """Advice on an import that fails because of a renaming; "" for other errors."""
    module = (error.name or "").removeprefix("jaxcredit.")
    if module in MODULES:
        return f"jaxcredit.{module} is now jaxcredit.{MODULES[module]}: see CHANGELOG.md"
    name = re.match(r"cannot import name '(\w+)'", str(error))
    if name and (new := NAMES.get(module, {}).get(name[1])):
        return f"{name[1]} is now {new}: see CHANGELOG.md"
    return ""


def options(config: dict[str, Any]) -> dict[str, Any]:
    """Options of a config.json under their new names.

    Functions of jaxcredit, which old files have with their module path, get their plain name.

    >>> options({"group": 4, "credit": "jaxcredit.credit.tempo.tempo"})
    {'group_size': 4, 'credit': 'tempo'}
    """

    def renamed(value):
        if isinstance(value, str):
            return _PATH.sub("", value)
        if isinstance(value, dict):
            return {renamed(key): renamed(inner) for key, inner in value.items()}
        return [renamed(inner) for inner in value] if isinstance(value, list) else value

    new = {OPTIONS.get(name, name): renamed(value) for name, value in config.items()}
    if isinstance(policy := new.get("policy"), dict):
        new["policy"] = {POLICY.get(str(name), name): value for name, value in policy.items()}
    return new


def metrics(line: dict[str, Any]) -> dict[str, Any]:
    """Line of metrics.jsonl with the new names of the metrics."""
    if METRICS.keys().isdisjoint(line):
        return line
    return {METRICS.get(name, name): value for name, value in line.items()}


def _alias(module: ModuleType, names: dict[str, str]) -> None:
    """Give attributes of a module their old names too."""
    for old, new in names.items():
        if hasattr(module, new) and not hasattr(module, old):
            setattr(module, old, getattr(module, new))


def _experiment(cls):
    """Function that makes an `Experiment` from old or new field names."""

    def experiment(**fields):
        return cls(**{OPTIONS.get(name, name): value for name, value in fields.items()})

    return experiment
