"""Several agents with one outcome: Shapley values, counterfactuals, mixing, Pareto choice."""

from math import comb

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.masked import root
from jaxcredit.kernels.precision import floor_power_of_two, rounding_bound


def shapley_values(value: Float[Array, "*b S"]) -> Float[Array, "*b A"]:
    """Exact Shapley values of A agents.

        phi_a = sum over sets B without a of |B|! (A-1-|B|)! / A! (v(B + a) - v(B))

    Takes A 2^(A-1) differences, meant for at most eight agents. The values sum to v(all) - v(none).

    Args:
        value: [..., 2^A] value of each set of agents. Bit a of the index says whether a is in the
            set.

    Returns:
        [..., A] Shapley values.

    Raises:
        ValueError: the last axis is no power of two.

    >>> shapley_values(jnp.array([0.0, 1.0, 2.0, 5.0])).tolist()
    [2.0, 3.0]
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
    """Shapley values from sampled orders of the agents.

        phi_a = mean over orders p of v(a and those before it in p) - v(those before it)

    Unbiased for uniform orders. For any orders the values sum to v(all) - v(none).

    Args:
        order: [P, A] permutations of the agents, such as `random_orders`.
        chain: [..., P, A+1] value of the first 0, 1, ..., A agents of each order.

    Returns:
        [..., A] Shapley values.
    """
    gain = jnp.diff(chain, axis=-1)
    position = jnp.broadcast_to(jnp.argsort(order, -1), gain.shape)
    return jnp.take_along_axis(gain, position, -1).mean(-2)


def random_orders(count: int, agents: int, *, seed: int = 0) -> Int[Array, "P A"]:
    """Random permutations of the agents, each followed by its reverse.

    The pairs reduce the variance of `sampled_shapley_values`. Drawn on the host, so that they are
    constants of a compiled program.

    Args:
        count: number of permutations P.
        agents: number of agents A.
        seed: seed of the generator.

    Returns:
        [P, A] permutations of 0..A-1.
    """
    rng = np.random.default_rng(seed)  # on the host: a constant of the program
    draw = np.stack([rng.permutation(agents) for _ in range(-(-count // 2))])
    return jnp.asarray(np.stack([draw, draw[:, ::-1]], 1).reshape(-1, agents)[:count], jnp.int32)


def coalition_prefixes(order: Int[Array, "P A"]) -> Int[Array, "P A+1"]:
    """Sets of the first 0, 1, ..., A agents of each order, as bit masks.

    Args:
        order: [P, A] permutations of the agents.

    Returns:
        [P, A+1] bit masks.

    >>> coalition_prefixes(jnp.array([[1, 0]])).tolist()
    [[0, 2, 3]]
    """
    return jnp.pad(jnp.cumsum(1 << order, -1, dtype=jnp.int32), ((0, 0), (1, 0)))


def choice_advantage(
    value: Float[Array, "*b U"], prob: Float[Array, "*b U"], choice: Int[Array, "*b"]
) -> Float[Array, "*b"]:
    """Advantage of a choice over the agent's own policy, the choices of others being fixed (COMA).

        Q(u) - sum_u' pi(u') Q(u')

    Choices of probability 0 add nothing, whatever their value. Source: arXiv 1705.08926.

    Args:
        value: [..., U] value Q of each choice.
        prob: [..., U] probability pi of each choice.
        choice: [...] choice u that was taken.

    Returns:
        [...] advantages.

    >>> float(choice_advantage(jnp.array([1.0, 3.0]), jnp.array([0.5, 0.5]), jnp.int32(1)))
    1.0
    """
    base = jnp.where(prob == 0, 0, prob * value).sum(-1)
    index = jnp.clip(choice, 0, value.shape[-1] - 1)[..., None]
    return jnp.take_along_axis(value, index, -1)[..., 0] - base


def monotonic_mix(
    q: Float[Array, "*b A"],
    w1: Float[Array, "*b A H"],
    b1: Float[Array, "*b H"],
    w2: Float[Array, "*b H"],
    b2: Float[Array, "*b"],
) -> Float[Array, "*b"]:
    """Monotonic mixing network of QMIX: the team's value from the agents' values.

        Q_tot = |w2| . elu(|w1|^T q + b1) + b2

    No weight is negative, so the best choice of each agent is the best for the team. Source: arXiv
    1803.11485.

    Args:
        q: [..., A] value of each agent's choice.
        w1: [..., A, H] weights of the hidden layer.
        b1: [..., H] biases of the hidden layer.
        w2: [..., H] weights of the output.
        b2: [...] bias of the output.

    Returns:
        [...] value Q_tot of the team.
    """
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
    """Derivative of `monotonic_mix` by each agent's value, dQ_tot / dq_a >= 0.

    Args:
        q: [..., A] value of each agent's choice.
        w1: [..., A, H] weights of the hidden layer.
        b1: [..., H] biases of the hidden layer.
        w2: [..., H] weights of the output.
        b2: [...] bias of the output.

    Returns:
        [..., A] slopes.
    """
    return jax.grad(lambda q: monotonic_mix(q, w1, b1, w2, b2).sum())(q)


def nash_welfare(utility: Float[Array, "*b A"]) -> Float[Array, "*b"]:
    """Geometric mean of the agents' utilities, 0 if any utility is not positive.

        (prod_a u_a)^(1/A)

    Args:
        utility: [..., A] utility of each agent.

    Returns:
        [...] welfare, at most the arithmetic mean.

    >>> round(float(nash_welfare(jnp.array([1.0, 4.0]))), 5)
    2.0
    """
    positive = (utility > 0).all(-1)
    safe = jnp.where(positive[..., None], utility, 1)
    return jnp.where(positive, jnp.exp(jnp.log(safe).mean(-1)), 0)


def pareto_front(payoff: Float[Array, "C A"]) -> Bool[Array, "C"]:
    """Mask of the outcomes that no other outcome Pareto-dominates.

    Args:
        payoff: [C, A] payoff of each agent in each outcome.

    Returns:
        [C] mask.

    >>> pareto_front(jnp.array([[1.0, 1.0], [2.0, 1.0], [0.0, 3.0]])).tolist()
    [False, True, True]
    """
    more, less = (payoff[None] > payoff[:, None]).any(-1), (payoff[None] < payoff[:, None]).any(-1)
    return ~(more & ~less).any(1)


def pareto_choice(payoff: Float[Array, "C A"], *, tie: float = 1e-6) -> Int[Array, ""]:
    """Index of the Pareto-optimal outcome with the largest sum of payoffs.

    Of equal sums the one best for the first agent is taken, then for the second, and so on.

    Args:
        payoff: [C, A] payoff of each agent in each outcome.
        tie: sums that differ by at most `tie` times the largest sum of magnitudes are equal.

    Returns:
        Index 0..C-1.
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
    """`center` or `standardize` by role for any number of units, by sorting.

    Args:
        x: [...] values.
        role: [...] role of each unit: units with equal numbers are peers.
        where: [...] units that exist. The others get 0.
        unique: average over a role's distinct values, each counted once.
        normalize: divide by the standard deviation, as `standardize` does.
        ddof: degrees of freedom taken off the number of peers.
        eps: added to the deviation.
        slack: [...] bound on the rounding of each value; values that differ by no more are equal.
            None: `rounding_bound` of |x|.

    Returns:
        [...] centered or standardized values.
    """
    shape, n = x.shape, x.size
    x, role, where = x.reshape(-1), role.reshape(-1), where.reshape(-1)
    x = jnp.where(where, x, 0)
    order = jnp.lexsort((x, role, ~where))
    slack = (rounding_bound(jnp.abs(x)) if slack is None else slack.reshape(-1))[order]
    x, role, where = x[order], role[order], where[order]
    start = jnp.ones(1, bool)
    begins = jnp.concatenate([start, (role[1:] != role[:-1]) | (where[1:] != where[:-1])])
    differs = jnp.concatenate([start, x[1:] - x[:-1] > jnp.maximum(slack[1:], slack[:-1])])
    counts = where & (begins | differs) if unique else where
    group = jnp.cumsum(begins) - 1

    def total(y):
        return jax.ops.segment_sum(y, group, n, indices_are_sorted=True)[group]

    def largest(y):
        return jax.ops.segment_max(y, group, n, indices_are_sorted=True)[group]

    centered = x - x[largest(jnp.arange(n))]  # relative to the largest: equal values give 0
    extent = largest(-centered)
    unit = floor_power_of_two(extent)  # squares neither overflow nor vanish
    centered = jnp.where(extent > largest(slack), centered / unit, 0)
    size = total(counts.astype(x.dtype))
    centered = jnp.where(
        where, centered - total(jnp.where(counts, centered, 0)) / jnp.maximum(size, 1), 0
    )
    if normalize:
        denominator = size - ddof
        std = (
            root(
                jnp.where(
                    denominator > 0,
                    total(jnp.where(counts, centered * centered, 0))
                    / jnp.where(denominator > 0, denominator, 1),
                    0,
                )
            )
            * unit
        )
        centered = jnp.where(std > 0, centered * unit / jnp.where(std > 0, std + eps, 1), 0)
    else:
        centered = centered * unit
    return jnp.zeros(n, x.dtype).at[order].set(centered, unique_indices=True).reshape(shape)


def _players(value):
    A = value.shape[-1].bit_length() - 1
    if value.shape[-1] != 2**A:
        raise ValueError(f"a value for each set of A agents has 2^A entries, got {value.shape[-1]}")
    return A
