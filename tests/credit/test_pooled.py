"""Pooled evidence of decisions: against a loop over nodes, by enumeration, and as a signal."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import micro_experiment
import numpy as np
import pytest
from reference_loops.prompt import groups
from small_rollouts import random_rollout

from jaxcredit import arena, credit, signals
from jaxcredit.kernels import (
    Evidence,
    accumulate_evidence,
    bin_evidence,
    common_prefix,
    evidence_weights,
    gradient_coherence,
)
from jaxcredit.rollout import outcome
from jaxcredit.signals.decision_points import depth, entropy_bins, same_column, surprisal_bins, turn
from jaxcredit.train import programs


def nodes(tokens, mask, prefix):
    """(column, rows, children): peers that choose in a column, and those with equal choices."""
    for t in range(tokens.shape[1]):
        left = [i for i in range(len(tokens)) if mask[i, t]]
        while left:
            node = [j for j in left if prefix[left[0], j] >= t]
            left = [j for j in left if j not in node]
            yield (
                t,
                node,
                [
                    [j for j in node if tokens[j, t] == a]
                    for a in sorted({tokens[j, t] for j in node})
                ],
            )


def loop_coherence(x, tokens, mask, prefix):
    """Energy of the nodes and its mean over all permutations of the rewards, [T]."""
    answer = np.zeros(tokens.shape[1])
    for t, node, children in nodes(tokens, mask, prefix):
        mean, n = np.mean([x[j] for j in node]), len(node)
        energy = sum((sum(x[j] - mean for j in c)) ** 2 for c in children)
        chance = (
            np.var([x[j] for j in node], ddof=1) * (n - sum(len(c) ** 2 for c in children) / n)
            if n > 1
            else 0
        )
        answer[t] += energy - chance
    return answer


def loop_weight(found, noise, square, tokens, least):
    if noise.sum() == 0:
        return np.ones(len(found))
    known, m = noise > 0, found.sum() / noise.sum()
    s, error2 = found[known] / noise[known], square[known] / noise[known] ** 2
    tau2 = max(0.0, np.average((s - m) ** 2 - error2, weights=noise[known]))
    z = np.full(len(found), m)
    if tau2 > 0:
        z[known] = m + tau2 / (tau2 + error2) * (s - m)
    z = np.maximum(z, 0) + np.average(error2, weights=noise[known]) ** 0.5
    w = least + (1 - least) * z / z.max()
    return w / ((w * tokens).sum() / tokens.sum())


@pytest.mark.parametrize("columns", [False, True], ids=["same beginning", "same column"])
def test_coherence_is_that_of_a_loop_over_nodes(columns):
    """Ragged answers, holes and padding."""
    seen, alone = 0.0, jax.jit(gradient_coherence)
    for g in groups(random_rollout(5, R=7))[:24]:
        R, T = g["tokens"].shape
        x = np.where(g["segment_mask"], g["reward"], 0).sum(-1)[g["row"]]
        prefix = (
            np.full((R, R), T)
            if columns
            else np.asarray(common_prefix(jnp.asarray(g["tokens"]), jnp.asarray(g["token_mask"])))
        )
        got = alone(
            *(jnp.asarray(v) for v in (np.float32(x), g["tokens"], g["action_mask"], prefix))
        )
        want = loop_coherence(x, g["tokens"], g["action_mask"], prefix)
        np.testing.assert_allclose(
            np.asarray(got).sum(0), want, rtol=1e-3, atol=1e-3 * (1 + np.abs(want).max())
        )
        seen += np.abs(want).max()
    assert seen > 1


def test_of_all_deals_of_the_rewards_none_is_coherent_on_average():
    """The expected coherence is 0 for any rewards without effect, and positive at a decision."""
    tokens = jnp.array([[0, 1], [0, 2], [0, 1], [1, 1], [1, 3], [1, 3]])
    prefix = jnp.int32(tokens[:, :1] == tokens[:, 0])
    deals = np.array(list(itertools.permutations((0.3, 1.0, 0, 0.1, 0.7, 1.0))), np.float32)
    ones = jnp.ones((6, 2), bool)
    each = jax.jit(jax.vmap(lambda x: gradient_coherence(x, tokens, ones, prefix)))(
        jnp.asarray(deals)
    ).sum(1)
    assert np.abs(each.mean(0)).max() < 1e-5 < 0.1 < each.std(0).min()
    decided = np.asarray(
        gradient_coherence(jnp.asarray([1.0, 1, 1, 0, 0, 0]), tokens, ones, prefix)
    )
    np.testing.assert_allclose(
        decided.sum(0), [2 * 1.5**2 - 0.3 * 3, 0], atol=1e-6
    )  # nothing is decided below a node whose rewards are all equal
    logp, place = jnp.full((6, 2), jnp.log(0.25)), jnp.tile(jnp.array([2, 0]), (6, 1))
    e = bin_evidence(jnp.asarray(decided), jnp.asarray([1.0, 1, 1, 0, 0, 0]), logp, ones, place, 4)
    np.testing.assert_allclose(e.found, [0, 0, 3.6, 0], atol=1e-6)
    np.testing.assert_allclose(e.noise, [6 * 0.3 * 0.75, 0, 6 * 0.3 * 0.75, 0], rtol=1e-5)
    np.testing.assert_allclose(e.square, [0, 0, 3.6**2, 0], atol=1e-5)


def test_weights():
    numbers = [3.0, 0.2, -0.1, 0.0], [6.0, 5, 4, 0], [0.5, 0.4, 0.3, 0], [8.0, 8, 8, 16]
    e = Evidence(*(jnp.asarray(x) for x in numbers))
    w = np.asarray(evidence_weights(e, 0.1))
    np.testing.assert_allclose(w, loop_weight(*(np.asarray(v, float) for v in e), 0.1), rtol=1e-5)
    assert w[0] > w[3] > w[1] > w[2] > 0  # a place without evidence gets the mean weight
    np.testing.assert_allclose((w * e.tokens).sum() / e.tokens.sum(), 1, rtol=1e-6)
    scaled = e._replace(found=e.found * 9, noise=e.noise * 9, square=e.square * 81)
    np.testing.assert_allclose(evidence_weights(scaled, 0.1), w, rtol=1e-5)
    assert (
        evidence_weights(e._replace(found=jnp.array([0.5, -0.4, 0.3, 0])), 0.1) == 1
    ).all()  # differences within the noise give nearly equal weights
    assert (evidence_weights(jax.tree.map(jnp.zeros_like, e)) == 1).all()
    assert (evidence_weights(e._replace(found=-e.found)) > 0).all()
    twice = accumulate_evidence(e, e, 0.5)
    np.testing.assert_allclose(twice.noise, 1.5 * e.noise)
    np.testing.assert_allclose(twice.square, 1.25 * e.square)


@pytest.mark.slow
def test_the_signal_finds_the_key_and_never_sees_what_it_weighs():
    task = arena.KeyBranch(**{"at": 3, "T": 8, "q": 0.5, "c_pre": 0.8})
    draw = jax.jit(lambda key: arena.sample(task, prompts=8, group=8, key=key).rollout)
    make = signals.decision(places=16)
    signal = make(None, None)
    aux = signal.init(None, None)
    first = signal.annotate(aux, None, draw(jax.random.key(0)), None)
    assert (
        make.provides == ("decision_weight",) and (first["decision_weight"] == 1).all()
    )  # no evidence
    for step in range(30):
        aux, told = signal.update(aux, None, draw(jax.random.key(step)), {})
    rollout = draw(jax.random.key(99))
    w = signal.annotate(aux, None, rollout, None)["decision_weight"]
    assert int(told["place"]) == 3 and float(told["weight"]) > 2
    assert (w[..., 3] > 2 * jnp.delete(w, 3, axis=-1).max(-1)).all()
    other = dataclasses.replace(rollout, reward=1 - rollout.reward)
    np.testing.assert_array_equal(signal.annotate(aux, None, other, None)["decision_weight"], w)
    given = rollout.with_signals(decision_weight=w)
    np.testing.assert_allclose(
        credit.pooled(given, base=credit.rloo), credit.rloo(rollout) * w, rtol=1e-6
    )
    assert float(outcome(rollout).std()) > 0.1


def test_places():
    rollout = random_rollout(3, ("entropy",)).filled()
    mask = np.asarray(rollout.action_mask)
    before = mask.cumsum(-1) - mask
    np.testing.assert_array_equal(depth(2)(rollout), before // 2)
    surprise = np.where(mask, -np.asarray(rollout.logp), 0)
    np.testing.assert_array_equal(
        surprisal_bins((0.5, 2.0))(rollout),
        np.digitize(surprise.cumsum(-1) - surprise, (0.5, 2.0), right=True),
    )
    np.testing.assert_array_equal(
        entropy_bins((-0.2, 0.4))(rollout),
        np.digitize(np.asarray(rollout["entropy"]), (-0.2, 0.4), right=True),
    )
    np.testing.assert_array_equal(turn(rollout), rollout.segment)
    assert same_column(rollout).min() == rollout.tokens.shape[-1]


def test_an_experiment_carries_the_totals_in_its_state():
    """The evidence is part of TrainState.aux; without the annotator the error names the signal."""
    exp = dataclasses.replace(micro_experiment.experiment(), credit=credit.pooled)
    with pytest.raises(ValueError, match="pooled needs the signal decision_weight"):
        exp.check()
    state = programs.build(
        dataclasses.replace(exp, signals={"decision": signals.decision(places=8)}).check()
    ).state
    assert {name: x.shape for name, x in state.aux["decision"].items()} == dict.fromkeys(
        Evidence._fields, (8,)
    )
