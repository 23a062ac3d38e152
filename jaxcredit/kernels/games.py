"""Several agents and one outcome: what each of them adds, what its choice was worth, and how their values mix into the team's."""

from math import comb

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.masked import root
from jaxcredit.kernels.precision import floor_power_of_two, rounding_bound


def shapley_values(value: Float[Array, "*b S"]) -> Float[Array, "*b A"]:
    """phi_a = sum over the sets B without a of |B|! (A-1-|B|)! / A! (v(B + a) - v(B)); bit a of an index of v says whether a is in the set.

    Exact, by bit masks: A 2^(A-1) differences, meant for at most eight agents. sum_a phi_a = v(all) - v(none).
    """
    A = _players(value)
    sets, bit = np.arange(2**A), 1 << np.arange(A)
    without = np.stack([sets[sets & b == 0] for b in bit])
    weight = np.array([[1 / (A * comb(A - 1, int(s).bit_count())) for s in row] for row in without])
    gain = value[..., without | bit[:, None]] - value[..., without]
    return (gain * weight.astype(value.dtype)).sum(-1)


def sampled_shapley_values(
    order: Int[Array, "P A"], chain: Float[Array, "*b P A+1"]
) -> Float[Array, "*b A"]:
    """phi_a = mean_p of what a adds to those before it in the order p; chain_pm is the value of the first m agents of order p.

    Unbiased for uniform orders, and efficient for any: each order's gains telescope to v(all) - v(none).
    """
    gain = jnp.diff(chain, axis=-1)
    place = jnp.broadcast_to(jnp.argsort(order, -1), gain.shape)
    return jnp.take_along_axis(gain, place, -1).mean(-2)


def random_orders(count: int, agents: int, *, seed: int = 0) -> Int[Array, "P A"]:
    """`count` orders of the agents, each followed by its reverse, which takes away what pairs of agents add to the noise."""
    rng = np.random.default_rng(seed)  # on the host: constants of the program, not a part of it
    draw = np.stack([rng.permutation(agents) for _ in range(-(-count // 2))])
    return jnp.asarray(np.stack([draw, draw[:, ::-1]], 1).reshape(-1, agents)[:count], jnp.int32)


def coalition_prefixes(order: Int[Array, "P A"]) -> Int[Array, "P A+1"]:
    """The sets of the first 0, 1, ..., A agents of each order, as bit masks."""
    return jnp.pad(jnp.cumsum(1 << order, -1, dtype=jnp.int32), ((0, 0), (1, 0)))


def choice_advantage(
    value: Float[Array, "*b U"], prob: Float[Array, "*b U"], choice: Int[Array, "*b"]
) -> Float[Array, "*b"]:
    """Q(u) - sum_u' pi(u') Q(u'): a choice against the agent's own average, the others' choices fixed. A choice of probability 0 adds 0."""
    base = jnp.where(prob == 0, 0, prob * value).sum(-1)
    mine = jnp.clip(choice, 0, value.shape[-1] - 1)[..., None]
    return jnp.take_along_axis(value, mine, -1)[..., 0] - base


def monotonic_mix(
    q: Float[Array, "*b A"],
    w1: Float[Array, "*b A H"],
    b1: Float[Array, "*b H"],
    w2: Float[Array, "*b H"],
    b2: Float[Array, "*b"],
) -> Float[Array, "*b"]:
    """Q_tot = |w2| . elu(|w1|^T q + b1) + b2. No weight is negative, so what is best for each agent is best for the team (1803.11485)."""
    hidden = jax.nn.elu(
        jnp.einsum("...a,...ah->...h", q, jnp.abs(w1), precision=jax.lax.Precision.HIGHEST) + b1
    )
    return (jnp.abs(w2) * hidden).sum(-1) + b2


def monotonic_mix_slope(
    q: Float[Array, "*b A"],
    w1: Float[Array, "*b A H"],
    b1: Float[Array, "*b H"],
    w2: Float[Array, "*b H"],
    b2: Float[Array, "*b"],
) -> Float[Array, "*b A"]:
    """dQ_tot / dq_a >= 0: how much of an agent's own value reaches the team's."""
    return jax.grad(lambda q: monotonic_mix(q, w1, b1, w2, b2).sum())(q)


def nash_welfare(utility: Float[Array, "*b A"]) -> Float[Array, "*b"]:
    """(prod_a u_a)^(1/A), for two sqrt(u v): never more than the mean, and 0 where anyone has nothing (or less)."""
    some = (utility > 0).all(-1)
    safe = jnp.where(some[..., None], utility, 1)
    return jnp.where(some, jnp.exp(jnp.log(safe).mean(-1)), 0)


def pareto_front(payoff: Float[Array, "C A"]) -> Bool[Array, "C"]:
    """Outcomes that no other betters for someone and worsens for nobody."""
    more, less = (payoff[None] > payoff[:, None]).any(-1), (payoff[None] < payoff[:, None]).any(-1)
    return ~(more & ~less).any(1)


def pareto_choice(payoff: Float[Array, "C A"], *, tie: float = 1e-6) -> Int[Array, ""]:
    """The Pareto outcome of the largest sum; of equal ones the first agent's best, then the second's, and so on.

    Scores are equal where they differ by no more than `tie` times the largest sum of magnitudes of an outcome.
    """
    best, apart = pareto_front(payoff), tie * jnp.abs(payoff).sum(-1).max()
    for score in (payoff.sum(-1), *payoff.T):
        best &= score >= jnp.max(score, where=best, initial=-jnp.inf) - apart
    return jnp.argmax(best)


def center_by_role(
    x: Float[Array, "*s"],
    role: Int[Array, "*s"],
    where: Bool[Array, "*s"],
    *,
    unique: bool = False,
    normalize: bool = False,
    ddof: int = 0,
    eps: float = 1e-6,
    slack: Float[Array, "*s"] | None = None,
) -> Float[Array, "*s"]:
    """`center` (or, with `normalize`, `standardize`) by role, for any number of units: by sorting, not by comparing all pairs.

    With `unique` the mean is taken over a role's different values, each counted once however often it occurs. 0 off `where`. Values that
    differ by no more than `return_rounding`, their rounding, are equal, as in `standardize`.
    """
    shape, n = x.shape, x.size
    x, role, where = x.reshape(-1), role.reshape(-1), where.reshape(-1)
    x = jnp.where(where, x, 0)
    order = jnp.lexsort((x, role, ~where))
    slack = (rounding_bound(jnp.abs(x)) if slack is None else slack.reshape(-1))[order]
    x, role, where = x[order], role[order], where[order]
    start = jnp.ones(1, bool)
    begins = jnp.concatenate([start, (role[1:] != role[:-1]) | (where[1:] != where[:-1])])
    new = jnp.concatenate([start, x[1:] - x[:-1] > jnp.maximum(slack[1:], slack[:-1])])
    counts = where & (begins | new) if unique else where
    group = jnp.cumsum(begins) - 1

    def total(y):
        return jax.ops.segment_sum(y, group, n, indices_are_sorted=True)[group]

    def largest(y):
        return jax.ops.segment_max(y, group, n, indices_are_sorted=True)[group]

    far = x - x[largest(jnp.arange(n))]  # to the largest: equal ones are 0
    wide = largest(-far)
    unit = floor_power_of_two(wide)  # squares neither overflow nor vanish
    far = jnp.where(wide > largest(slack), far / unit, 0)
    size = total(counts.astype(x.dtype))
    far = jnp.where(where, far - total(jnp.where(counts, far, 0)) / jnp.maximum(size, 1), 0)
    if normalize:
        left = size - ddof
        std = (
            root(
                jnp.where(
                    left > 0,
                    total(jnp.where(counts, far * far, 0)) / jnp.where(left > 0, left, 1),
                    0,
                )
            )
            * unit
        )
        far = jnp.where(std > 0, far * unit / jnp.where(std > 0, std + eps, 1), 0)
    else:
        far = far * unit
    return jnp.zeros(n, x.dtype).at[order].set(far, unique_indices=True).reshape(shape)


def _players(value):
    A = value.shape[-1].bit_length() - 1
    if value.shape[-1] != 2**A:
        raise ValueError(f"a value for each set of A agents has 2^A entries, got {value.shape[-1]}")
    return A
