"""KeyBranch's closed forms against enumeration of every sequence, and what two estimators make of it."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcredit import credit
from jaxcredit.arena import keybranch as kb


def enumerate_all(logits, at, p_hi, p_lo):
    """Every sequence with its probability and its chance of success, in float64."""
    pi = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    T, V = pi.shape
    for seq in itertools.product(range(V), repeat=T):
        yield seq, float(np.prod([pi[t, a] for t, a in enumerate(seq)])), p_hi if seq[at] == 0 else p_lo


def conditional_value(world, prefix):
    """E[success | the first tokens are prefix]."""
    mine = [(p, r) for seq, p, r in world if seq[: len(prefix)] == prefix]
    return sum(p * r for p, r in mine) / sum(p for p, _ in mine)


@pytest.mark.parametrize(("T", "V", "at"), [(3, 3, 0), (3, 3, 1), (4, 2, 3), (4, 3, 2)])
def test_closed_forms_equal_enumeration(T, V, at):
    rng = np.random.default_rng(T * 10 + at)
    logits = rng.normal(size=(T, V))
    world = list(enumerate_all(logits, at, 0.85, 0.2))
    sequences = np.array([seq for seq, _, _ in world], np.int32)
    with jax.enable_x64(True):
        task = kb.KeyBranch(at=at, p_hi=0.85, p_lo=0.2)
        value, action_value, advantage = map(np.asarray, kb.exact(jnp.asarray(logits), task, jnp.asarray(sequences)))
        gradient, J = np.asarray(kb.exact_gradient(jnp.asarray(logits), task)), kb.objective(jnp.asarray(logits), task)
        by_autodiff = np.asarray(jax.grad(kb.objective)(jnp.asarray(logits), task))
    for i, (seq, _, _) in enumerate(world):
        for t in range(T):
            V_t, Q_t = conditional_value(world, seq[:t]), conditional_value(world, seq[: t + 1])
            assert abs(value[i, t] - V_t) < 1e-12 and abs(action_value[i, t] - Q_t) < 1e-12
            assert abs(advantage[i, t] - (Q_t - V_t)) < 1e-12
    # The score function: sum over sequences of P(seq) R(seq) grad log P(seq).
    pi = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    by_score, by_advantage = np.zeros((T, V)), np.zeros((T, V))
    for i, (seq, p, r) in enumerate(world):
        for t, a in enumerate(seq):
            step = np.eye(V)[a] - pi[t]
            by_score[t] += p * r * step
            by_advantage[t] += p * advantage[i, t] * step
    np.testing.assert_allclose(by_advantage, by_score, rtol=0, atol=1e-10)
    np.testing.assert_allclose(gradient, by_score, rtol=0, atol=1e-10)
    np.testing.assert_allclose(by_autodiff, by_score, rtol=0, atol=1e-10)
    np.testing.assert_allclose(J, sum(p * r for _, p, r in world), rtol=0, atol=1e-12)
    assert np.abs(gradient[at]).max() > 1e-3 and np.abs(np.delete(gradient, at, 0)).max() == 0


def test_the_policy_has_the_masses_it_was_asked_for():
    pi = np.exp(np.asarray(kb.policy(kb.KeyBranch(at=2), 5, options=3, decoys=4, q=0.3, c_pre=0.7, c_post=0.4)))
    expected = [[0.7, 0.1, 0.1, 0.1]] * 2 + [[0.3, 0.35, 0.35, 0]] + [[0.4, 0.2, 0.2, 0.2]] * 2
    np.testing.assert_allclose(pi, expected, atol=1e-6)


def test_samples_follow_the_policy_and_the_outcome_the_key():
    task = kb.KeyBranch(at=2, p_hi=0.9, p_lo=0.1)
    logits = kb.policy(task, 5, options=3, decoys=4, q=0.3, c_pre=1.0, c_post=0.4)
    rollout = kb.sample(logits, task, prompts=4000, group=8, key=jax.random.key(0)).check()
    tokens, reward = np.asarray(rollout.tokens), np.asarray(rollout.reward)[..., 0]
    pi = np.exp(np.asarray(logits))
    for t in range(5):
        share = np.bincount(tokens[..., t].ravel(), minlength=4) / tokens[..., t].size
        np.testing.assert_allclose(share, pi[t], atol=0.012)  # 4 standard errors of a share of 32,000
    assert abs(reward[tokens[..., 2] == 0].mean() - 0.9) < 0.015
    assert abs(reward[tokens[..., 2] != 0].mean() - 0.1) < 0.015
    at = np.broadcast_to(np.arange(5), tokens.shape)
    np.testing.assert_allclose(np.asarray(rollout.logp), np.log(pi[at, tokens]), atol=1e-5)


def test_the_gradient_of_a_group_is_the_loop():
    task = kb.KeyBranch(at=1)
    logits = kb.policy(task, 4, c_pre=0.5)
    rollout = kb.sample(logits, task, prompts=3, group=4, key=jax.random.key(1))
    advantage = np.asarray(jax.random.normal(jax.random.key(2), rollout.tokens.shape))
    pi, tokens = np.exp(np.asarray(logits)), np.asarray(rollout.tokens)
    expected = np.zeros((3, *pi.shape))
    for n, g, t in np.ndindex(tokens.shape):
        expected[n, t] += advantage[n, g, t] * (np.eye(4)[tokens[n, g, t]] - pi[t]) / 4
    np.testing.assert_allclose(kb.gradient(jnp.asarray(advantage), rollout, logits), expected, atol=1e-5)


def test_gsnr_and_cosine():
    noise = 2 * np.random.default_rng(0).normal(size=(20000, 2, 3))  # tr Cov = 6 * 4
    g = jnp.asarray(noise + np.array([[3.0, 0, 0], [0, 0, 0]]), jnp.float32)
    assert abs(float(kb.gsnr(g)) - 9 / 24) < 0.02
    assert float(kb.cosine(jnp.array([[1.0, 0]]), jnp.array([[1.0, 1.0]]))) == pytest.approx(0.5**0.5, abs=1e-6)
    assert float(kb.cosine(jnp.zeros(3), jnp.ones(3))) == 0


def test_tempo_wins_with_shared_prefixes_and_loses_without():
    """CREDIT_ARENA d.5: where nothing branches before the key TEMPO's gSNR is over twice GRPO's; where all does it is less."""
    ratio = {c: _gsnr(credit.tempo, c) / _gsnr(credit.grpo, c) for c in (1.0, 0.5)}
    assert ratio[1.0] > 2 and ratio[0.5] < 1, ratio


def test_exact_credit_beats_grpo_and_no_sampled_group_is_biased():
    grpo, exact = _gradients(credit.grpo, 1.0), _gradients(lambda r: kb.exact(_logits(1.0), kb.KeyBranch(), r.tokens)[2], 1.0)
    assert float(kb.gsnr(exact)) > 10 * float(kb.gsnr(grpo))
    truth = kb.exact_gradient(_logits(1.0), kb.KeyBranch())
    assert float(kb.cosine(exact.mean(0), truth)) > 0.9999
    assert float(kb.cosine(grpo.mean(0), truth)) > 0.95  # broadcast is wrong as attribution and right as a direction
    outside = np.delete(np.arange(24), 8)
    assert float(jnp.abs(exact[:, outside]).max()) == 0  # no leak at all


def _logits(c_pre):
    return kb.policy(kb.KeyBranch(), c_pre=c_pre)


@partial(jax.jit, static_argnums=0)
def _groups(estimator, logits):
    rollout = kb.sample(logits, kb.KeyBranch(), prompts=2000, group=16, key=jax.random.key(7))
    return kb.gradient(estimator(rollout), rollout, logits)


def _gradients(estimator, c_pre):
    return _groups(estimator, _logits(c_pre))


def _gsnr(estimator, c_pre):
    return float(kb.gsnr(_gradients(estimator, c_pre)))
