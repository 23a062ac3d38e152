"""Theorems about SPLOO, by enumeration: all groups of three answers of three binary tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcredit import credit
from jaxcredit.rollout import Rollout

G, T = 3, 3
ANSWERS = np.array(list(np.ndindex(2, 2, 2)))
NODE = np.array(
    [[0, 1 + y[0], 3 + 2 * y[0] + y[1]] for y in ANSWERS]
)  # number of the prefix of each token
KINDS = np.array(list(np.ndindex(8, 2)))  # all pairs of an answer and a 0/1 reward
GROUPS = np.array(list(np.ndindex(16, 16, 16)))
WHICH, R = KINDS[GROUPS][..., 0], KINDS[GROUPS][..., 1] * 1.0
Y = ANSWERS[WHICH]
SHARED = np.concatenate(
    [np.ones((4096, G, G, 1)), (Y[:, :, None] == Y[:, None]).cumprod(-1)], -1
)  # 1 if answers i and j share the first t tokens
SIZE = SHARED.sum(2)
VALUE = np.einsum("nijt,nj->nit", SHARED, R) / SIZE
MEAN = R.mean(1)[:, None, None]
WEIGHT = np.array([0.1, 2.0, 0.7, 1.5, 0.3, 1.0, 3.0])  # an arbitrary weight of each prefix


@pytest.fixture(scope="module")
def found():
    """Credit of each estimator for every group, in float64; TEMPO without its division by std R."""
    with jax.enable_x64(True):
        ones = jnp.ones(Y.shape, bool)
        zero = jnp.zeros(Y.shape)
        rollout = Rollout(
            jnp.asarray(Y), ones, zero, zero.astype(int), jnp.asarray(R)[..., None], ones[..., :1]
        )
        # least=1: with two others the baseline could not move otherwise.
        sploo = jax.jit(lambda rollout, lam: credit.sploo(rollout, lam=lam, c_b=1.5, least=1))
        answer = {"p0": sploo(rollout, 0.0), "l1": sploo(rollout, 1.0)}
        answer["tempo"] = jax.jit(credit.tempo)(rollout) * (R.std(1)[:, None, None] + 1e-6)
        answer["rloo"] = jax.jit(credit.rloo)(rollout)
        pooled = jax.jit(lambda rollout: credit.pooled(rollout, base=credit.rloo))
        answer["pooled"] = pooled(
            rollout.with_signals(decision_weight=jnp.asarray(WEIGHT[NODE[WHICH]]))
        )
    return {name: np.asarray(A) for name, A in answer.items()}


def by_node(A, p_one):
    """Policy gradient of each group in the logits of the 7 prefixes: 1/G sum_it A_it (y_it - p)."""
    terms = A * (Y - p_one[NODE[WHICH]]) / G
    return np.bincount(
        (np.arange(4096)[:, None, None] * 7 + NODE[WHICH]).ravel(), terms.ravel(), 4096 * 7
    ).reshape(4096, 7)


@pytest.fixture(scope="module")
def world():
    """A policy, probabilities of groups, visit probabilities of prefixes, and the true gradient."""
    rng = np.random.default_rng(1)
    p_one, success = rng.uniform(0.2, 0.8, 7), rng.uniform(0, 1, 8)
    chance = np.where(ANSWERS == 1, p_one[NODE], 1 - p_one[NODE]).prod(-1)
    weight = (chance[WHICH] * np.where(R == 1, success[WHICH], 1 - success[WHICH])).prod(1)
    visit = np.bincount(NODE.ravel(), np.repeat(chance, T))
    truth = np.bincount(
        NODE.ravel(), ((chance * success)[:, None] * (ANSWERS - p_one[NODE])).ravel()
    )
    assert abs(weight.sum() - 1) < 1e-12
    return p_one, weight, visit, truth


def test_peers_of_the_same_child_change_nothing_of_the_gradient(world):
    """Own return, child mean, leave-one-out child mean and mixtures have the same gradient.

    It differs if answers have different weights.
    """
    p_one = world[0]
    n, mean = SIZE[..., 1:], VALUE[..., 1:]
    own = np.broadcast_to(R[..., None], Y.shape)
    others = np.where(n > 1, (n * mean - own) / np.maximum(n - 1, 1), own)
    plain, weights = by_node(own, p_one), np.array([1.0, 0.5, 0.25])[:, None]
    for peers in (mean, others, own / n + (1 - 1 / n) * others):
        assert np.abs(peers - own).max() > 0.3
        np.testing.assert_allclose(by_node(peers, p_one), plain, rtol=0, atol=1e-12)
        assert np.abs(by_node(weights * peers, p_one) - by_node(weights * own, p_one)).max() > 1e-2


def test_the_gradient_of_tempo_is_that_of_twice_the_outcome_less_mean_and_value(found, world):
    other = 2 * R[..., None] - MEAN - VALUE[..., :T]
    assert np.abs(other - found["tempo"]).max() > 0.3  # the credits differ
    np.testing.assert_allclose(
        by_node(other, world[0]), by_node(found["tempo"], world[0]), rtol=0, atol=1e-12
    )


def test_expected_gradients_reweigh_prefixes_in_closed_form(found, world):
    """p0 is unbiased; TEMPO and l1 scale each prefix's gradient by its visit probability."""
    p_one, weight, d, truth = world
    mean = {name: weight @ by_node(A, p_one) for name, A in found.items()}
    rare = (1 - (1 - d) ** G) / (G * d)
    np.testing.assert_allclose(mean["p0"], truth, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mean["rloo"], truth, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mean["pooled"], truth * WEIGHT, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mean["tempo"], truth * (2 - 1 / G - rare), rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        mean["l1"], truth * (1 + (1 - rare) / (1 - 1 / G)), rtol=0, atol=1e-12
    )
    assert np.abs(found["p0"] - found["rloo"]).max() > 0.05  # the baseline moves
    cosine = mean["tempo"] @ truth / np.linalg.norm(mean["tempo"]) / np.linalg.norm(truth)
    assert 0.9 < cosine < 0.9999


# One unknown position t (the key) has a small effect: P(R = 1) = p + delta (y_t - pi_t).

PI, P = np.array([0.3, 0.5, 0.6]), 0.4
X = Y - PI
NULL = np.where(Y == 1, PI, 1 - PI).prod((1, 2)) * np.where(R == 1, P, 1 - P).prod(1)
SCORE = ((R - P)[..., None] * X).sum(1)  # REINFORCE with the known mean


def covariance(a, b):
    return NULL @ (a * b) - (NULL @ a) * (NULL @ b)


def gains(g):
    """R_t for each key position t, and REINFORCE's noise nu_t.

    R_t is the signal-to-noise ratio of g along the true gradient over that of REINFORCE, as delta
    goes to 0.
    """
    noise = covariance(SCORE, SCORE)
    return (covariance(g, SCORE) / noise) ** 2 * noise.sum() / covariance(g, g).sum(), noise


def test_the_signal_is_the_covariance_with_the_score(found):
    g, delta = (found["tempo"] * X).sum(1) / G, 1e-4
    for t in range(T):
        up, down = (
            NULL
            * np.where(
                R == 1, 1 + s * delta * X[..., t] / P, 1 - s * delta * X[..., t] / (1 - P)
            ).prod(1)
            for s in (1, -1)
        )
        np.testing.assert_allclose(
            (up - down) @ g[:, t] / (2 * delta),
            covariance(g[:, t], SCORE[:, t]) / (P * (1 - P)),
            atol=1e-6,
        )


def test_no_function_of_one_group_beats_reinforce_on_average_over_the_key(found):
    """sum_t nu_t R_t <= sum_t nu_t; RLOO has (G - 1) / G everywhere, TEMPO more at early t."""
    rng = np.random.default_rng(0)
    estimators = {name: (A * X).sum(1) / G for name, A in found.items()}
    estimators |= {
        f"random {i}": SCORE * rng.normal(1, 0.3, T) + s * rng.normal(size=SCORE.shape)
        for i, s in enumerate((0, 0.1, 0.3, 1))
    }
    measured = {name: gains(g)[0] for name, g in estimators.items()}
    noise = gains(SCORE)[1]
    total = {name: (noise * r).sum() / noise.sum() for name, r in measured.items()}
    assert abs((noise * gains(SCORE)[0]).sum() / noise.sum() - 1) < 1e-12
    assert all(x < 1 + 1e-12 for x in total.values()) and max(total.values()) > 0.9
    np.testing.assert_allclose(measured["rloo"], (G - 1) / G, rtol=0, atol=1e-12)
    assert (
        measured["tempo"][0] > measured["rloo"][0] and measured["tempo"][-1] < measured["rloo"][-1]
    )
    assert total["tempo"] < total["rloo"]
