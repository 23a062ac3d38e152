"""Baselines: examples of their papers, both forms of sources, reductions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from reference_loops import LOOPS
from small_rollouts import assert_matches_loop, jitted, one_prompt, random_rollout

import jaxcredit.credit as catalogue
from jaxcredit import kernels
from jaxcredit.rollout import Rollout

attention_rhythm, dr_grpo, gdpo, gpg, grpo = (
    jitted(getattr(catalogue, name)) for name in "attention_rhythm dr_grpo gdpo gpg grpo".split()
)
hicra, otb, passk, ppo, prime = (
    jitted(getattr(catalogue, name)) for name in "hicra otb passk ppo prime".split()
)
reinforce_pp_baseline, vapo = (
    jitted(getattr(catalogue, name)) for name in "reinforce_pp_baseline vapo".split()
)
# The knobs are traced: one program for all of their values.
sploo = jax.jit(catalogue.sploo, static_argnames=("kurtosis", "normalize"))


def changed(rollout, **fields):
    return Rollout(**{**vars(rollout), **fields})


# --------------------------------------------------------- other forms and knobs, against the loops

READINGS = {
    "gpg paper": (gpg, LOOPS["gpg"], "", {"form": "paper"}),
    "passk plain": (passk, LOOPS["passk"], "", {"normalize": False}),
    "gdpo": (gdpo, LOOPS["gdpo"], "components", {"weights": (1.0, 0.5, -2.0), "per_token": False}),
    "vapo": (
        vapo,
        LOOPS["vapo"],
        "token_value",
        {"alpha": 0.3, "gamma": 0.9, "critic_lam": 0.8, "whiten": False},
    ),
    "otb tail": (otb, LOOPS["otb"], "prob_square", {"zero_tail": True}),
    "prime code": (
        prime,
        LOOPS["prime"],
        "prm_logp ref_logp",
        {"form": "code", "gamma": 0.9, "whiten": True},
    ),
    "hicra code": (
        partial(hicra, base=catalogue.grpo),
        LOOPS["hicra"],
        "planning entropy",
        {"form": "code"},
    ),
    "rhythm local": (
        attention_rhythm,
        LOOPS["attention_rhythm"],
        "waad fai",
        {"strategy": "local"},
    ),
    "rhythm global": (
        attention_rhythm,
        LOOPS["attention_rhythm"],
        "waad fai",
        {"strategy": "global", "share": 0.2},
    ),
    "rhythm alpha": (
        attention_rhythm,
        LOOPS["attention_rhythm"],
        "waad fai",
        {"alpha": 0.2, "window": 2},
    ),
    "sploo evidence": (sploo, LOOPS["sploo"], "", {"lam": 0.7, "a": 4.0, "c": 0.5, "c_b": 1.5}),
}


# Two programs for each form: only those with another formula are fast tests.
FAST = ("gpg paper", "prime code", "hicra code", "rhythm local", "sploo evidence")


@pytest.mark.parametrize(
    "reading", [pytest.param(r, marks=() if r in FAST else pytest.mark.slow) for r in READINGS]
)
def test_readings(reading):
    credit, loop, needs, knobs = READINGS[reading]
    rollout = random_rollout(
        21, needs.split(), T=14, **({"R": 9, "G": 8} if credit is sploo else {"R": 7, "G": 5})
    )
    assert_matches_loop(
        partial(credit, **knobs),
        partial(loop, **knobs),
        rollout,
        atol=4e-5,
    )


# ---------------------------------------------------------------- baselines


def test_baseline_examples():
    rollout = one_prompt([1, 0, 0, 1])
    assert_close(gpg(rollout)[0, :, 0], [1, -1, -1, 1])  # alpha = 4 / 2
    assert_close(gpg(rollout, form="paper")[0, :, 0], [0.5, -0.5, -0.5, 0.5])
    assert (passk(rollout) == 0).all()  # a tie at the top
    two = one_prompt([1, 0], [[1, 1, 1], [2, 2, 0]], action_mask=[[1, 1, 1], [1, 1, 0]])
    assert_close(
        reinforce_pp_baseline(two, ddof=1, eps=0.0)[0],
        [[0.730297] * 3, [-1.095445, -1.095445, 0]],
        1e-5,
    )
    r = np.array([0.2, 1.0, 0.5, 0.5])
    assert_close(passk(one_prompt(r), eps=0.0)[0, :, 0], [0, 0.5 / r.std(), 0, 0])
    assert_close(passk(one_prompt(r), ddof=1, eps=0.0)[0, :, 0], [0, 0.5 / r.std(ddof=1), 0, 0])


def test_reinforce_pp_baseline_is_dr_grpo_whitened():
    rollout = random_rollout(1)
    far, A = dr_grpo(rollout), reinforce_pp_baseline(rollout)
    assert_close(A, kernels.standardize(far, where=rollout.action_mask), 1e-5)
    assert (jnp.abs(A - far) > 1e-2).any()
    # In float64, because the order of a float32 sum differs between versions of XLA.
    with jax.enable_x64(True):
        exact = changed(rollout, reward=jnp.asarray(rollout.reward, jnp.float64))
        chosen = np.asarray(reinforce_pp_baseline(exact))[np.asarray(rollout.action_mask)]
    assert chosen.dtype == np.float64
    assert abs(chosen.mean()) < 1e-5 and abs(chosen.std() - 1) < 1e-3


def test_gpg_is_dr_grpo_where_every_outcome_counts():
    rollout = random_rollout(2, kinds=(1,))
    assert_close(gpg(rollout), dr_grpo(rollout))
    some = jnp.asarray(rollout.segment_mask).any(-1)
    none = changed(rollout, reward=jnp.where(jnp.arange(6)[:, None] == 0, 0.0, rollout.reward))
    count = (
        some.sum() / (some & (jnp.where(rollout.segment_mask, none.reward, 0).sum(-1) != 0)).sum()
    )
    assert_close(gpg(none), count * dr_grpo(none))
    assert count > 1.05
    assert_close(gpg(none, f_norm=2.0), gpg(none) / 2)


def test_passk_credits_one_at_most_and_shifts_change_nothing():
    rollout = random_rollout(3)
    A = np.asarray(jnp.where(rollout.action_mask, passk(rollout), 0)).max(-1)
    assert (A >= 0).all() and ((A > 0).sum(-1) <= 1).all() and (A > 0).any()


def test_gdpo_with_one_component_is_grpo_whitened_and_tells_combinations_apart():
    rollout = random_rollout(4)
    one = rollout.with_signals(
        components=jnp.where(rollout.segment_mask, rollout.reward, 0).sum(-1, keepdims=True)
    )
    assert_close(gdpo(one), kernels.standardize(grpo(rollout), where=rollout.action_mask), 1e-4)
    halves = one.with_signals(
        components=jnp.concatenate([one["components"] * 0.3, one["components"] ** 2], -1)
    )
    assert (jnp.abs(gdpo(halves) - gdpo(one)) > 1e-2).any()
    parts = np.array(
        [[1, 0], [0, 1], [0, 0], [0, 0], [0, 1], [0, 1]]
    )  # equal sums of the first two: the rarer part is worth more
    A = gdpo(one_prompt(parts.sum(-1), components=parts))[0, :, 0]
    assert (
        A[0] > A[1] + 0.1
        and abs(grpo(one_prompt(parts.sum(-1)))[0, 0, 0] - grpo(one_prompt(parts.sum(-1)))[0, 1, 0])
        < 1e-6
    )


def test_gdpo_by_trajectory_counts_every_answer_once():
    parts = [[1.0, 0], [0, 0], [0, 2]]
    rollout = one_prompt(
        [1, 0, 2],
        np.zeros((3, 8)),
        action_mask=np.arange(8) < np.array([[1], [8], [3]]),
        components=parts,
    )
    once = np.asarray(gdpo(rollout, per_token=False)[0, :, 0])
    assert abs(once.sum()) < 1e-5 and abs(once.std() - 1) < 1e-4
    assert (
        abs(np.asarray(gdpo(rollout)[0]).sum())
        < 1e-4
        < abs(np.asarray(gdpo(rollout)[0, :, 0]).sum())
    )


def test_vapo_looks_further_the_longer_the_answer():
    """lambda is 0, 0.8 and 0.98 at 20, 100 and 1000 tokens, by the decay of a single value."""
    length, lam = np.array([20, 100, 1000, 7]), np.array([0, 0.8, 0.98, 0])
    mask = jnp.asarray(np.arange(1000) < length[:, None])[:, None]
    zero = jnp.zeros(mask.shape)
    rollout = Rollout(zero.astype(int), mask, zero, zero.astype(int), zero[..., :1], mask[..., :1])
    A = vapo(rollout.with_signals(token_value=zero.at[:, :, 2].set(1.0)), whiten=False)[
        "advantage"
    ][:, 0]
    assert_close(A[:, :3], np.stack([lam - lam**2, 1 - lam, -np.ones(4)], -1), 1e-4)


@pytest.mark.slow
def test_vapo_is_ppo_where_lengths_are_equal():
    rollout = random_rollout(5, ("token_value",))
    same = changed(
        rollout,
        action_mask=jnp.broadcast_to(jnp.arange(20) >= 4, rollout.action_mask.shape),
        segment=jnp.full(rollout.action_mask.shape, 0),
    )
    got, part = vapo(same, alpha=0.25, whiten=False), ppo(same, lam=0.75, whiten=False)
    assert_close(got["advantage"], part["advantage"], 1e-4)
    assert_close(got["target"], ppo(same, lam=1.0, whiten=False)["target"], 1e-4)
    assert (jnp.abs(got["target"] - part["target"]) > 1e-2).any()
    far = (
        vapo(rollout, alpha=0.25, whiten=False)["advantage"]
        - ppo(rollout, lam=0.75, whiten=False)["advantage"]
    )
    assert (jnp.abs(far) > 1e-2).any()


def test_otb_weighs_returns_by_their_uncertainty_so_far():
    logp, square = (
        np.log([[0.5, 0.5], [0.9, 0.25], [0.2, 1.0]]),
        [[0.5, 0.5], [0.82, 0.25], [0.4, 1.0]],
    )
    w = 1 - 2 * np.exp(logp) + square
    mask = np.array([[1, 1], [1, 1], [1, 0]])
    W = np.cumsum(w * mask, -1)
    r = np.array([1.0, 0.0, 0.5])
    base = [(r * W[:, 0]).sum() / W[:, 0].sum(), (r * W[:, 1])[:2].sum() / W[:2, 1].sum()]
    rollout = one_prompt(r, np.zeros((3, 2)), action_mask=mask, logp=logp, prob_square=square)
    assert_close(otb(rollout)[0], (r[:, None] - base) * mask)
    even = one_prompt(
        r, np.zeros((3, 2)), logp=np.full((3, 2), np.log(0.5)), prob_square=np.full((3, 2), 0.5)
    )
    assert_close(otb(even), dr_grpo(even))  # equal weights: the mean
    assert (jnp.abs(otb(rollout)[0, :, 0] - dr_grpo(rollout)[0, :, 0]) > 1e-3).all()
    sure = one_prompt(r, np.zeros((3, 2)), logp=np.zeros((3, 2)), prob_square=np.ones((3, 2)))
    assert_close(otb(sure), dr_grpo(sure))  # nothing uncertain: the mean as well, not 0 / 0


def test_otb_beyond_the_second_longest():
    rollout = one_prompt(
        [1, 0],
        np.zeros((2, 4)),
        action_mask=[[1, 1, 1, 1], [1, 1, 0, 0]],
        prob_square=np.full((2, 4), 1.5),
    )
    assert_close(otb(rollout)[0, 0], [0.5, 0.5, 0, 0])
    assert_close(otb(rollout, zero_tail=True)[0, 0], [0.5, 0.5, 1, 1])


# ---------------------------------------------------------------- order statistics


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_kth_largest_is_the_sorts(dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = (
            rng.normal(size=(40, 30))
            * 10.0 ** rng.integers(-40 if dtype == "float64" else -30, 30, (40, 30))
        ).astype(dtype)
        x[::3] = np.round(rng.normal(size=(14, 30)))  # ties, zeros of both signs
        where = rng.random((40, 30)) < 0.7
        k = np.minimum(rng.integers(1, 30, 40), where.sum(-1))
        got = np.asarray(
            jax.jit(kernels.kth_largest)(jnp.asarray(x), jnp.asarray(k), jnp.asarray(where))
        )
        want = [np.sort(row[w])[::-1][n - 1] for row, w, n in zip(x, where, k, strict=True)]
        assert got.dtype == dtype and (got == want).all()
        assert (
            np.isinf(kernels.kth_largest(jnp.asarray(x[0]), jnp.asarray(0)))
            and not kernels.top_share(jnp.asarray(x[0]), 0.3, jnp.zeros(30, bool)).any()
        )
    assert [
        int(kernels.top_share(jnp.arange(float(n)), 0.2).sum()) for n in (1, 5, 6, 10, 15, 35)
    ] == [1, 1, 2, 2, 3, 7]
