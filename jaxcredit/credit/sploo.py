"""Our own estimator: a leave-one-out baseline that follows the prefix as far as the others' rewards are evidence for it."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Real

from jaxcredit.credit._lift import per_group
from jaxcredit.kernels import binade, common_prefix, partings, staircase, std_by
from jaxcredit.rollout import Rollout, alive, outcome

Knob = float | int | Real[Array, ""]  # a number, or a traced one: one program for many settings


@per_group(
    fidelity="ours",
    granularity="token",
    family="trees",
    reduces_to="rloo with c_b=inf and lam=a=0; (1 - 1/G) sploo has TEMPO's gradient, its two terms given one baseline, with lam=1 and a=0",
)
def sploo(
    group: Rollout,
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
    """Shrunk-prefix leave-one-out: the outcome against those of the others with the same beginning, as far as they differ from the rest.

        A_it = w_it (R_i - b_it),   b_i0 = mean_{j != i} R_j,   b_it = b_i,t-1 + max(0, 1 - c_eff / z^2) (mean_in - b_i,t-1)
        z^2 = (mean_in - mean_out)^2 / (v h),   h = 1/n_in + 1/n_out,   w_it = 1 + lam (1 - 1/n_it) / (1 - 1/G) + beta_it

    Of the others, `in` still agree with i at t and `out` left in the last step; v is the others' variance, and c_eff is c_b, more where
    their kurtosis makes rare rewards look like evidence. beta = a max(0, 1 - c/e) min(1, left/ramp)^2, where e is the F-like evidence
    that the branching at t matters to the others who pass it. b and w never see i's own reward or what it does from t on. So w = 1
    is exactly unbiased, and any lam and a keep each state's direction. Presets: p0 (the default), safe, mid, bold, l1, l1_bold.
    `normalize` divides by the group's deviation. Alone in its group, or among equal rewards, a trajectory gets 0. No paper.
    """
    real, row, valid = alive(group), group.row, group.valid
    assert row is not None and valid is not None  # the lift writes them out
    R, (rows, T), G = outcome(group), group.mask.shape, real.shape[0]
    others = real & (jnp.arange(G) != row[:, None])
    n = others.sum(-1)
    some = jnp.maximum(n, 1).astype(R.dtype)
    peer, low = (jnp.where(n > 0, jnp.max(jnp.where(others, x, -jnp.inf), -1), 0) for x in (R, -R))
    size = binade(peer + low)  # a power of two near the others' range: no square overflows or vanishes
    far = jnp.where(others, (R - peer[:, None]) / size[:, None], 0)  # equal rewards differ by exactly 0
    middle = far.sum(-1) / some
    x = jnp.where(others, far - middle[:, None], 0)  # what the others earned, less their mean
    own = jnp.where(n > 0, R[row] - peer - middle * size, 0)
    v = (x * x).sum(-1) / some
    unit = jnp.where(v > 0, v, 1)
    kappa = jnp.where(v > 0, ((x * x / unit[:, None]) ** 2).sum(-1) / some - 3, 0) if kurtosis else jnp.zeros_like(v)

    end = jnp.where(valid, jnp.arange(1, T + 1), 0).max(-1)
    p = partings(common_prefix(group.tokens, valid), row, end, x, others)
    n_in, n_out, m = jnp.maximum(p.stay, 1), jnp.maximum(p.leave, 1), jnp.maximum(p.stay + p.leave, 1)

    h = 1 / n_in + 1 / n_out
    z2 = (p.stay_sum / n_in - p.leave_sum / n_out) ** 2 / (unit * h)
    limit = 1 + (c_b - 1) * jnp.sqrt(1 + jnp.maximum(kappa * (h - 3 / m), 0) / 2)
    moves = (p.stay >= least) & (p.leave > 0) & (v > 0) & (z2 > limit)
    step = jnp.where(moves, 1 - jnp.where(moves, limit, 0) / jnp.where(moves, z2, 1), 0)

    def follow(b, now):
        after = b + now[0] * (now[1] - b)
        return after, (b, after)

    before, after = jax.lax.scan(follow, jnp.zeros_like(own), (step, p.stay_sum / n_in))[1]

    noise = (p.within + 4 * v) / jnp.maximum(m - p.classes + 4, 1)
    free = jnp.maximum(p.classes - 1, 1)
    spread_e = jnp.sqrt(2 * free + jnp.maximum(kappa * (p.inverse - (2 * p.classes - 1) / m), 0))
    e = jnp.where(noise > 0, p.between / jnp.where(noise > 0, noise, 1) - free, 0) / spread_e
    fires = (p.classes > 1.5) & (e > c)
    beta = jnp.where(fires, a * (1 - c / jnp.where(fires, e, 1)) * jnp.clip(p.left / ramp, 0, 1) ** 2, 0)

    shared = 1 - 1 / jnp.maximum(real.sum(), 2).astype(R.dtype)
    weight = 1 + lam * (1 - 1 / (p.stay + 1)) / shared
    earlier = jnp.concatenate([jnp.full((1, rows), 1.0 + lam, R.dtype), weight[:-1]])
    before, after = before * size, after * size
    if normalize:
        std = std_by(R, where=real)[row]
        own, before, after = (jnp.where(std > 0, y / jnp.where(std > 0, std + eps, 1), 0) for y in (own, before, after))
    return staircase((1 + lam) * own, p.column, (earlier + beta) * (own - before), weight * (own - after), T)


p0 = functools.partial(sploo, lam=0.0, a=0.0)  # exactly unbiased
safe = functools.partial(sploo, lam=0.0, a=2.0, c=3.0)  # unbiased in direction in every state
mid = functools.partial(sploo, lam=0.0, a=3.0, c=2.0)
bold = functools.partial(sploo, lam=0.0, a=4.0, c=1.5)
l1 = functools.partial(sploo, lam=1.0, a=0.0)  # TEMPO's weights, a better baseline
l1_bold = functools.partial(sploo, lam=1.0, a=4.0, c=1.5)
