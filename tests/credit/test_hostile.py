"""Estimators on extreme rollouts.

Credit is finite, and does not depend on the numbers of labels, the order of a sum or the unit of
reward. A batch has GROUPS prompts of 8 trajectories; the slow tests use 7 batches, that is 10^5.
"""

import dataclasses
from functools import cache, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extreme_rollouts import (
    LABELS,
    SHAPE,
    equal_returns,
    extreme_rollout,
    relabeled,
    with_permuted_rewards,
)

import jaxcredit.credit as catalogue
from jaxcredit.credit import method_of
from jaxcredit.credit.laws import synthetic
from jaxcredit.rollout import transforms as variants

GROUPS, BATCHES, FEW = 2048, 7, 64
SOON = (
    "grpo",
    "tempo",
    "sploo",
    "dr_mas",
    "mars",
    "hae",
    "ma_rlhf",
    "san",
    "passk",
    "reinforce_pp",
    "gigpo",
    "spo_tree",
    "r3l",
    "scrl",
)


@cache
def program(name):
    return jax.jit(lambda rollout: getattr(catalogue, name)(rollout))


def run(name, rollout):
    answer = program(name)(rollout)
    return {
        k: np.asarray(x, np.float64)
        for k, x in (answer if isinstance(answer, dict) else {"advantage": answer}).items()
    }


def apart(a, b, whole_batch):
    """Largest difference of two credits, relative to the largest number of the prompt (or batch).

    Some CPU programs flush numbers below 1.2e-38 to 0, others do not. Division by a deviation of 0
    plus eps = 1e-6 makes 1.2e-32 of them, so differences are relative to at least 1e-28.
    """
    axes = (0, 1, 2) if whole_batch else (1, 2)
    size = np.maximum(np.abs(a).max(axes, keepdims=True), np.abs(b).max(axes, keepdims=True))
    return (np.abs(a - b) / np.maximum(size, 1e-28)).max()


def examine(name, groups, batches):
    method = method_of(getattr(catalogue, name))
    together = method.scope == "batch"
    for seed in range(batches):
        rollout = extreme_rollout(seed, method.needs, groups, together=together)
        answer = run(name, rollout)
        for column, x in answer.items():
            assert np.isfinite(x).all(), f"{column} of seed {seed}"
        if set(LABELS) & set(method.needs):
            renamed = run(name, relabeled(rollout, 100 + seed))
            for column, x in answer.items():
                assert apart(renamed[column], x, together) < 1e-3, (
                    f"{column} of seed {seed}: labels renamed"
                )


def order_of_a_sum(name, groups):
    """Whether credit ignores the order of a trajectory's rewards; if so, rounding may not matter.

    Integer rewards, whose sums are exact, decide that. Rewards that cancel are then permuted.
    """
    method, rng = method_of(getattr(catalogue, name)), np.random.default_rng(3)
    base = synthetic(5, method.needs, N=groups, **SHAPE)
    real = np.asarray(base.segment_mask)

    def differ(reward):
        one = dataclasses.replace(base, reward=jnp.asarray(reward, jnp.float32))
        a, b = run(name, one), run(name, with_permuted_rewards(one, 9))
        return max(np.abs(a[column] - b[column]).max() for column in a)

    if differ(rng.integers(-3, 4, real.shape)) > 1e-3:
        return False
    for total in (0, 1, 0.3):
        assert differ(equal_returns(rng, real, total, 33.3)) < 2e-3, (
            f"returns of {33.3 * total} in two orders"
        )  # parts that float32 rounds
    return True


def unit_of_rewards(name, groups):
    """Whether credit scales with the rewards (or not at all) from 1 to 16.

    If so, it must up to 2^90, and, if it scales, down to 2^-80.
    """
    method, rng = method_of(getattr(catalogue, name)), np.random.default_rng(4)
    base = synthetic(6, method.needs, N=groups, **SHAPE)
    reward = np.where(base.segment_mask, np.round(rng.normal(size=base.segment_mask.shape), 2), 0)

    def at(scale):
        return run(
            name, dataclasses.replace(base, reward=jnp.asarray(reward * scale, jnp.float32))
        )["advantage"]

    plain = at(1.0)
    for degree in (0, 1):
        if apart(at(16.0) / 16.0**degree, plain, False) < 1e-3:
            for scale in (2.0**70, 2.0**90, *([2.0**-80] if degree else [])):
                assert apart(at(scale) / scale**degree, plain, False) < 1e-2, (
                    f"rewards of {scale:g}"
                )
            return degree
    return None


@pytest.mark.parametrize("name", SOON)
def test_hostile_rollouts(name):
    examine(name, FEW, 6)
    order_of_a_sum(name, FEW)
    unit_of_rewards(name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.__all__)
def test_a_hundred_thousand_hostile_rollouts(name):
    examine(name, GROUPS, BATCHES)
    order_of_a_sum(name, GROUPS)
    unit_of_rewards(name, GROUPS)
    assert (
        program(name)._cache_size() <= 2
    )  # one program for all that is GROUPS large (and the fast test's)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.__all__)
def test_padding_does_not_leak_into_hostile_rollouts(name):
    together = method_of(getattr(catalogue, name)).scope == "batch"
    for seed in range(2):
        rollout = extreme_rollout(
            seed, method_of(getattr(catalogue, name)).needs, GROUPS, together=together
        )
        padded = run(name, reduce(variants.padded, ("T", "K", "R", "G"), rollout))
        for column, x in run(name, rollout).items():
            assert apart(padded[column][:, : SHAPE["R"], : SHAPE["T"]], x, together) < 1e-3, (
                f"{column} of seed {seed}"
            )


def test_who_reads_outcomes_alone_is_found_out():
    """The two tests above choose their estimators; these must be among them."""
    assert (
        order_of_a_sum("grpo", FEW)
        and order_of_a_sum("tempo", FEW)
        and not order_of_a_sum("reinforce_pp", FEW)
    )
    assert (
        unit_of_rewards("grpo", FEW) == 0
        and unit_of_rewards("sploo", FEW) == 1
        and unit_of_rewards("r3l", FEW) is None
    )
