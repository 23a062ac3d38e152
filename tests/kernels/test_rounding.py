"""Rounding is measured by what was summed, and no statistic depends on the unit of what it is taken of."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_rollouts import one_prompt

import jaxcredit.credit as catalogue
from jaxcredit import kernels as k
from jaxcredit.rollout import outcome


@pytest.mark.parametrize("n", [3, 10, 100, 1000])
def test_sums_in_two_orders_differ_by_less_than_their_rounding(n):
    rng = np.random.default_rng(n)
    x = (rng.normal(size=(200, n)) * 10.0 ** rng.uniform(-3, 3, (200, n))).astype(np.float32)
    x[:, -1] = -x[:, :-1].sum(-1)  # which cancels
    orders = [
        np.cumsum(
            np.take_along_axis(x, rng.permuted(np.tile(np.arange(n), (200, 1)), axis=1), 1), 1
        )[:, -1]
        for _ in range(20)
    ]
    apart, bound = (
        np.ptp(orders, axis=0),
        np.asarray(k.rounding_bound(jnp.abs(jnp.asarray(x)).sum(-1), n)),
    )
    assert (apart <= bound).all() and apart.max() > 1e-3 * bound.max()


def test_binade_is_the_power_of_two_below():
    x = np.float32([1, 1.99, 2, 3, 0.7, -5, 3e38, 1.2e-38, 0, 1e-40, np.inf])
    want = [1, 1, 2, 2, 0.5, 4, 2.0**127, 2.0**-126, 1, 1, 1]
    np.testing.assert_array_equal(
        np.asarray(k.floor_power_of_two(jnp.asarray(x))), np.float32(want)
    )
    assert jax.grad(lambda x: k.floor_power_of_two(x) * 1.0)(3.0) == 0
    with jax.enable_x64(True):
        assert k.floor_power_of_two(jnp.float64(1e300)) == 2.0 ** np.floor(np.log2(1e300))


def test_equal_numbers_are_merged_and_others_are_not():
    """Against a loop: 0 where a number is rounding, else the most certain number that it cannot be told from."""
    merge = jax.jit(k.merge_equal)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        x = (
            rng.choice([-0.3, 0.0, 0.3, 0.7, 5.0], 9) + rng.choice([-1e-6, 0, 1e-6, 1e-3], 9)
        ).astype(np.float32)
        slack, where = rng.choice([1e-8, 3e-6, 1e-5], 9).astype(np.float32), rng.random(9) < 0.8
        want = x.copy()
        for i in np.flatnonzero(where):
            near = [j for j in np.flatnonzero(where) if abs(x[i] - x[j]) <= max(slack[i], slack[j])]
            want[i] = 0 if abs(x[i]) <= slack[i] else min((slack[j], -x[j]) for j in near)[1] * -1
        got = np.asarray(merge(*map(jnp.asarray, (x, slack, where))))
        np.testing.assert_array_equal(got, want)
        order = rng.permutation(9)
        np.testing.assert_array_equal(
            merge(*map(jnp.asarray, (x[order], slack[order], where[order]))), got[order]
        )


def test_returns_that_cancel_are_nothing_and_a_tie_is_a_tie():
    orders = list(itertools.permutations([0.1, 0.2, -0.3]))
    R = np.asarray(outcome(one_prompt([*orders, [0, 0, 1e-6]], np.zeros((7, 3)))))
    assert (R[0, :6] == 0).all() and R[0, 6] > 0
    best = catalogue.r3l(
        one_prompt(
            [[0.1, 0.2, 0.7], [0.7, 0.2, 0.1], [0, 0, 0]],
            np.zeros((3, 3)),
            pivot=[0] * 3,
            pair=[0, 1, 2],
        )
    )["advantage"]
    assert (best[0, 0] == best[0, 1]).all() and (best[0, 0] == 3).all()


X = jnp.asarray(np.random.default_rng(0).normal(size=12), jnp.float32)
BY = jnp.arange(12) % 3
ALL = jnp.ones(12, bool)
STATISTICS = {
    "center": (1, lambda x: k.center(x)),
    "center by": (1, lambda x: k.center(x, BY)),
    "std": (1, lambda x: k.std_by(x, BY)),
    "standardize": (0, lambda x: k.standardize(x, eps=0.0)),
    "standardize by": (0, lambda x: k.standardize(x, BY, eps=0.0)),
    "roles": (1, lambda x: k.center_by_role(x, BY, ALL)),
    "roles scaled": (0, lambda x: k.center_by_role(x, BY, ALL, normalize=True, eps=0.0)),
    "masked std": (1, lambda x: k.masked_std(x.reshape(3, 4), axis=-1)),
    "leave one out": (1, lambda x: k.mean_by(x, leave_one_out=True)),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_the_same_bits_in_any_power_of_two(name):
    degree, f = STATISTICS[name][0], jax.jit(STATISTICS[name][1])
    plain = np.asarray(f(X), np.float64)
    assert np.abs(plain).max() > 0.1
    for power in (-90, -3, 5, 70, 110):
        np.testing.assert_array_equal(
            np.asarray(f(X * 2.0**power), np.float64), plain * 2.0 ** (power * degree)
        )


THREE = [list(order) for order in itertools.permutations([11.1, 22.2, -33.3])]
TURNS = np.tile([0, 1, 2, 3], (6, 1))
LATER = [
    [0.0, *order] for order in THREE
]  # the first turn of each is followed by the same rewards in another order
SEEN = {
    "matchtir": (dict(gamma=1.0), {}),
    "gigpo": (dict(gamma=1.0, normalize=True), {"state": [[0, 1, 2, 3]] * 6}),
    "hgpo": (dict(gamma=1.0, normalize=True, skip_zero=True), {"state": [[0, 1, 2, 3]] * 6}),
    "dr_mas": (dict(own=True), {"agent": [[0, 0, 0, 0]] * 6}),
}


@pytest.mark.parametrize("name", SEEN)
def test_what_follows_a_turn_is_equal_in_any_order(name):
    """Nothing is known of the first turn: what follows it is 0 in every trajectory, but for rounding."""
    knobs, signals = SEEN[name]
    rollout = one_prompt(LATER, np.zeros((6, 4)), segment=TURNS, **signals)
    answer = jax.jit(lambda r: getattr(catalogue, name)(r, **knobs))(rollout)
    A = np.asarray(answer["advantage"] if isinstance(answer, dict) else answer)[0]
    assert np.abs(A[:, 0]).max() < 1e-5
    if name != "dr_mas":  # whose turns all have the trajectory's sum
        assert np.abs(A[:, 1:]).max() > 0.1


def test_a_return_counts_once_among_different_ones_in_whatever_order_it_was_added_up():
    turns, decimals = np.tile([0, 1, 2, 3], (7, 1)), np.float32([*LATER, [0, 0, 0, 111]])

    @jax.jit
    def run(reward):
        rollout = one_prompt(np.zeros((7, 4)), np.zeros((7, 4)), segment=turns, agent=[[0] * 4] * 7)
        return catalogue.mars(dataclasses.replace(rollout, reward=reward[None]), unique=True)

    decimal, whole = (
        np.asarray(run(jnp.asarray(reward))) for reward in (decimals, (decimals / 1.11).round())
    )
    np.testing.assert_allclose(decimal, 1.11 * whole, rtol=1e-4, atol=1e-4)


def test_gains_are_differences_and_their_rounding_is_that_of_the_potentials():
    """Every turn gains 0.1 on potentials of about -50: what is left of that is rounding, and no turn is better than another."""
    start = np.random.default_rng(0).uniform(-60, -40, (6, 1))
    rollout = one_prompt(
        np.ones((6, 4)), np.zeros((6, 4)), segment=TURNS, info=start + 0.1 * np.arange(5)
    )
    assert np.asarray(jax.jit(lambda r: catalogue.igpo(r))(rollout) == 0).all()
    better = rollout.with_signals(
        info=rollout["info"] + 0.1 * (jnp.arange(6)[:, None] == 2) * (jnp.arange(5) > 1)
    )
    assert jnp.abs(jax.jit(lambda r: catalogue.igpo(r))(better)).max() > 1


def test_a_perfect_critic_leaves_no_advantage():
    """A value that is the return to the last token: what remains is rounding, and is not whitened to a standard deviation of 1."""
    reward = np.float32([[1.1, 2.2, -0.7], [0.1, 3.3, 1.7]])
    rollout = one_prompt(reward, np.zeros((2, 3)), segment=[[0, 1, 2]] * 2)
    value = np.cumsum(reward[:, ::-1].astype(np.float64), 1)[:, ::-1].astype(np.float32)
    for name in ("ppo", "vapo", "poad"):
        run = jax.jit(lambda r, name=name: getattr(catalogue, name)(r, gamma=1.0))
        assert (
            np.asarray(run(rollout.with_signals(token_value=jnp.asarray(value)[None]))["advantage"])
            == 0
        ).all()
        assert (
            np.abs(
                run(rollout.with_signals(token_value=jnp.asarray(value * 1.01)[None]))["advantage"]
            ).max()
            > 0.5
        )
