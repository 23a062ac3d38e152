"""Closed forms of KeyBranch against enumeration of all sequences, and two estimators in it."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcredit import arena, credit
from jaxcredit.arena import metrics
from jaxcredit.arena.worlds import keybranch as kb


def enumerate_all(logits, at, p_hi, p_lo):
    """All sequences with their probability and success probability, in float64."""
    pi = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    T, V = pi.shape
    for seq in itertools.product(range(V), repeat=T):
        yield (
            seq,
            float(np.prod([pi[t, a] for t, a in enumerate(seq)])),
            p_hi if seq[at] == 0 else p_lo,
        )


def conditional_value(world, prefix):
    """Success probability given a prefix."""
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
        value, action_value, advantage = map(
            np.asarray, kb.exact(jnp.asarray(logits), task, jnp.asarray(sequences))
        )
        gradient, J = (
            np.asarray(kb.exact_gradient(jnp.asarray(logits), task)),
            kb.objective(jnp.asarray(logits), task),
        )
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
    pi = np.exp(
        np.asarray(
            kb.KeyBranch(at=2, T=5, options=3, decoys=4, q=0.3, c_pre=0.7, c_post=0.4).policy()
        )
    )
    expected = [[0.7, 0.1, 0.1, 0.1]] * 2 + [[0.3, 0.35, 0.35, 0]] + [[0.4, 0.2, 0.2, 0.2]] * 2
    np.testing.assert_allclose(pi, expected, atol=1e-6)


def test_samples_follow_the_policy_and_the_outcome_the_key():
    task = kb.KeyBranch(
        at=2, p_hi=0.9, p_lo=0.1, T=5, options=3, decoys=4, q=0.3, c_pre=1.0, c_post=0.4
    )
    rollout, logits = (
        sample(task, prompts=4000, group=8, key=jax.random.key(0)).rollout.check(),
        task.policy(),
    )
    tokens, reward = np.asarray(rollout.tokens), np.asarray(rollout.reward)[..., 0]
    pi = np.exp(np.asarray(logits))
    for t in range(5):
        share = np.bincount(tokens[..., t].ravel(), minlength=4) / tokens[..., t].size
        np.testing.assert_allclose(
            share, pi[t], atol=0.012
        )  # 4 standard errors of a share of 32,000
    assert abs(reward[tokens[..., 2] == 0].mean() - 0.9) < 0.015
    assert abs(reward[tokens[..., 2] != 0].mean() - 0.1) < 0.015
    at = np.broadcast_to(np.arange(5), tokens.shape)
    np.testing.assert_allclose(np.asarray(rollout.logp), np.log(pi[at, tokens]), atol=1e-5)


def test_the_gradient_of_a_group_is_the_loop():
    task = kb.KeyBranch(at=1, T=5, options=3, decoys=4, c_pre=0.5)
    batch, logits = sample(task, prompts=4000, group=8, key=jax.random.key(1)), task.policy()
    pi, tokens = np.exp(np.asarray(logits)), np.asarray(batch.rollout.tokens)
    advantage = np.random.default_rng(2).normal(size=tokens.shape).astype(np.float32)
    expected = np.zeros((3, *pi.shape))
    for n, g, t in np.ndindex(3, *tokens.shape[1:]):
        expected[n, t] += advantage[n, g, t] * (np.eye(4)[tokens[n, g, t]] - pi[t]) / 8
    np.testing.assert_allclose(
        arena.gradient(jnp.asarray(advantage), batch, logits)[:3], expected, atol=1e-5
    )


@pytest.mark.slow
def test_tempo_wins_with_shared_prefixes_and_loses_without():
    """Without branches before the key TEMPO's gsnr is over twice GRPO's; with them it is lower."""
    ratio = {c: _gsnr(credit.tempo, c) / _gsnr(credit.grpo, c) for c in (1.0, 0.5)}
    assert ratio[1.0] > 2 and ratio[0.5] < 1, ratio


@pytest.mark.slow
def test_exact_credit_beats_grpo_and_no_sampled_group_is_biased():
    grpo, exact = (
        _measured(credit.grpo, 1.0),
        _measured(lambda r: kb.exact(kb.KeyBranch().policy(), kb.KeyBranch(), r.tokens)[2], 1.0),
    )
    assert exact["gsnr"][0] > 10 * grpo["gsnr"][0] and exact["cos_mean"][0] > 0.9999
    assert grpo["cos_mean"][0] > 0.95  # broadcast is wrong as attribution and right as a direction


sample = jax.jit(arena.sample, static_argnames=("prompts", "group"))


@partial(jax.jit, static_argnums=0)
def _groups(estimator, batch, logits):
    return arena.gradient(estimator(batch.rollout), batch, logits)


def _measured(estimator, c_pre):
    task = kb.KeyBranch(c_pre=c_pre)
    batch = sample(task, prompts=2000, group=16, key=jax.random.key(7))
    g = _groups(estimator, batch, task.policy())
    return metrics.gradient_metrics(
        g, kb.exact_gradient(task.policy(), task), metrics.resampling(2000, resamples=10)
    )


def _gsnr(estimator, c_pre):
    return _measured(estimator, c_pre)["gsnr"][0]
