"""Statistics of rollouts that matter to an estimator, such as shared prefixes and strata.

Others are branch points, repeated states, lengths, and groups without a signal.

Functions of a rollout that work under jit. `sums` returns what each group adds to a set of totals;
`statistics` turns pooled totals into numbers. A bootstrap over prompts pools a resample and calls
`statistics` again. No ground truth is needed; `jaxcredit.arena` has worlds with one.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels import common_prefix, masked_mean, peer_count
from jaxcredit.rollout import FilledRollout, Rollout, outcome, trajectory_mask

# Numbers of policy tokens, from the first one on, at which overlap is reported.
DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Arrays [*N], or [*N, D] with D depths; no *N for one group.
Sums = dict[str, Float[Array, "..."]]


def shared_columns(group: FilledRollout) -> Int[Array, "G G"]:
    """Number of leading columns in which two trajectories agree, by the first row of each.

    Args:
        group: rollout of one prompt.

    Returns:
        [G, G] counts: T for identical rows, -1 if either trajectory did not take place.
    """
    exists, first_row = (
        trajectory_mask(group),
        jnp.argmax(group.row == jnp.arange(group.reward.shape[0])[:, None], -1),
    )
    return jnp.where(
        exists & exists[:, None],
        common_prefix(group.tokens, group.token_mask)[first_row][:, first_row],
        -1,
    )


def modal_share(
    shared: Int[Array, "G G"], exists: Bool[Array, " G"], column: Int[Array, "*d"]
) -> Float[Array, "*d"]:
    """Largest share of a group's trajectories that agree in all columns before a given one.

        max_i |{j : L_ij >= t}| / n

    Args:
        shared: [G, G] counts L from `shared_columns`.
        exists: [G] trajectories that took place, n of them.
        column: columns t, of any shape.

    Returns:
        Shares in [0, 1], in the shape of `column`.
    """
    column = jnp.minimum(column, shared.max())
    agree = (shared >= column[..., None, None]) & exists & exists[:, None]
    return agree.sum(-1).max(-1) / jnp.maximum(exists.sum(), 1)


def first_policy_column(group: Rollout) -> Int[Array, ""]:
    """First column of a group in which the policy sampled a token."""
    return jnp.argmax(group.action_mask.any(0))


def branching_variance(group: FilledRollout, depths: tuple[int, ...] = DEPTHS) -> dict[str, Array]:
    """Variance of the reward between the branches of a group's prefix tree, by depth.

        excess = SSB - (k - 1) SST / (n - 1),   SSB = sum_children n_c (mean_c - mean)^2

    Sums over the tree's inner nodes. SST is a node's sum of squares, n its number of trajectories,
    k its number of children. (k - 1) SST / (n - 1) is the expectation of SSB if the rewards are
    permuted, so the excess of branches that do not matter is 0 on average. `excess_share` weighs it
    by the share of the group that reached the node. Depth d holds the branch points at policy token
    depths[d-1] + 1 to depths[d].

    Args:
        group: rollout of one prompt.
        depths: upper bounds of the D depths, in policy tokens.

    Returns:
        "excess", "excess_share", "nodes", "children", "alone" (children of one trajectory), [D + 1]
        each, and "square", the sum of squares of the whole group.
    """
    R, exists, L = outcome(group), trajectory_mask(group), shared_columns(group)
    G, T = exists.shape[0], group.tokens.shape[-1]
    R = jnp.where(exists, R - masked_mean(R, exists), 0)
    other = exists & exists[:, None] & ~jnp.eye(G, dtype=bool)
    n_existing = jnp.maximum(exists.sum(), 1)

    # Branch points of trajectory i: [G], one entry for each other trajectory. Of those that leave
    # together the first counts.
    def branches_of(i):
        member, after = L[i] >= L[i][:, None], L[i] > L[i][:, None]
        n, n_after = member.sum(-1), after.sum(-1)
        mean, mean_after = member @ R / jnp.maximum(n, 1), after @ R / jnp.maximum(n_after, 1)
        square = (member * (R - mean[:, None]) ** 2).sum(-1)
        earlier = (L[i] == L[i][:, None]) & other[i] & (jnp.arange(G) < jnp.arange(G)[:, None])
        counts = other[i] & (L[i] < T) & ~earlier.any(-1)
        chance = (
            (1 / jnp.maximum(n_after, 1) - 1 / jnp.maximum(n, 1)) * square / jnp.maximum(n - 1, 1)
        )
        excess = (mean_after - mean) ** 2 - chance
        bins = jnp.searchsorted(jnp.asarray(depths), L[i] - first_policy_column(group) + 1)
        in_depth = (bins[:, None] == jnp.arange(len(depths) + 1)) & counts[:, None]

        def by_depth(x):
            return jnp.where(in_depth, x[:, None], 0).sum(0)

        terms = {
            "excess": excess,
            "excess_share": excess * n / n_existing,
            "nodes": 1 / jnp.maximum(n, 1),
            "children": 1 / jnp.maximum(n_after, 1),
            "alone": (n_after == 1) * 1.0,
        }
        return {name: by_depth(x.astype(jnp.float32)) for name, x in terms.items()}

    return {
        **jax.tree.map(lambda x: x.sum(0), jax.vmap(branches_of)(jnp.arange(G))),
        "square": (R * R).sum(),
    }


def class_variance_sums(
    x: Float[Array, " n"], by: Int[Array, " n"], where: Bool[Array, " n"]
) -> dict[str, Float[Array, ""]]:
    """Sums for the variance between and within classes: of squares, classes, units and groups.

    Args:
        x: [n] values.
        by: [n] class of each unit.
        where: [n] units that exist.

    Returns:
        Sums that add up over groups, for `variance_ratio`.
    """
    same = (by[:, None] == by) & where & where[:, None]
    n = jnp.maximum(same.sum(-1), 1)
    x = jnp.where(where, x - masked_mean(x, where), 0)
    mean = same @ x / n
    inside = jnp.where(where, (x - mean) ** 2, 0).sum()
    return {
        "ssb": jnp.where(where, mean**2, 0).sum(),
        "ssw": inside,
        "classes": jnp.where(where, 1 / n, 0).sum(),
        "units": where.sum() * 1.0,
        "groups": where.any() * 1.0,
    }


def variance_ratio(s: Mapping[str, Any]) -> Array:
    """Variance between classes over that within them, from pooled sums; at least 0.

        (SSB - (k - 1) MSW) / n / MSW,   MSW = SSW / (n - k)

    Classes that do not matter give about 0.

    Args:
        s: sums of `class_variance_sums`, added up over groups.

    Returns:
        The ratio; infinity if nothing varies within classes.
    """
    within = s["ssw"] / jnp.maximum(s["units"] - s["classes"], 1)
    extra = jnp.maximum(s["ssb"] - (s["classes"] - s["groups"]) * within, 0) / jnp.maximum(
        s["units"], 1
    )
    return jnp.where(
        within > 0, extra / jnp.where(within > 0, within, 1), jnp.where(extra > 0, jnp.inf, 0)
    )


def pool_sizes(by: Int[Array, "*N G K"], where: Bool[Array, "*N G K"]) -> Int[Array, "*N G K"]:
    """Number of a group's units of each unit's kind, itself included; 0 off `where`.

    Args:
        by: [..., G, K] kind of each unit.
        where: [..., G, K] units that exist.

    Returns:
        [..., G, K] counts.
    """
    return jnp.vectorize(peer_count, signature="(g,k),(g,k)->(g,k)")(by, where)


def sums(rollout: Rollout, *, depths: tuple[int, ...] = DEPTHS) -> Sums:
    """Sums of each group from which `statistics` computes its numbers. Jit with static `depths`.

    Args:
        rollout: N prompts.
        depths: depths at which overlap is measured, in policy tokens.

    Returns:
        Arrays [N, ...] by name.
    """
    rollout = rollout.filled()
    return jax.lax.map(lambda group: _sums(group, depths), rollout)


def _sums(group: FilledRollout, depths) -> Sums:
    R, exists, length, done = outcome(group), trajectory_mask(group), _lengths(group), group.done
    compared = exists.sum() > 1
    mixed = _top(R, exists) > -_top(-R, exists)
    modal = modal_share(
        shared_columns(group), exists, first_policy_column(group) + jnp.asarray(depths)
    )
    totals = {
        "groups": compared * 1.0,
        "mixed": (compared & mixed) * 1.0,
        "modal": jnp.where(compared, modal, 0),
        "tokens": group.action_mask.sum() * 1.0,
        "tokens_shared": (group.action_mask & shares_prefix(group)).sum() * 1.0,
        "answers": exists.sum() * 1.0,
        "truncated": (exists & ~done).sum() * 1.0,
        "reward": jnp.where(exists, R, 0).sum(),
        **branching_variance(group, depths),
    }
    x, y = (jnp.where(exists, z - masked_mean(z, exists), 0) for z in (length * 1.0, R))
    totals |= {"length_reward": (x * y).sum(), "length_square": (x * x).sum()}
    if "stratum" in group.signals or group.reward.shape[-1] > 1:
        by = group.signals["stratum"] if "stratum" in group.signals else group.segment_mask.sum(-1)
        totals |= {
            f"strata_{name}": value for name, value in class_variance_sums(R, by, exists).items()
        }
    if "state" in group.signals:
        m = pool_sizes(group["state"], group.segment_mask)
        totals |= {
            "turns": group.segment_mask.sum() * 1.0,
            "turns_alone": (m == 1).sum() * 1.0,
            "turns_met": (m >= 4).sum() * 1.0,
        }
    return totals


def statistics(s: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Statistics from sums that were added up over groups. Undefined ones are left out.

    Args:
        s: sums of `sums`, added up over the first axis.

    Returns:
        Numbers by name: shares, means per answer and variance ratios.
    """
    groups, spent = max(float(s["groups"]), 1e-9), max(float(s["tokens"]), 1e-9)
    square, excess = float(s["square"]), np.asarray(s["excess"], np.float64)
    nodes, children = float(np.sum(s["nodes"])), float(np.sum(s["children"]))
    numbers = {
        "zero_signal": 1 - float(s["mixed"]) / groups,
        "reward": float(s["reward"]) / max(float(s["answers"]), 1e-9),
        "truncated": float(s["truncated"]) / max(float(s["answers"]), 1e-9),
        "length": float(s["tokens"]) / max(float(s["answers"]), 1e-9),
        "tokens_shared": float(s["tokens_shared"]) / spent,
        "branchings": nodes / groups,
    }
    if nodes:
        numbers |= {
            "children": children / nodes,
            "children_alone": float(np.sum(s["alone"])) / children,
        }
    if square > 0:
        numbers["decided"] = float(excess.sum()) / square
        positive = np.maximum(excess, 0)
        if positive.sum() > 0:
            numbers["tau"] = float(
                (np.where(excess > 0, s["excess_share"], 0)).sum() / positive.sum()
            )
        if s["length_square"] > 0:
            numbers["length_reward"] = float(s["length_reward"]) / float(
                np.sqrt(float(s["length_square"]) * square)
            )
    if "strata_ssb" in s:
        numbers["strata_ratio"] = float(
            variance_ratio(
                {k.removeprefix("strata_"): v for k, v in s.items() if k.startswith("strata_")}
            )
        )
        numbers["strata"] = float(s["strata_classes"]) / groups
    if s.get("turns", 0) > 0:
        numbers |= {
            "turns_alone": float(s["turns_alone"] / s["turns"]),
            "turns_met": float(s["turns_met"] / s["turns"]),
        }
    return numbers


def lengths_by_outcome(
    rollout: Rollout, solved: float | None = None
) -> dict[str, dict[str, Array]]:
    """Numbers of tokens and turns of the better and of the worse answers.

    Args:
        rollout: N prompts.
        solved: least reward of a better answer. None: the middle between the least and the largest
            reward.

    Returns:
        For tokens and turns of "better" and "worse": count, min, median, mean and max.
    """
    rollout = rollout.filled()
    R, exists = outcome(rollout), trajectory_mask(rollout)
    middle = (_top(R, exists) - _top(-R, exists)) / 2
    better = R > middle if solved is None else R >= solved
    tokens, turns = jax.vmap(_lengths)(rollout), rollout.segment_mask.sum(-1)
    kinds = {"better": exists & better, "worse": exists & ~better}
    return {
        f"{quantity}_{kind}": _five(x, where)
        for quantity, x in (("tokens", tokens), ("turns", turns))
        for kind, where in kinds.items()
    }


def logp_difference(rollout: Rollout, logp: Float[Array, "N R T"]) -> dict[str, Float[Array, ""]]:
    """Difference between the trainer's and the sampler's log-probabilities of sampled tokens.

    Args:
        rollout: N prompts, with the sampler's log-probabilities.
        logp: [N, R, T] log-probabilities under the trainer.

    Returns:
        "gap_mean" and "gap_max" of the magnitudes, and "gap_off", the share of tokens beyond 0.1.
    """
    difference = jnp.where(rollout.action_mask, jnp.abs(logp - rollout.logp), 0)
    return {
        "gap_mean": masked_mean(difference, rollout.action_mask),
        "gap_max": difference.max(),
        "gap_off": masked_mean((difference > 0.1).astype(difference.dtype), rollout.action_mask),
    }


def explained_variance(rollout: Rollout) -> Float[Array, ""]:
    """Explained variance of the signal `value` over all segments, pooled over prompts.

        1 - Var(R - V) / Var(R),   R = return to go

    Args:
        rollout: N prompts with the signal `value`.

    Returns:
        At most 1; 0 if the returns do not vary.
    """
    where = rollout.segment_mask
    to_go = jnp.flip(jnp.cumsum(jnp.flip(jnp.where(where, rollout.reward, 0), -1), -1), -1)

    def variance(x):
        return masked_mean((x - masked_mean(x, where)) ** 2, where)

    total = variance(to_go)
    return jnp.where(
        total > 0, 1 - variance(to_go - rollout["value"]) / jnp.where(total > 0, total, 1), 0
    )


def shares_prefix(group: FilledRollout) -> Bool[Array, "R T"]:
    """Tokens whose prefix, the token included, also begins another row of the group.

    Args:
        group: rollout of one prompt.

    Returns:
        [R, T] mask.
    """
    return _collides(common_prefix(group.tokens, group.token_mask), group.tokens.shape[-1])


def step_metrics(rollout: Rollout) -> dict[str, Array]:
    """Cheap metrics of a rollout, for every step of a run. Rows are compared once.

    Args:
        rollout: N prompts.

    Returns:
        Scalars by name.
    """
    rollout = rollout.filled()
    R, exists = outcome(rollout), trajectory_mask(rollout)

    def per_group(group):
        rows, took_place, T = (
            common_prefix(group.tokens, group.token_mask),
            trajectory_mask(group),
            group.tokens.shape[-1],
        )
        first = jnp.argmax(group.row == jnp.arange(took_place.shape[0])[:, None], -1)
        L = jnp.where(took_place & took_place[:, None], rows[first][:, first], -1)
        length = _lengths(group)
        middle = first_policy_column(group) + jnp.ceil(
            masked_mean(length * 1.0, took_place) / 2
        ).astype(jnp.int32)
        return (
            length,
            _collides(rows, T),
            modal_share(L, took_place, middle),
            _alone(L, took_place, T),
        )

    length, shared, share, (alone, branch_points) = jax.vmap(per_group)(rollout)
    mean = masked_mean(R, exists, -1, keepdims=True)
    metrics = {
        "prefix_collisions": masked_mean(shared.astype(jnp.float32), rollout.action_mask),
        "modal_share": masked_mean(share, exists.sum(-1) > 1),
        "singleton_branch_fraction": alone.sum() / jnp.maximum(branch_points.sum(), 1),
        "length_better": masked_mean(length * 1.0, exists & (R > mean)),
        "length_worse": masked_mean(length * 1.0, exists & (R < mean)),
    }
    if "state" in rollout.signals:
        metrics["anchor_peers"] = masked_mean(
            pool_sizes(rollout["state"], rollout.segment_mask) * 1.0, rollout.segment_mask
        )
    if "stratum" in rollout.signals:
        metrics["strata_ratio"] = variance_ratio(
            jax.tree.map(jnp.sum, jax.vmap(class_variance_sums)(R, rollout["stratum"], exists))
        )
    return metrics


def _collides(rows, T):
    other = jnp.where(jnp.eye(len(rows), dtype=bool), 0, rows).max(-1, initial=0)
    return jnp.arange(T) < other[:, None]


def _alone(L, exists, T):
    """Total number of trajectories that end with a prefix of their own, and of branch points."""
    index = jnp.arange(len(exists))
    other = exists & exists[:, None] & (index != index[:, None]) & (L < T)
    earlier = (L[:, None, :] == L[:, :, None]) & other[:, None, :] & (index < index[:, None])
    last = jnp.where(exists & (index != index[:, None]), L, -1).max(-1)
    return ((last >= 0) & (last < T)).sum(), (other & ~earlier.any(-1)).sum()


def _lengths(group: FilledRollout) -> Int[Array, " G"]:
    """Number of policy tokens of each trajectory, over all its rows, [G]."""
    G = group.reward.shape[0]
    return jnp.where(group.row == jnp.arange(G)[:, None], group.action_mask.sum(-1), 0).sum(-1)


def _top(x, mask):
    return jnp.where(mask, x, -jnp.inf).max()


def _five(x, where):
    n, flat = where.sum(), jnp.sort(jnp.where(where, x, jnp.inf), axis=None)
    last = jnp.maximum(n - 1, 0)
    numbers = {
        "min": flat[0],
        "median": (flat[last // 2] + flat[(last + 1) // 2]) / 2,
        "mean": masked_mean(x * 1.0, where),
        "max": flat[last],
    }
    return {"count": n, **{name: jnp.where(n > 0, v, 0) for name, v in numbers.items()}}
