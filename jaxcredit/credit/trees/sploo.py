"""SPLOO, an estimator of our own: a leave-one-out baseline that follows the prefix as far as the rewards are evidence for it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import binade, branch_points, common_prefix, piecewise_constant, std_by
from jaxcredit.rollout import FilledRollout, outcome, trajectory_mask

Knob = float | int | Real[Array, ""]  # a number, or a traced one: one program for many settings


@per_group(
    fidelity="ours",
    granularity="token",
    family="trees",
    reduces_to="rloo with c_b=inf and lam=a=0; (1 - 1/G) sploo has TEMPO's gradient, its two terms given one baseline, with lam=1 and a=0",
)
def sploo(
    group: FilledRollout,
    *,
    lam: Knob = 0.0,
    a: Knob = 0.0,
    c: Knob = 3.0,
    c_b: Knob = 3.0,
    ramp: Knob = 8.0,
    least: Knob = 2,
    kurtosis: bool = True,
    normalize: bool = False,
    eps: float = 1e-6,
):
    """Leave-one-out baseline shrunk toward the mean reward of answers with the same prefix (our design).

        A_it = w_it (R_i - b_it),   b_i0 = mean_{j != i} R_j,   b_it = b_i,t-1 + max(0, 1 - c_eff / z^2) (mean_in - b_i,t-1)
        z^2 = (mean_in - mean_out)^2 / (v h),   h = 1/n_in + 1/n_out,   w_it = 1 + lam (1 - 1/n_it) / (1 - 1/G) + beta_it

    Of the others, `in` still agree with i at t and `out` left in the last step; v is the others' variance, and c_eff is c_b, more where
    their kurtosis makes rare rewards look like evidence. beta = a max(0, 1 - c/e) min(1, left/ramp)^2, where e is the F-like evidence
    that the branching at t matters to the others who pass it. b and w never see i's own reward or what it does from t on. So w = 1
    is exactly unbiased, and any lam and a keep each state's direction. Presets: p0 (the default), safe, mid, bold, l1, l1_bold;
    four of them have names for `--credit` (`jaxcredit.credit.PRESETS`).
    `normalize` divides by the group's deviation. Alone in its group, or among equal rewards, a trajectory gets 0. No paper.
    """
    real, row, valid = trajectory_mask(group), group.row, group.token_mask
    R, T = outcome(group), group.action_mask.shape[-1]
    others = _others(R, row, real, kurtosis)
    end = jnp.where(valid, jnp.arange(1, T + 1), 0).max(-1)
    branch = branch_points(common_prefix(group.tokens, valid), row, end, others.x, others.where)

    own, (b_at, b_after) = others.own, _baseline(branch, others, c_b, least)
    if normalize:
        std = std_by(R, where=real)[row]
        own, b_at, b_after = (
            jnp.where(std > 0, y / jnp.where(std > 0, std + eps, 1), 0)
            for y in (own, b_at, b_after)
        )
    w_after = 1 + lam * (1 - 1 / (branch.stay + 1)) / (
        1 - 1 / jnp.maximum(real.sum(), 2).astype(R.dtype)
    )
    w_start = jnp.full((1, len(row)), 1.0 + lam, R.dtype)
    w_at = jnp.concatenate([w_start, w_after[:-1]]) + _evidence_weight(branch, others, a, c, ramp)
    return piecewise_constant(
        (1 + lam) * own, branch.column, w_at * (own - b_at), w_after * (own - b_after), T
    )


class Others(NamedTuple):
    """Rewards of the other trajectories of the group, for each row: less their mean, and in units of a power of two."""

    where: Bool[Array, "R G"]
    x: Float[
        Array, "R G"
    ]  # (R_j - mean) / unit; equal rewards are exactly 0, and so is every trajectory off `where`
    unit: Float[
        Array, "R"
    ]  # a power of two near the range of the rewards: no square overflows or vanishes
    own: Float[Array, "R"]  # the row's own reward less the mean, not divided by `unit`
    v: Float[Array, "R"]  # variance of x
    kappa: Float[Array, "R"]  # excess kurtosis of x


def _others(R, row, real, kurtosis):
    where = real & (jnp.arange(len(real)) != row[:, None])
    n = where.sum(-1)
    some = jnp.maximum(n, 1).astype(R.dtype)
    largest, smallest = (
        jnp.where(n > 0, jnp.max(jnp.where(where, y, -jnp.inf), -1), 0) for y in (R, -R)
    )
    unit = binade(largest + smallest)
    below = jnp.where(where, (R - largest[:, None]) / unit[:, None], 0)
    mean = below.sum(-1) / some
    x = jnp.where(where, below - mean[:, None], 0)
    own = jnp.where(n > 0, R[row] - largest - mean * unit, 0)
    v = (x * x).sum(-1) / some
    if not kurtosis:
        return Others(where, x, unit, own, v, jnp.zeros_like(v))
    fourth = ((x * x / jnp.where(v > 0, v, 1)[:, None]) ** 2).sum(-1) / some
    return Others(where, x, unit, own, v, jnp.where(v > 0, fourth - 3, 0))


def _baseline(branch, others, c_b, least):
    """b at each branch point and after it, less the mean of the others, [S, R] each: b += max(0, 1 - c_eff / z^2) (mean_in - b)."""
    n_in, n_out = jnp.maximum(branch.stay, 1), jnp.maximum(branch.leave, 1)
    m = jnp.maximum(branch.stay + branch.leave, 1)
    mean_in, mean_out, v = branch.stay_sum / n_in, branch.leave_sum / n_out, others.v
    h = 1 / n_in + 1 / n_out
    z2 = (mean_in - mean_out) ** 2 / (jnp.where(v > 0, v, 1) * h)
    c_eff = 1 + (c_b - 1) * jnp.sqrt(1 + jnp.maximum(others.kappa * (h - 3 / m), 0) / 2)
    moves = (branch.stay >= least) & (branch.leave > 0) & (v > 0) & (z2 > c_eff)
    step = jnp.where(moves, 1 - jnp.where(moves, c_eff, 0) / jnp.where(moves, z2, 1), 0)

    def follow(b, branch_point):
        step, mean_in = branch_point
        after = b + step * (mean_in - b)
        return after, (b, after)

    at, after = jax.lax.scan(follow, jnp.zeros_like(others.own), (step, mean_in))[1]
    return at * others.unit, after * others.unit


def _evidence_weight(branch, others, a, c, ramp):
    """beta of each branch point [S, R]: a max(0, 1 - c/e) min(1, left/ramp)^2, where e compares the classes of the branching."""
    m = jnp.maximum(branch.stay + branch.leave, 1)
    noise = (branch.within + 4 * others.v) / jnp.maximum(m - branch.classes + 4, 1)
    free = jnp.maximum(branch.classes - 1, 1)
    deviation = jnp.sqrt(
        2 * free + jnp.maximum(others.kappa * (branch.inverse - (2 * branch.classes - 1) / m), 0)
    )
    e = jnp.where(noise > 0, branch.between / jnp.where(noise > 0, noise, 1) - free, 0) / deviation
    fires = (branch.classes > 1.5) & (e > c)
    return jnp.where(
        fires, a * (1 - c / jnp.where(fires, e, 1)) * jnp.clip(branch.left / ramp, 0, 1) ** 2, 0
    )


p0 = functools.partial(sploo, lam=0.0, a=0.0)  # exactly unbiased
safe = functools.partial(sploo, lam=0.0, a=2.0, c=3.0)  # unbiased in direction in every state
mid = functools.partial(sploo, lam=0.0, a=3.0, c=2.0)
bold = functools.partial(sploo, lam=0.0, a=4.0, c=1.5)
l1 = functools.partial(sploo, lam=1.0, a=0.0)  # TEMPO's weights, a better baseline
l1_bold = functools.partial(sploo, lam=1.0, a=4.0, c=1.5)
