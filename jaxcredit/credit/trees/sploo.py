"""SPLOO (our own estimator): leave-one-out baseline, shrunk toward the mean of a shared prefix."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import (
    branch_points,
    common_prefix,
    floor_power_of_two,
    piecewise_constant,
    std_by,
)
from jaxcredit.rollout import FilledRollout, outcome, trajectory_mask

Knob = float | int | Real[Array, ""]  # a number, or a traced one: one program for many settings


@per_group(
    fidelity="ours",
    granularity="token",
    family="trees",
    reduces_to="rloo with c_b=inf and lam=a=0; with lam=1 and a=0, (1 - 1/G) sploo has TEMPO's "
    "gradient if TEMPO's two terms are given one baseline",
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
    """Leave-one-out baseline, shrunk toward the mean of answers with the same prefix (our design).

        A_it = w_it (R_i - b_it)
        b_i0 = mean_{j != i} R_j
        b_it = b_i,t-1 + max(0, 1 - c_eff / z^2) (mean_in - b_i,t-1)
        z^2 = (mean_in - mean_out)^2 / (v h),   h = 1 / n_in + 1 / n_out
        c_eff = 1 + (c_b - 1) sqrt(1 + max(0, kappa (h - 3 / (n_in + n_out))) / 2)
        w_it = 1 + lam (1 - 1 / n_it) / (1 - 1 / G) + beta_it
        beta_it = a max(0, 1 - c / e) min(1, left / ramp)^2

    R_i is the sum of trajectory i's rewards. The statistics are over the other trajectories j != i:

    - n_in and mean_in: number and mean return of those that share i's first t tokens; n_out and
      mean_out: of those that share the first t - 1 tokens and not token t - 1.
    - v and kappa: variance and excess kurtosis of the returns. With rare rewards kappa is large,
      and a difference of means is weaker evidence.
    - n_it: number of trajectories that share i's first t tokens, i included.
    - e: F-like statistic of the branching at token t: the variance between the branches' returns
      over the variance inside them, less its expectation, in standard deviations.
    - left: mean number of tokens that follow token t.

    b_it changes only if n_in >= `least` and n_out > 0. Neither b_it nor w_it depends on R_i or on
    i's tokens from t on. The policy gradient is therefore unbiased with lam = a = 0. With other
    values each state's part of the gradient keeps its expected direction and changes its size.

    Args:
        lam: float >= 0. Extra weight of tokens whose prefix many trajectories share; 1 gives the
            weights that TEMPO has implicitly.
        a: float >= 0. Largest extra weight of tokens at which branches differ in return.
        c: float > 0. Least statistic e that adds weight.
        c_b: float >= 1, or inf. Least z^2 that moves the baseline, before the kurtosis correction;
            inf: the baseline stays the leave-one-out mean.
        ramp: float > 0, tokens. `a` acts in full if at least this many tokens follow.
        least: int >= 1, least n_in that moves the baseline.
        kurtosis: bool. False: kappa = 0.
        normalize: bool. True: the advantage is divided by the standard deviation of the group's
            returns.
        eps: float >= 0, for `normalize`. Added to the standard deviation.

        The numbers but `eps` may be traced scalars, so that one compiled program serves several
        settings.

    Returns:
        Advantage [N, R, T]. It is 0 in a group with one trajectory or with equal returns.

    Named settings in this module: p0 (the default), safe, mid, bold, l1 and l1_bold.
    `jaxcredit.credit.PRESETS` has the names that `--credit` accepts.

    Source: our own method. No paper.
    """
    trajectories, row, token_mask = trajectory_mask(group), group.row, group.token_mask
    R, T = outcome(group), group.action_mask.shape[-1]
    others = _others(R, row, trajectories, kurtosis)
    end = jnp.where(token_mask, jnp.arange(1, T + 1), 0).max(-1)
    prefix = common_prefix(group.tokens, token_mask)
    branch = branch_points(prefix, row, end, others.x, others.where)

    own, (b_at, b_after) = others.own, _baseline(branch, others, c_b, least)
    if normalize:
        std = std_by(R, where=trajectories)[row]
        own, b_at, b_after = (
            jnp.where(std > 0, y / jnp.where(std > 0, std + eps, 1), 0)
            for y in (own, b_at, b_after)
        )
    G = jnp.maximum(trajectories.sum(), 2).astype(R.dtype)
    w_after = 1 + lam * (1 - 1 / (branch.stay + 1)) / (1 - 1 / G)
    w_start = jnp.full((1, len(row)), 1.0 + lam, R.dtype)
    beta = _evidence_weight(branch, others, a, c, ramp)
    w_at = jnp.concatenate([w_start, w_after[:-1]]) + beta
    return piecewise_constant(
        (1 + lam) * own, branch.column, w_at * (own - b_at), w_after * (own - b_after), T
    )


class Others(NamedTuple):
    """Returns of a group's other trajectories for each row, centered and scaled.

    Fields:
        where: mask of the other trajectories.
        x: (R_j - mean) / unit, mean over the others; exactly 0 for equal returns and off `where`.
        unit: power of two near the range of the returns, so that squares neither overflow nor
            vanish.
        own: the row's own return less the mean of the others, not divided by `unit`.
        v: variance of x.
        kappa: excess kurtosis of x.
    """

    where: Bool[Array, "R G"]
    x: Float[Array, "R G"]
    unit: Float[Array, "R"]
    own: Float[Array, "R"]
    v: Float[Array, "R"]
    kappa: Float[Array, "R"]


def _others(R, row, trajectories, kurtosis):
    where = trajectories & (jnp.arange(len(trajectories)) != row[:, None])
    n = where.sum(-1)
    count = jnp.maximum(n, 1).astype(R.dtype)
    largest, negated_least = (
        jnp.where(n > 0, jnp.max(jnp.where(where, y, -jnp.inf), -1), 0) for y in (R, -R)
    )
    unit = floor_power_of_two(largest + negated_least)
    below = jnp.where(where, (R - largest[:, None]) / unit[:, None], 0)
    mean = below.sum(-1) / count
    x = jnp.where(where, below - mean[:, None], 0)
    own = jnp.where(n > 0, R[row] - largest - mean * unit, 0)
    v = (x * x).sum(-1) / count
    if not kurtosis:
        return Others(where, x, unit, own, v, jnp.zeros_like(v))
    fourth_moment = ((x * x / jnp.where(v > 0, v, 1)[:, None]) ** 2).sum(-1) / count
    return Others(where, x, unit, own, v, jnp.where(v > 0, fourth_moment - 3, 0))


def _baseline(branch, others, c_b, least):
    """Baseline b less the others' mean, [S, R] at each branch point and [S, R] after it.

    b moves after a branch point: b += max(0, 1 - c_eff / z^2) (mean_in - b).
    """
    n_in, n_out = jnp.maximum(branch.stay, 1), jnp.maximum(branch.leave, 1)
    n = jnp.maximum(branch.stay + branch.leave, 1)
    mean_in, mean_out, v = branch.stay_sum / n_in, branch.leave_sum / n_out, others.v
    h = 1 / n_in + 1 / n_out
    z2 = (mean_in - mean_out) ** 2 / (jnp.where(v > 0, v, 1) * h)
    c_eff = 1 + (c_b - 1) * jnp.sqrt(1 + jnp.maximum(others.kappa * (h - 3 / n), 0) / 2)
    moves = (branch.stay >= least) & (branch.leave > 0) & (v > 0) & (z2 > c_eff)
    shrinkage = jnp.where(moves, 1 - jnp.where(moves, c_eff, 0) / jnp.where(moves, z2, 1), 0)

    def follow(b, branch_point):
        shrinkage, mean_in = branch_point
        b_after = b + shrinkage * (mean_in - b)
        return b_after, (b, b_after)

    at, after = jax.lax.scan(follow, jnp.zeros_like(others.own), (shrinkage, mean_in))[1]
    return at * others.unit, after * others.unit


def _evidence_weight(branch, others, a, c, ramp):
    """Extra weight beta [S, R] at each branch point: a max(0, 1 - c / e) min(1, left / ramp)^2.

    e is the variance between the branches over the variance inside them, less its expectation, in
    standard deviations.
    """
    n = jnp.maximum(branch.stay + branch.leave, 1)
    v_within = (branch.within + 4 * others.v) / jnp.maximum(n - branch.classes + 4, 1)
    freedom = jnp.maximum(branch.classes - 1, 1)
    excess = jnp.maximum(others.kappa * (branch.inverse - (2 * branch.classes - 1) / n), 0)
    deviation = jnp.sqrt(2 * freedom + excess)
    F = branch.between / jnp.where(v_within > 0, v_within, 1)
    e = jnp.where(v_within > 0, F - freedom, 0) / deviation
    significant = (branch.classes > 1.5) & (e > c)
    length = jnp.clip(branch.left / ramp, 0, 1) ** 2
    return jnp.where(significant, a * (1 - c / jnp.where(significant, e, 1)) * length, 0)


p0 = functools.partial(sploo, lam=0.0, a=0.0)  # unbiased
safe = functools.partial(sploo, lam=0.0, a=2.0, c=3.0)  # unbiased direction in every state
mid = functools.partial(sploo, lam=0.0, a=3.0, c=2.0)
bold = functools.partial(sploo, lam=0.0, a=4.0, c=1.5)
l1 = functools.partial(sploo, lam=1.0, a=0.0)  # the weights of TEMPO with another baseline
l1_bold = functools.partial(sploo, lam=1.0, a=4.0, c=1.5)
