"""What rollouts show to an estimator: shared beginnings, where rewards part, repeated states, strata, lengths, and groups without a signal.

Functions of a Rollout, jit-able. `sums` gives what every group adds to a handful of totals, `read` makes the numbers of pooled totals:
a bootstrap over prompts pools other prompts and reads again. Nothing here needs a truth; `jaxcredit.arena` has worlds that do.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels import common_prefix, masked_mean
from jaxcredit.rollout import FilledRollout, Rollout, outcome, trajectory_mask

DEPTHS = (
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    128,
    256,
    512,
    1024,
)  # policy tokens from the first one on, at which overlap is reported
Sums = dict[str, Float[Array, "..."]]  # [*N] or [*N, D] with D depths; no *N for one group


def shared_columns(group: FilledRollout) -> Int[Array, "G G"]:
    """Columns in which two trajectories agree from the start, by the first row of each: T if identical, -1 off those that took place."""
    here, first = (
        trajectory_mask(group),
        jnp.argmax(group.row == jnp.arange(group.reward.shape[0])[:, None], -1),
    )
    return jnp.where(
        here & here[:, None], common_prefix(group.tokens, group.token_mask)[first][:, first], -1
    )


def modal_share(
    shared: Int[Array, "G G"], here: Bool[Array, " G"], column: Int[Array, "*d"]
) -> Float[Array, "*d"]:
    """The largest share of a group's trajectories that agree in all columns before `column`.  max_i |{j : L_ij >= t}| / n"""
    column = jnp.minimum(column, shared.max())
    agree = (shared >= column[..., None, None]) & here & here[:, None]
    return agree.sum(-1).max(-1) / jnp.maximum(here.sum(), 1)


def begins(group: Rollout) -> Int[Array, ""]:
    """The first column of a group that the policy chose."""
    return jnp.argmax(group.action_mask.any(0))


def decided(group: FilledRollout, depths: tuple[int, ...] = DEPTHS) -> dict[str, Array]:
    """Where the answers part, and how much of the reward's variance parts there. Sums over the prefix tree's inner nodes, by depth [D].

        excess = SSB - (k - 1) SST / (n - 1),   SSB = sum_children n_c (mean_c - mean)^2

    SST is the node's sum of squares, and (k - 1) SST / (n - 1) is what SSB is on average when rewards are dealt at random to its n
    trajectories in k children: children of one trajectory show nothing, and a decoy's excess is 0 on average. `excess_share` weighs
    it by the share of the group that reached the node. Depth d holds the branchings at policy token depths[d-1] + 1 to depths[d].
    """
    R, here, L = outcome(group), trajectory_mask(group), shared_columns(group)
    G, T = here.shape[0], group.tokens.shape[-1]
    R = jnp.where(here, R - masked_mean(R, here), 0)
    other = here & here[:, None] & ~jnp.eye(G, dtype=bool)
    n_alive = jnp.maximum(here.sum(), 1)

    def at(
        i,
    ):  # one trajectory's branchings: [G], one entry a partner, of which the first of those that leave together counts
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
        bins = jnp.searchsorted(jnp.asarray(depths), L[i] - begins(group) + 1)
        place = (bins[:, None] == jnp.arange(len(depths) + 1)) & counts[:, None]

        def by_depth(x):
            return jnp.where(place, x[:, None], 0).sum(0)

        each = {
            "excess": excess,
            "excess_share": excess * n / n_alive,
            "nodes": 1 / jnp.maximum(n, 1),
            "children": 1 / jnp.maximum(n_after, 1),
            "alone": (n_after == 1) * 1.0,
        }
        return {name: by_depth(x.astype(jnp.float32)) for name, x in each.items()}

    return {
        **jax.tree.map(lambda x: x.sum(0), jax.vmap(at)(jnp.arange(G))),
        "square": (R * R).sum(),
    }


def between(
    x: Float[Array, " n"], by: Int[Array, " n"], where: Bool[Array, " n"]
) -> dict[str, Float[Array, ""]]:
    """Sums from which `ratio` makes the variance between classes over that within them: of squares, classes and units."""
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


def ratio(s: Mapping[str, Any]) -> Array:
    """(SSB - (k - 1) MSW) / n over MSW, at least 0: MSW = SSW / (n - k), all pooled over groups. Classes that mean nothing give about 0."""
    within = s["ssw"] / jnp.maximum(s["units"] - s["classes"], 1)
    extra = jnp.maximum(s["ssb"] - (s["classes"] - s["groups"]) * within, 0) / jnp.maximum(
        s["units"], 1
    )
    return jnp.where(
        within > 0, extra / jnp.where(within > 0, within, 1), jnp.where(extra > 0, jnp.inf, 0)
    )


def pool_sizes(by: Int[Array, "*N G K"], where: Bool[Array, "*N G K"]) -> Int[Array, "*N G K"]:
    """How many units of its group are of each unit's kind, itself included; 0 off `where`."""
    flat, real = by.reshape(*by.shape[:-2], -1), where.reshape(*by.shape[:-2], -1)
    same = (flat[..., :, None] == flat[..., None, :]) & real[..., None, :] & real[..., None]
    return same.sum(-1).reshape(by.shape)


def sums(rollout: Rollout, *, depths: tuple[int, ...] = DEPTHS) -> Sums:
    """What each group adds to the totals that `read` understands. Jit with static `depths`."""
    rollout = rollout.filled()
    return jax.lax.map(lambda group: _sums(group, depths), rollout)


def _sums(group: FilledRollout, depths) -> Sums:
    R, here, length, done = outcome(group), trajectory_mask(group), _lengths(group), group.done
    compared = here.sum() > 1
    mixed = _top(R, here) > -_top(-R, here)
    modal = modal_share(shared_columns(group), here, begins(group) + jnp.asarray(depths))
    out = {
        "groups": compared * 1.0,
        "mixed": (compared & mixed) * 1.0,
        "modal": jnp.where(compared, modal, 0),
        "tokens": group.action_mask.sum() * 1.0,
        "tokens_shared": (group.action_mask & collides(group)).sum() * 1.0,
        "answers": here.sum() * 1.0,
        "truncated": (here & ~done).sum() * 1.0,
        "reward": jnp.where(here, R, 0).sum(),
        **decided(group, depths),
    }
    x, y = (jnp.where(here, z - masked_mean(z, here), 0) for z in (length * 1.0, R))
    out |= {"length_reward": (x * y).sum(), "length_square": (x * x).sum()}
    if "stratum" in group.signals or group.reward.shape[-1] > 1:
        by = group.signals["stratum"] if "stratum" in group.signals else group.segment_mask.sum(-1)
        out |= {f"strata_{name}": value for name, value in between(R, by, here).items()}
    if "state" in group.signals:
        m = pool_sizes(group["state"], group.segment_mask)
        out |= {
            "turns": group.segment_mask.sum() * 1.0,
            "turns_alone": (m == 1).sum() * 1.0,
            "turns_met": (m >= 4).sum() * 1.0,
        }
    return out


def read(s: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The numbers that pooled sums (added over groups) mean. What cannot be told is left out."""
    groups, spent = max(float(s["groups"]), 1e-9), max(float(s["tokens"]), 1e-9)
    square, excess = float(s["square"]), np.asarray(s["excess"], np.float64)
    nodes, children = float(np.sum(s["nodes"])), float(np.sum(s["children"]))
    told = {
        "zero_signal": 1 - float(s["mixed"]) / groups,
        "reward": float(s["reward"]) / max(float(s["answers"]), 1e-9),
        "truncated": float(s["truncated"]) / max(float(s["answers"]), 1e-9),
        "length": float(s["tokens"]) / max(float(s["answers"]), 1e-9),
        "tokens_shared": float(s["tokens_shared"]) / spent,
        "branchings": nodes / groups,
    }
    if nodes:
        told |= {
            "children": children / nodes,
            "children_alone": float(np.sum(s["alone"])) / children,
        }
    if square > 0:
        told["decided"] = float(excess.sum()) / square
        kept = np.maximum(excess, 0)
        if kept.sum() > 0:
            told["tau"] = float((np.where(excess > 0, s["excess_share"], 0)).sum() / kept.sum())
        if s["length_square"] > 0:
            told["length_reward"] = float(s["length_reward"]) / float(
                np.sqrt(float(s["length_square"]) * square)
            )
    if "strata_ssb" in s:
        told["strata_ratio"] = float(
            ratio({k.removeprefix("strata_"): v for k, v in s.items() if k.startswith("strata_")})
        )
        told["strata"] = float(s["strata_classes"]) / groups
    if s.get("turns", 0) > 0:
        told |= {
            "turns_alone": float(s["turns_alone"] / s["turns"]),
            "turns_met": float(s["turns_met"] / s["turns"]),
        }
    return told


def by_outcome(rollout: Rollout, solved: float | None = None) -> dict[str, dict[str, Array]]:
    """Tokens and turns of the better and of the worse answers: how many there are, least, median, mean and most.

    Better is a reward of at least `solved`; None: above the middle between the least and the largest reward of all.
    """
    rollout = rollout.filled()
    R, here = outcome(rollout), trajectory_mask(rollout)
    middle = (_top(R, here) - _top(-R, here)) / 2
    better = R > middle if solved is None else R >= solved
    tokens, turns = jax.vmap(_lengths)(rollout), rollout.segment_mask.sum(-1)
    kinds = {"better": here & better, "worse": here & ~better}
    return {
        f"{what}_{kind}": _five(x, where)
        for what, x in (("tokens", tokens), ("turns", turns))
        for kind, where in kinds.items()
    }


def gap(rollout: Rollout, logp: Float[Array, "N R T"]) -> dict[str, Float[Array, ""]]:
    """How far the trainer's log-probabilities of the chosen tokens are from the sampler's: mean and largest, and the share beyond 0.1."""
    far = jnp.where(rollout.action_mask, jnp.abs(logp - rollout.logp), 0)
    return {
        "gap_mean": masked_mean(far, rollout.action_mask),
        "gap_max": far.max(),
        "gap_off": masked_mean((far > 0.1).astype(far.dtype), rollout.action_mask),
    }


def explained(rollout: Rollout) -> Float[Array, ""]:
    """1 - Var(R - V) / Var(R) over all segments that took place, V the signal `value`: what a critic knows. Pooled over prompts."""
    where = rollout.segment_mask
    to_go = jnp.flip(jnp.cumsum(jnp.flip(jnp.where(where, rollout.reward, 0), -1), -1), -1)

    def variance(x):
        return masked_mean((x - masked_mean(x, where)) ** 2, where)

    whole = variance(to_go)
    return jnp.where(
        whole > 0, 1 - variance(to_go - rollout["value"]) / jnp.where(whole > 0, whole, 1), 0
    )


def collides(group: FilledRollout) -> Bool[Array, "R T"]:
    """Whether a token's prefix, the token included, is some other row's too: where a prefix tree can tell trajectories apart."""
    return _collides(common_prefix(group.tokens, group.token_mask), group.tokens.shape[-1])


def live(rollout: Rollout) -> dict[str, Array]:
    """The cheap ones, for every step of a run: rows are compared once, and nothing else is as long as they are."""
    rollout = rollout.filled()
    R, here = outcome(rollout), trajectory_mask(rollout)

    def of(group):
        rows, there, T = (
            common_prefix(group.tokens, group.token_mask),
            trajectory_mask(group),
            group.tokens.shape[-1],
        )
        first = jnp.argmax(group.row == jnp.arange(there.shape[0])[:, None], -1)
        L = jnp.where(there & there[:, None], rows[first][:, first], -1)
        length = _lengths(group)
        half = begins(group) + jnp.ceil(masked_mean(length * 1.0, there) / 2).astype(jnp.int32)
        return length, _collides(rows, T), modal_share(L, there, half), _alone(L, there, T)

    length, shared, share, (alone, partings) = jax.vmap(of)(rollout)
    mean = masked_mean(R, here, -1, keepdims=True)
    out = {
        "prefix_collisions": masked_mean(shared.astype(jnp.float32), rollout.action_mask),
        "modal_share": masked_mean(share, here.sum(-1) > 1),
        "singleton_branch_fraction": alone.sum() / jnp.maximum(partings.sum(), 1),
        "length_better": masked_mean(length * 1.0, here & (R > mean)),
        "length_worse": masked_mean(length * 1.0, here & (R < mean)),
    }
    if "state" in rollout.signals:
        out["anchor_peers"] = masked_mean(
            pool_sizes(rollout["state"], rollout.segment_mask) * 1.0, rollout.segment_mask
        )
    if "stratum" in rollout.signals:
        out["strata_ratio"] = ratio(
            jax.tree.map(jnp.sum, jax.vmap(between)(R, rollout["stratum"], here))
        )
    return out


def _collides(rows, T):
    other = jnp.where(jnp.eye(len(rows), dtype=bool), 0, rows).max(-1, initial=0)
    return jnp.arange(T) < other[:, None]


def _alone(L, here, T):
    """How many trajectories end up with a prefix that is theirs alone, and at how many columns each leaves others, all added up."""
    index = jnp.arange(len(here))
    other = here & here[:, None] & (index != index[:, None]) & (L < T)
    earlier = (L[:, None, :] == L[:, :, None]) & other[:, None, :] & (index < index[:, None])
    last = jnp.where(here & (index != index[:, None]), L, -1).max(-1)
    return ((last >= 0) & (last < T)).sum(), (other & ~earlier.any(-1)).sum()


def _lengths(group: FilledRollout) -> Int[Array, " G"]:
    """Policy tokens of each trajectory, all its rows together."""
    G = group.reward.shape[0]
    return jnp.where(group.row == jnp.arange(G)[:, None], group.action_mask.sum(-1), 0).sum(-1)


def _top(x, where):
    return jnp.where(where, x, -jnp.inf).max()


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
