"""SPLOO and its reductions: worked examples, unbiasedness by enumeration, its evidence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from reference_loops import LOOPS
from small_rollouts import jitted, one_prompt, random_rollout

import jaxcredit.credit as catalogue
from jaxcredit import kernels
from jaxcredit.credit.trees.sploo import bold, l1, l1_bold, mid, p0, safe
from jaxcredit.rollout import Rollout

attention_rhythm, gdpo, gpg, hicra, otb = (
    jitted(getattr(catalogue, name)) for name in "attention_rhythm gdpo gpg hicra otb".split()
)
passk, reinforce_pp_baseline, rloo = (
    jitted(getattr(catalogue, name)) for name in "passk reinforce_pp_baseline rloo".split()
)
# The knobs are traced: one program for all of their values.
sploo = jax.jit(catalogue.sploo, static_argnames=("kurtosis", "normalize"))


def changed(rollout, **fields):
    return Rollout(**{**vars(rollout), **fields})


# ---------------------------------------------------------------- sploo

TREE = np.concatenate([np.array([[0]] * 5 + [[1]] * 3), 10 + np.arange(88).reshape(8, 11)], 1)
REWARDS = [1, 1, 1, 1, 0, 0, 0, 0]


def test_sploo_example():
    rollout = one_prompt(REWARDS, TREE)
    A = sploo(rollout)[0]
    assert_close(A[:4, :2], [[0.571429, 0.494898]] * 4, 1e-5)
    assert_close(A[4, :2], [-0.571429, -0.816327], 1e-5)
    assert_close(A[5:, :2], [[-0.571429, -0.459184]] * 3, 1e-5)
    assert (A[:, 2:] == A[:, 1:2]).all()
    S = sploo(rollout, **safe.keywords)[0]
    assert_close(S[4, :2], [-1.386, -0.816327], 1e-3)
    assert_close(S[np.r_[:4, 5:8]], A[np.r_[:4, 5:8]])  # e is 2.84 and 2.56 there, below c
    e = (
        np.asarray(sploo(rollout, a=1.0, c=1e-9)[0][:, 0]) / A[:, 0] - 1,
    )  # a (1 - c/e) with c about 0 is 1 wherever e > 0
    assert_close(e, [[1] * 8], 1e-4)
    for c, fires in (
        (2.84, [1, 1, 1, 1, 1, 0, 0, 0]),
        (2.842, [0, 0, 0, 0, 1, 0, 0, 0]),
        (2.56, [1] * 8),
        (10.42, [0, 0, 0, 0, 1, 0, 0, 0]),
        (10.44, [0] * 8),
    ):
        assert_close(jnp.abs(sploo(rollout, a=1e6, c=c)[0][:, 0]) > 1, fires)
    B = sploo(rollout, **l1_bold.keywords)[0]
    assert_close(B[0, :3], [2.222, 0.947, 0.495], 1e-3)
    assert_close(B[4, :3], [-3.100, -1.563, -0.816], 1e-3)
    assert_close(B[5, :3], [-2.091, -0.809, -0.459], 1e-3)


def test_sploo_presets():
    knobs = {"p0": p0, "safe": safe, "mid": mid, "bold": bold, "l1": l1, "l1_bold": l1_bold}
    want = {
        "p0": (0, 0),
        "safe": (0, 2, 3),
        "mid": (0, 3, 2),
        "bold": (0, 4, 1.5),
        "l1": (1, 0),
        "l1_bold": (1, 4, 1.5),
    }
    for name, preset in knobs.items():
        assert (
            tuple(preset.keywords[k] for k in ("lam", "a", "c") if k in preset.keywords)
            == want[name]
        )
        assert preset.func is catalogue.sploo


@pytest.mark.slow
def test_sploo_without_baseline_and_weights_is_rloo():
    rollout = random_rollout(11, R=8, G=6)
    off = {"c_b": np.inf, "lam": 0.0, "a": 0.0}
    assert_close(sploo(rollout, **off), rloo(rollout), 1e-5)
    for knob in ({"c_b": 1.0}, {"lam": 1.0}, {"a": 4.0, "c": 0.1}):
        assert (jnp.abs(sploo(rollout, **{**off, **knob}) - rloo(rollout)) > 1e-3).any()
    own = jnp.arange(8)[:, None] + 5000
    apart = changed(
        rollout, tokens=jnp.where(jnp.arange(20) == 4, own, rollout.tokens)
    )  # parted at their first token
    first = jnp.arange(20) == 4
    weighed = sploo(apart, lam=0.5)
    assert_close(jnp.where(first, weighed, 0), 1.5 * jnp.where(first, rloo(apart), 0), 1e-5)
    assert_close(jnp.where(first, 0, weighed), jnp.where(first, 0, rloo(apart)), 1e-5)
    pair = one_prompt([0.3, 0.9], [[1, 2, 3], [1, 2, 4]])
    assert_close(
        sploo(pair, **bold.keywords)[0], [[-0.6] * 3, [0.6] * 3]
    )  # of two, b is the other's reward and nothing is evidence
    assert_close(sploo(one_prompt([0.7] * 8, TREE), **l1_bold.keywords), 0, 0)


def test_sploo_scales_with_rewards_and_ignores_a_shift():
    rollout = random_rollout(12, kinds=(0, 3))
    last = rollout.segment_mask & (
        jnp.cumsum(rollout.segment_mask, -1) == rollout.segment_mask.sum(-1, keepdims=True)
    )
    moved = changed(rollout, reward=4 * rollout.reward + jnp.where(last, 7.0, 0))
    assert_close(sploo(moved, **l1_bold.keywords), 4 * sploo(rollout, **l1_bold.keywords), 1e-3)
    divided = sploo(rollout, **l1_bold.keywords, normalize=True)
    assert_close(sploo(moved, **l1_bold.keywords, normalize=True), divided, 1e-3)
    R, there = (
        jnp.where(rollout.segment_mask, rollout.reward, 0).sum(-1),
        rollout.segment_mask.any(-1),
    )
    std = np.asarray(kernels.masked_std(R, there, -1))
    assert_close(
        jnp.where(std[:, None, None] > 0, divided * (std[:, None, None] + 1e-6), 0),
        sploo(rollout, **l1_bold.keywords),
        1e-3,
    )


def test_sploo_never_sees_ones_own_future():
    """Baseline and weight of answer i at t do not depend on its reward or its tokens from t on."""
    rng = np.random.default_rng(3)
    knobs = {"lam": 1.0, "a": 4.0, "c": 0.2, "c_b": 1.2}
    N, G, T = 64, 8, 12
    tokens, reward = (
        rng.integers(0, 2, (N, G, T)),
        rng.integers(0, 2, (N, G, 1)) + 0.01 * rng.normal(size=(N, G, 1)),
    )
    length = rng.integers(3, T + 1, (N, G, 1))
    with jax.enable_x64(True):

        def credit(tokens, reward, length):
            mask = jnp.asarray(np.arange(T) < length)
            zero = jnp.zeros(mask.shape)
            real = jnp.ones((N, G, 1), bool)
            return np.asarray(
                sploo(
                    Rollout(
                        jnp.asarray(tokens),
                        mask,
                        zero,
                        zero.astype(int),
                        jnp.asarray(reward),
                        real,
                        token_mask=mask,
                    ),
                    **knobs,
                )
            )[:, 0]

        t = rng.integers(0, 3, N)
        first = np.arange(G)[:, None] == 0
        other = np.where(
            first & (np.arange(T) >= t[:, None, None]), rng.integers(0, 2, (N, G, T)), tokens
        )
        long = np.where(first, T - 1, length)
        one, two = (np.where(first, r, reward) for r in (0.0, 1.0))
        A0, A1, B0, B1 = (
            credit(tokens, one, length),
            credit(tokens, two, length),
            credit(other, one, long),
            credit(other, two, long),
        )
    upto = np.arange(T) <= t[:, None]
    weight, weight_after = A1 - A0, B1 - B0
    np.testing.assert_allclose(weight[upto], weight_after[upto], atol=1e-12)
    np.testing.assert_allclose(A0[upto], B0[upto], atol=1e-12)
    assert (weight[upto] > 2.5).any() and np.abs(
        A0 - B0
    ).max() > 0.05  # evidence fired; later columns did change


def test_sploo_credit_of_an_ended_answer_and_of_twins():
    """One answer ends early; two others are equal and stay peers to the end."""
    tokens = [[1, 2, 0, 0], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 5, 6], [7, 8, 9, 9]]
    mask = np.array([[1, 1, 0, 0]] + [[1] * 4] * 4)
    rollout = one_prompt([1, 0, 1, 0, 0.5], tokens, action_mask=mask)
    knobs = {"lam": 1.0, "a": 4.0, "c": 0.01, "c_b": 0.5, "least": 1}
    assert_close(
        sploo(rollout, **knobs)[0],
        LOOPS["sploo"](
            {k: np.asarray(v[0]) for k, v in vars(rollout.filled()).items() if k != "signals"},
            **knobs,
        ),
    )


# Every group of four answers of three binary tokens, random logits of prefixes, random rewards.
ANSWERS = np.array(list(np.ndindex(2, 2, 2)))
NODE = np.array([[0, 1 + y[0], 3 + 2 * y[0] + y[1]] for y in ANSWERS])
GROUPS = np.array(list(np.ndindex(8, 8, 8, 8)))


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(5)
    p_one = rng.uniform(0.25, 0.75, 7)[NODE]
    chance = np.where(ANSWERS == 1, p_one, 1 - p_one).prod(-1)
    return p_one, chance, rng.normal(size=8)


def expectation(world, **knobs):
    """E sum_it A_it grad log pi for each prefix, and the true gradient."""
    p_one, chance, r = world
    with jax.enable_x64(True):
        ones = jnp.ones((4096, 4, 3), bool)
        zero = jnp.zeros(ones.shape)
        rollout = Rollout(
            jnp.asarray(ANSWERS[GROUPS]),
            ones,
            zero,
            zero.astype(int),
            jnp.asarray(r[GROUPS][..., None]),
            ones[..., :1],
        )
        A = np.asarray(sploo(rollout, **knobs))
    assert A.dtype == np.float64
    score = (ANSWERS - p_one)[GROUPS]
    weight = chance[GROUPS].prod(-1)[:, None, None]
    true = np.bincount(NODE.reshape(-1), ((chance * r)[:, None] * (ANSWERS - p_one)).reshape(-1))
    return np.bincount(NODE[GROUPS].reshape(-1), (weight * A * score).reshape(-1)) / 4, true, A


def test_p0_is_exactly_unbiased(world):
    plain = expectation(world, c_b=np.inf)[2]
    for c_b in (3.0, 1.0):
        got, true, A = expectation(world, c_b=c_b)
        np.testing.assert_allclose(got, true, rtol=0, atol=1e-12)
        if c_b == 1.0:
            assert np.abs(A - plain).max() > 0.05  # the baseline moved, and costs no bias


def test_safe_keeps_the_direction_in_every_state(world):
    """At each state the expected gradient is between 1 and 1 + a times the true one."""
    got, true, A = expectation(world, a=2.0, c=0.5, ramp=1.0)
    factor = got / true
    assert (factor > 1 - 1e-12).all() and (factor < 3).all() and factor.max() > 1.02
    assert np.abs(A - expectation(world)[2]).max() > 0.1


def test_evidence_keeps_a_state_without_advantage_at_zero(world):
    p_one, chance, r = world
    r = r.copy()
    r[[1, 5]] = r[[0, 4]]  # the last token decides nothing after 00 and after 10
    got, true, _ = expectation((p_one, chance, r), a=4.0, c=0.2, lam=1.0, ramp=1.0)
    dead = [3, 5]
    np.testing.assert_allclose(true[dead], 0, atol=1e-15)
    np.testing.assert_allclose(got[dead], 0, atol=1e-12)
    assert np.abs(got - true).max() > 1e-2


def test_l1_weighs_each_state_in_closed_form(world):
    p_one, chance, _ = world
    visits = np.zeros(7)
    for y, node in enumerate(NODE):
        visits[node] += chance[y]
    for lam in (1.0, 0.4):
        got, true, _ = expectation(world, lam=lam)
        d, G = visits, 4
        factor = 1 + lam * (1 - (1 - (1 - d) ** G) / (G * d)) / (1 - 1 / G)
        np.testing.assert_allclose(got, factor * true, rtol=0, atol=1e-12)
        assert factor.max() > 1.2


def test_tempos_gradient_is_two_of_ours():
    """TEMPO's credit at each child of a prefix is a mixture of rloo and prefix rloo."""
    rng = np.random.default_rng(6)
    N, G, T = 20, 6, 7
    tokens, r = rng.integers(0, 2, (N, G, T)), rng.normal(size=(N, G))
    tokens[:, :, -1] = np.arange(G)
    with jax.enable_x64(True):
        ones = jnp.ones((N, G, T), bool)
        rollout = Rollout(
            jnp.asarray(tokens),
            ones,
            jnp.zeros(ones.shape),
            jnp.zeros(ones.shape, int),
            jnp.asarray(r)[..., None],
            ones[..., :1],
        )
        tempo = (
            np.asarray(jax.jit(partial(catalogue.tempo, eps=0.0))(rollout))
            * r.std(-1)[:, None, None]
        )
        prefix = np.asarray(sploo(rollout, c_b=0.0, least=1, kurtosis=False))
        alone = np.asarray(rloo(rollout))
        shrunk = np.asarray(sploo(rollout))
    gap = 0.0
    for n in range(N):
        for t in range(T):
            state, child = ([tuple(y[: t + s]) for y in tokens[n]] for s in (0, 1))
            size = np.array([state.count(s) for s in state])
            for i in range(G):
                if size[i] > 1:
                    peers = [j for j in range(G) if j != i and state[j] == state[i]]
                    assert abs(prefix[n, i, t] - (r[n, i] - r[n, peers].mean())) < 1e-12
            ours = (1 - 1 / G) * (alone[n, :, t] + (1 - 1 / size) / (1 - 1 / G) * prefix[n, :, t])
            for c in set(child):
                of = [i for i in range(G) if child[i] == c]
                assert abs(tempo[n, of, t].sum() - ours[of].sum()) < 1e-12
            gap = max(gap, np.abs(tempo[n, :, t] - ours).max())
    assert gap > 0.1  # one by one they are not the same
    assert np.abs(tempo.sum(1) - (1 - 1 / G) * (alone + shrunk).sum(1)).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("reward", [0.7, 1e4 + 0.3, -3.3e-5])
def test_equal_rewards_of_any_value_are_exactly_nothing(reward):
    tokens = np.random.default_rng(0).integers(0, 2, (7, 5))
    signals = {
        "components": [[reward, -reward]] * 7,
        "prob_square": np.full((7, 5), 0.3),
        "planning": tokens,
        "waad": tokens,
        "fai": tokens,
    }
    rollout = one_prompt([reward] * 7, tokens, logp=-tokens - 0.5, **signals)
    for credit in (
        reinforce_pp_baseline,
        gpg,
        passk,
        gdpo,
        otb,
        hicra,
        attention_rhythm,
        sploo,
        partial(sploo, **l1_bold.keywords),
    ):
        assert (credit(rollout) == 0).all(), credit
