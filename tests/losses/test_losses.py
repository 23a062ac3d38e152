"""Worked numbers, a loop from each formula, and what must never happen: a NaN, a moved gradient, a number that depends on the padding."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcredit import losses
from jaxcredit.losses import Batch

N, R, S = 3, 4, 6
OBJECTIVES = {
    "reinforce": losses.reinforce,
    "nll": losses.nll,
    "ppo_clip": losses.ppo_clip,
    "dual": partial(losses.ppo_clip, high=0.28, dual=3.0),
    "cispo": losses.cispo,
    "gspo": partial(losses.gspo, low=0.05, high=0.08),
    "gmpo": losses.gmpo,
    "sapo": losses.sapo,
}
AGGREGATES = {
    "token_mean": losses.token_mean,
    "sequence_mean": losses.sequence_mean,
    "sequence_sum": losses.sequence_sum,
    "constant": losses.constant(S),
}
KLS = {"k1": losses.k1, "k2": losses.k2, "k3": losses.k3}


def a_batch(logp, *, old=None, advantage=None, **fields):
    """A batch in which every token counts, from lists [R, S]."""
    logp = jnp.asarray(logp, jnp.float32)[None]
    ones = jnp.ones(logp.shape)
    full = {
        "action_mask": ones > 0,
        "weight": ones,
        "clip": ones,
        "segment": jnp.zeros(logp.shape, jnp.int32),
        **fields,
    }
    old, advantage = (
        ones * 0 if x is None else jnp.asarray(x, jnp.float32)[None] for x in (old, advantage)
    )
    return logp, Batch(logp=old, advantage=advantage, **full)


def ragged(seed, *, junk=False, spread=0.5):
    """Rows of any length, with holes, one without any token and one prompt without any; off the mask lies junk if asked."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(S) < rng.integers(1, S + 1, (N, R, 1))) & (rng.random((N, R, S)) > 0.2)
    mask[0, 1], mask[2] = False, False

    def column(x, bad):
        return jnp.asarray(np.where(mask | (not junk), x, bad), jnp.float32)

    old = rng.normal(-2, 0.5, (N, R, S))
    logp = column(old + rng.normal(0, spread, (N, R, S)), -np.inf)
    segment = jnp.asarray(np.where(mask, 0, -1), jnp.int32)
    return logp, Batch(
        action_mask=jnp.asarray(mask),
        logp=column(old, np.nan),
        advantage=column(rng.normal(size=(N, R, S)), np.nan),
        weight=column(rng.choice([0.0, 0.5, 1.0], (N, R, S), p=[0.2, 0.3, 0.5]), np.nan),
        clip=column(rng.uniform(0.7, 1.3, (N, R, S)), np.nan),
        segment=segment,
        ref_logp=column(old + rng.normal(0, spread, (N, R, S)), np.inf),
        sampler_logp=column(old + rng.normal(0, 0.6, (N, R, S)), -np.inf),
    )


# Worked examples


def test_ppo_clips_the_ratio_and_clip_higher_lets_it_further():
    logp, batch = a_batch(np.log([[1.25, 0.8, 1.0]]), advantage=[[1.0, 1.0, 1.0]])
    mean = lambda objective: float(losses.divide(*losses.token_mean(objective(logp, batch), batch)))  # noqa: E731
    assert mean(losses.ppo_clip) == pytest.approx(-1.0, abs=1e-6)
    assert mean(partial(losses.ppo_clip, high=0.28)) == pytest.approx(-1.016667, abs=1e-6)
    assert mean(losses.gspo) == pytest.approx(-1.0, abs=1e-6)  # 1.25 x 0.8 x 1 = 1
    assert mean(losses.gmpo) == pytest.approx(-1.0, abs=1e-6)


def test_dual_clip_bounds_the_loss_of_a_bad_token_only():
    logp, batch = a_batch(np.log([[10.0, 10.0, 2.0]]), advantage=[[-1.0, 1.0, -1.0]])
    np.testing.assert_allclose(losses.ppo_clip(logp, batch)[0, 0], [10, -1.2, 2], rtol=1e-6)
    np.testing.assert_allclose(
        losses.ppo_clip(logp, batch, dual=3.0)[0, 0], [3, -1.2, 2], rtol=1e-6
    )


def test_a_column_clip_of_zero_holds_a_token_that_gains_and_two_lets_it_twice_as_far():
    logp, batch = a_batch(
        np.log([[1.5, 1.5, 1.5]]), advantage=[[1.0, 1.0, 1.0]], clip=jnp.array([[[0.0, 1.0, 2.0]]])
    )
    np.testing.assert_allclose(losses.ppo_clip(logp, batch)[0, 0], [-1.0, -1.2, -1.4], rtol=1e-6)


def test_aggregates_of_the_worked_example():
    loss = jnp.array([[[1, 1, 0, 0], [2, 2, 2, 2]]], jnp.float32)
    _, batch = a_batch(np.zeros((2, 4)), action_mask=loss > 0)
    value = {
        name: float(losses.divide(*aggregate(loss, batch)))
        for name, aggregate in AGGREGATES.items()
        if name != "constant"
    }
    assert value == pytest.approx(
        {"token_mean": 1.666667, "sequence_mean": 1.5, "sequence_sum": 5.0}, abs=1e-6
    )
    # Released code that divides by the length alone says 2.5; the mean over the two rows is what adds up over shards.
    assert float(losses.divide(*losses.constant(4)(loss, batch))) == pytest.approx(2.5 / 2)


def test_kl_estimators_by_hand():
    logp, batch = a_batch([[-1.0, -1.0, -1.0]], ref_logp=jnp.array([[[-1.5, -1.0, 29.0]]]))
    np.testing.assert_allclose(losses.k1(logp, batch)[0, 0], [0.5, 0, -30])
    np.testing.assert_allclose(losses.k2(logp, batch)[0, 0], [0.125, 0, 450])
    np.testing.assert_allclose(
        losses.k3(logp, batch)[0, 0], [math.exp(-0.5) + 0.5 - 1, 0, 10], rtol=1e-6
    )


# Loops from the formulas


def clipped(A, rho, c, low, high, dual=None):
    loss = max(-A * rho, -A * min(max(rho, 1 - low * c), 1 + high * c))
    return min(loss, -A * dual) if dual and A < 0 else loss


def row_loss(name, p, old, A, c):
    """The losses of one row's chosen tokens."""
    rho = [math.exp(min(max(x - y, -20), 20)) for x, y in zip(p, old, strict=True)]
    n = len(p)
    mean = sum(x - y for x, y in zip(p, old, strict=True)) / n
    if name == "reinforce":
        return [-a * x for a, x in zip(A, p, strict=True)]
    if name == "nll":
        return [-x for x in p]
    if name == "ppo_clip":
        return [clipped(a, r, k, 0.2, 0.2) for a, r, k in zip(A, rho, c, strict=True)]
    if name == "dual":
        return [clipped(a, r, k, 0.2, 0.28, 3.0) for a, r, k in zip(A, rho, c, strict=True)]
    if name == "cispo":
        return [
            -min(max(r, 1 - k), 1 + 0.28 * k) * a * x
            for a, r, k, x in zip(A, rho, c, p, strict=True)
        ]
    if name == "gspo":
        return [
            clipped(a, math.exp(min(mean, 10)), k, 0.05, 0.08) for a, k in zip(A, c, strict=True)
        ]
    if name == "gmpo":
        logs = []
        for a, r, k in zip(A, rho, c, strict=True):
            x = math.log(r)
            logs.append(min(x, 0.4 * k) if a > 0 else max(x, -0.4 * k) if a < 0 else 0.0)
        return [-sum(A) / n * math.exp(sum(logs) / n)] * n
    tau = [1.0 if a > 0 else 1.05 for a in A]
    return [-a * 4 / t / (1 + math.exp(-t * (r - 1))) for a, r, t in zip(A, rho, tau, strict=True)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_against_a_loop(name):
    for seed in range(3):
        logp, batch = ragged(seed)
        expected = np.zeros((N, R, S))
        for n, r in np.ndindex(N, R):
            at = np.flatnonzero(np.asarray(batch.action_mask[n, r]))
            if len(at):
                expected[n, r, at] = row_loss(
                    name,
                    *(
                        np.asarray(x[n, r], np.float64)[at]
                        for x in (logp, batch.logp, batch.advantage, batch.clip)
                    ),
                )
        np.testing.assert_allclose(OBJECTIVES[name](logp, batch), expected, atol=2e-6)


@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregates_against_a_loop(name):
    loss, batch = ragged(7)
    rows = []
    for n, r in np.ndindex(N, R):
        at = [t for t in range(S) if batch.action_mask[n, r, t] and batch.weight[n, r, t] > 0]
        if at:
            rows.append([(float(batch.weight[n, r, t]), float(loss[n, r, t])) for t in at])
    sums = [sum(w * x for w, x in row) for row in rows]
    counts = [sum(w for w, _ in row) for row in rows]
    expected = {
        "token_mean": sum(sums) / sum(counts),
        "sequence_mean": sum(s / c for s, c in zip(sums, counts, strict=True)) / len(rows),
        "sequence_sum": sum(sums) / len(rows),
        "constant": sum(sums) / len(rows) / S,
    }
    assert float(losses.divide(*AGGREGATES[name](loss, batch))) == pytest.approx(
        expected[name], rel=1e-5
    )


# Identities


@pytest.mark.parametrize("name", ["ppo_clip", "dual", "gspo", "gmpo", "cispo", "sapo"])
def test_on_policy_every_objective_has_the_gradient_of_reinforce(name):
    _, batch = ragged(1)
    A = jnp.broadcast_to(
        batch.advantage[..., :1], batch.action_mask.shape
    )  # one advantage a row: what the sequence methods are for
    batch = dataclasses.replace(batch, advantage=A, weight=jnp.ones_like(A))

    def gradient(objective):
        return jax.grad(lambda p: losses.sequence_mean(objective(p, batch), batch)[0])(batch.logp)

    np.testing.assert_allclose(gradient(OBJECTIVES[name]), gradient(losses.reinforce), atol=1e-6)
    value = {"gspo": -A, "gmpo": -A, "ppo_clip": -A, "dual": -A, "cispo": -A * batch.logp}.get(name)
    if value is not None:
        np.testing.assert_allclose(
            OBJECTIVES[name](batch.logp, batch), jnp.where(batch.action_mask, value, 0), atol=1e-6
        )


def test_gspo_is_ppo_for_answers_of_one_token():
    logp, batch = ragged(2)
    one = jax.tree.map(lambda x: x[..., :1], batch)
    for f in (lambda p, o: o(p, one), jax.grad(lambda p, o: jnp.sum(o(p, one)))):
        a, b = (
            f(logp[..., :1], partial(losses.gspo, low=0.2, high=0.2)),
            f(logp[..., :1], losses.ppo_clip),
        )
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert not np.allclose(
        losses.gspo(logp, batch, low=0.2, high=0.2), losses.ppo_clip(logp, batch), atol=1e-3
    )


def test_the_gspo_gradient_is_that_of_the_sequence_ratio():
    """d/d logp_t of -A exp(mean log rho), inside the clip range and with one advantage a row, is the token form's."""
    logp, batch = ragged(3, spread=0.01)
    A = jnp.broadcast_to(batch.advantage[..., :1], batch.action_mask.shape)
    batch = dataclasses.replace(batch, advantage=A, weight=jnp.ones_like(A), clip=jnp.ones_like(A))
    count = jnp.maximum(batch.action_mask.sum(-1), 1)

    def sequence(p):
        return jnp.sum(
            -A[..., 0]
            * jnp.exp(jnp.where(batch.action_mask, p - batch.logp, 0).sum(-1) / count)
            * batch.action_mask.any(-1)
        )

    token = jax.grad(
        lambda p: losses.sequence_mean(losses.gspo(p, batch, low=0.2, high=0.2), batch)[0]
    )(logp)
    np.testing.assert_allclose(token, jax.grad(sequence)(logp), atol=1e-6)


def test_a_clipped_token_has_no_gradient_in_ppo_and_keeps_one_in_cispo():
    logp, batch = a_batch(np.log([[1.5, 1.5, 0.5, 0.5]]), advantage=[[1.0, -1.0, 1.0, -1.0]])
    ppo, cispo = (
        jax.grad(lambda p, o=o: jnp.sum(o(p, batch)))(logp)[0, 0]
        for o in (losses.ppo_clip, losses.cispo)
    )
    np.testing.assert_allclose(ppo, [0, 1.5, -0.5, 0], atol=1e-6)
    np.testing.assert_allclose(cispo, [-1.28, 1.28, -0.5, 0.5], atol=1e-6)


def test_gradient_of_k2_is_that_of_the_reverse_kl_and_the_other_values_are_unbiased():
    """By enumeration of six tokens; k1's own gradient is zero in expectation, the straight-through forms mend that."""
    z, z_ref = jax.random.normal(jax.random.key(0), (2, 6))
    ref = jax.nn.log_softmax(z_ref)[None, None]
    _, batch = a_batch(np.zeros((1, 6)), ref_logp=ref)

    def kl(z):
        logp = jax.nn.log_softmax(z)
        return jnp.sum(jnp.exp(logp) * (logp - ref[0, 0]))

    def expected(estimator, z):
        logp = jax.nn.log_softmax(z)
        return jnp.sum(
            jax.lax.stop_gradient(jnp.exp(logp)) * estimator(logp[None, None], batch)[0, 0]
        )

    exact, slope = float(kl(z)), jax.grad(kl)(z)
    assert expected(losses.k1, z) == pytest.approx(exact, abs=1e-6)
    assert expected(losses.k3, z) == pytest.approx(exact, abs=1e-6)
    assert expected(losses.straight_through(losses.k3), z) == pytest.approx(exact, abs=1e-6)
    for estimator in (
        losses.k2,
        losses.straight_through(losses.k1),
        losses.straight_through(losses.k3),
    ):
        np.testing.assert_allclose(jax.grad(partial(expected, estimator))(z), slope, atol=1e-6)
    np.testing.assert_allclose(jax.grad(partial(expected, losses.k1))(z), 0, atol=1e-6)
    assert np.abs(jax.grad(partial(expected, losses.k3))(z) - slope).max() > 1e-2


def test_k3_is_never_negative():
    logp, batch = ragged(4, spread=3.0)
    assert float(losses.k3(logp, batch).min()) >= 0 > float(losses.k1(logp, batch).min())


# Truncated importance


@pytest.mark.parametrize("sequence", [False, True])
def test_truncated_importance_weighs_by_the_capped_ratio_and_stops_its_gradient(sequence):
    logp, batch = ragged(5)
    gap = np.where(batch.action_mask, np.asarray(batch.logp) - np.asarray(batch.sampler_logp), 0)
    factor = np.minimum(np.exp(gap.sum(-1, keepdims=True) if sequence else gap), 1.5)
    assert factor.max() == 1.5 and factor.min() < 1
    weighted = losses.truncated_importance(
        partial(losses.ppo_clip, high=0.28), cap=1.5, sequence=sequence
    )
    plain = partial(losses.ppo_clip, high=0.28)
    np.testing.assert_allclose(weighted(logp, batch), factor * plain(logp, batch), rtol=1e-5)
    on = dataclasses.replace(batch, logp=logp)

    def total(
        objective, p
    ):  # the old log-probabilities are the trainer's own: the factor depends on p, its gradient must not
        return jnp.sum(objective(p, dataclasses.replace(on, logp=p)))

    factor = np.where(on.action_mask, np.asarray(logp) - np.asarray(on.sampler_logp), 0)
    factor = np.minimum(np.exp(factor.sum(-1, keepdims=True) if sequence else factor), 1.5)
    slope = jax.grad(
        partial(total, losses.truncated_importance(losses.reinforce, cap=1.5, sequence=sequence))
    )(logp)
    np.testing.assert_allclose(
        slope, factor * jax.grad(partial(total, losses.reinforce))(logp), rtol=1e-5
    )


def test_truncated_importance_is_no_change_when_sampler_and_trainer_agree():
    logp, batch = ragged(6)
    batch = dataclasses.replace(batch, sampler_logp=batch.logp)
    np.testing.assert_array_equal(
        losses.truncated_importance(losses.cispo)(logp, batch), losses.cispo(logp, batch)
    )


def test_what_is_missing_is_named():
    logp, batch = ragged(0)
    bare = dataclasses.replace(batch, sampler_logp=None, ref_logp=None)
    with pytest.raises(ValueError, match="sampler_logp"):
        losses.truncated_importance(losses.ppo_clip)(logp, bare)
    for kl in KLS.values():
        with pytest.raises(ValueError, match="signals.reference"):
            kl(logp, bare)


# Never a NaN, never a token that should not count


@pytest.mark.parametrize("aggregate", AGGREGATES.values(), ids=AGGREGATES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_junk_off_the_mask_and_huge_ratios_leave_value_and_gradient_finite(name, aggregate):
    def total(logp, batch):
        loss = losses.truncated_importance(OBJECTIVES[name])(logp, batch) + 0.1 * losses.k3(
            logp, batch
        )
        return losses.divide(*aggregate(loss, batch))

    for batch_of in (partial(ragged, spread=0.5), partial(ragged, spread=60.0)):
        logp, batch = batch_of(8, junk=True)
        value, slope = jax.value_and_grad(total)(logp, batch)
        assert np.isfinite(value) and np.isfinite(slope).all()
        np.testing.assert_array_equal(np.asarray(slope)[~np.asarray(batch.action_mask)], 0)
        clean = batch_of(8)
        np.testing.assert_allclose(value, total(*clean), rtol=1e-6)
        half = jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, (logp, batch)
        )
        low, slope = jax.value_and_grad(total)(*half)
        assert (
            low.dtype == jnp.float32
            and np.isfinite(low)
            and np.isfinite(slope.astype(jnp.float32)).all()
        )
    empty = dataclasses.replace(batch, action_mask=jnp.zeros_like(batch.action_mask))
    value, slope = jax.value_and_grad(total)(logp, empty)
    assert value == 0 and (slope == 0).all()


@pytest.mark.parametrize("aggregate", AGGREGATES.values(), ids=AGGREGATES)
def test_a_token_of_weight_zero_is_as_if_never_there(aggregate):
    loss, batch = ragged(9)
    batch = dataclasses.replace(batch, weight=jnp.ones_like(batch.weight))
    drop = jnp.zeros((N, R, S), bool).at[:, :, 1::2].set(True).at[1, 2].set(True)
    unweighted = dataclasses.replace(batch, weight=jnp.where(drop, 0.0, 1.0))
    masked = dataclasses.replace(batch, action_mask=batch.action_mask & ~drop)
    np.testing.assert_allclose(aggregate(loss, unweighted), aggregate(loss, masked), rtol=1e-6)
    assert float(aggregate(loss, unweighted)[0]) != float(aggregate(loss, batch)[0])


@pytest.mark.parametrize("aggregate", AGGREGATES.values(), ids=AGGREGATES)
def test_numerators_and_denominators_add_up_over_prompts_and_rows_of_padding_change_nothing(
    aggregate,
):
    loss, batch = ragged(10)
    whole = np.array(aggregate(loss, batch))
    parts = sum(
        np.array(aggregate(loss[n : n + 1], jax.tree.map(lambda x, n=n: x[n : n + 1], batch)))
        for n in range(N)
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    wide = jax.tree.map(lambda x: jnp.pad(x, ((0, 1), (0, 2), (0, 3))), batch)
    np.testing.assert_allclose(
        aggregate(jnp.pad(loss, ((0, 1), (0, 2), (0, 3)), constant_values=9.0), wide),
        whole,
        rtol=1e-6,
    )
