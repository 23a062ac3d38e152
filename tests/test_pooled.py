"""Evidence of decisions pooled over groups: against a loop over nodes, under every deal of the rewards, and what the signal makes of it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from oracle import groups, random

from jaxcredit import arena, credit, programs, signals
from jaxcredit.kernels import Evidence, common_prefix, evidence, relative_weight, remember
from jaxcredit.rollout import outcome
from jaxcredit.signals.decision import depth, same_column, turn, unsure, visited

sums = jax.jit(evidence, static_argnums=5)


def loop_evidence(x, tokens, mask, prefix, place, places):
    """From the definition: nodes as sets of rows, children as sets within them."""
    answer = np.zeros((4, places))
    for t in range(tokens.shape[1]):
        left = [i for i in range(len(x)) if mask[i, t]]
        while left:
            node = [j for j in left if prefix[left[0], j] >= t]
            left = [j for j in left if j not in node]
            answer[3, place[node[0], t]] += len(node)
            children = [[j for j in node if tokens[j, t] == a] for a in sorted({tokens[j, t] for j in node})]
            n, C = len(node), len(children)
            if not 1 < C < n:
                continue
            s2 = np.var([x[j] for j in node], ddof=1)
            between = sum(len(c) * (np.mean([x[j] for j in c]) - np.mean([x[j] for j in node])) ** 2 for c in children)
            terms = between - (C - 1) * s2, s2 * (n - C), 2 * (C - 1) * (n - C) / (n + 1) * s2**2
            answer[:3, place[node[0], t]] += terms
    return answer


def loop_weight(found, most, noise, tokens, least):
    known = most > 0
    if not known.any():
        return np.ones(len(found))
    m = found.sum() / most.sum()
    share, error2 = found[known] / most[known], noise[known] / most[known] ** 2
    tau2 = max(0.0, (most[known] * ((share - m) ** 2 - error2)).sum() / most.sum())
    z = np.full(len(found), m)
    if tau2 > 0:
        z[known] = m + tau2 / (tau2 + error2) * (share - m)
    z = np.maximum(z, 0)
    w = least + (1 - least) * z / z.max() if z.max() > 0 else np.ones(len(z))
    return w / ((w * tokens).sum() / tokens.sum())


@pytest.mark.parametrize("columns", [False, True], ids=["same beginning", "same column"])
def test_evidence_is_that_of_a_loop_over_nodes(columns):
    """Ragged answers, holes and padding; places are steps of the column, as all of a node must lie in one."""
    seen = 0.0
    for g in groups(random(5, R=7))[:24]:
        R, T = g["tokens"].shape
        x = np.where(g["real"], g["reward"], 0).sum(-1)[g["row"]]
        prefix = np.full((R, R), T) if columns else np.asarray(common_prefix(jnp.asarray(g["tokens"]), jnp.asarray(g["valid"])))
        place = np.broadcast_to(np.arange(T) // 3, (R, T))
        got = sums(jnp.asarray(x, jnp.float32), g["tokens"], jnp.asarray(g["mask"]), jnp.asarray(prefix), jnp.asarray(place), 8)
        want = loop_evidence(x, g["tokens"], g["mask"], prefix, place, 8)
        np.testing.assert_allclose(np.stack(got), want, rtol=1e-3, atol=1e-3 * (1 + np.abs(want).max()))
        seen += np.abs(want[0]).max()
    assert seen > 1


def test_of_all_deals_of_the_rewards_none_is_found_on_average():
    """The expectation of `found` is 0 whatever the rewards, and `noise` is about its variance; a decision is found in full."""
    tokens = jnp.array([[0, 1], [0, 2], [0, 1], [1, 1], [1, 3], [1, 3]])
    prefix = jnp.int32(tokens[:, :1] == tokens[:, 0])
    deals = np.array(list(itertools.permutations((0.3, 1.0, 0, 0.1, 0.7, 1.0))))
    ones, place = jnp.ones((6, 2), bool), jnp.tile(jnp.arange(2), (6, 1))
    each = jax.jit(jax.vmap(lambda x: evidence(x, tokens, ones, prefix, place, places=2)))(jnp.asarray(deals, jnp.float32))
    assert np.abs(each.found.mean(0)).max() < 1e-6 < each.found.std(0).min()
    np.testing.assert_allclose(each.found.var(0), each.noise.mean(0), rtol=0.5)
    decided = evidence(jnp.asarray([1.0, 1, 1, 0, 0, 0]), tokens, ones, prefix, place, 2)
    np.testing.assert_allclose(decided.found[0], decided.most[0], rtol=1e-5)
    assert decided.found[1] == 0  # all of a node earn the same: nothing left to decide


def test_weights():
    e = Evidence(*jnp.array([[3.0, 0.2, -0.1, 0.0], [6, 5, 4, 0], [0.5, 0.4, 0.3, 0], [8, 8, 8, 16]]))
    w = np.asarray(relative_weight(e, 0.1))
    np.testing.assert_allclose(w, loop_weight(*(np.asarray(v, float) for v in e), 0.1), rtol=1e-5)
    assert w[0] > w[3] > w[1] > w[2] > 0  # what nobody knows weighs as the mean share
    np.testing.assert_allclose((w * e.tokens).sum() / e.tokens.sum(), 1, rtol=1e-6)
    scaled = e._replace(found=e.found * 9, most=e.most * 9, noise=e.noise * 81)
    np.testing.assert_allclose(relative_weight(scaled, 0.1), w, rtol=1e-5)
    chance = e._replace(found=jnp.array([0.5, -0.4, 0.3, 0]))
    for nothing in (chance, jax.tree.map(jnp.zeros_like, e), e._replace(found=-e.found)):
        v = np.asarray(relative_weight(nothing, 0.1))
        assert np.isfinite(v).all() and (nothing is not chance or (v == 1).all())
    twice = remember(e, e, 0.5)
    np.testing.assert_allclose(twice.most, 1.5 * e.most)
    np.testing.assert_allclose(twice.noise, 1.25 * e.noise)


def test_the_signal_finds_the_key_and_never_sees_what_it_weighs():
    task = arena.KeyBranch(**{"at": 3, "T": 8, "q": 0.5, "c_pre": 0.8})
    draw = jax.jit(lambda key: arena.sample(task, prompts=8, group=8, key=key).rollout)
    make = signals.decision(places=16)
    signal = make(None, None)
    aux = signal.init(None, None)
    first = signal.annotate(aux, None, draw(jax.random.key(0)), None)
    assert make.provides == ("decision_weight",) and (first["decision_weight"] == 1).all()  # nothing is known
    for step in range(30):
        aux, told = signal.update(aux, None, draw(jax.random.key(step)), {})
    rollout = draw(jax.random.key(99))
    w = signal.annotate(aux, None, rollout, None)["decision_weight"]
    assert int(told["place"]) == 3 and 0 < float(told["share"]) < 1
    assert (w[..., 3] > 2 * jnp.delete(w, 3, axis=-1).max(-1)).all()
    other = dataclasses.replace(rollout, reward=1 - rollout.reward)
    np.testing.assert_array_equal(signal.annotate(aux, None, other, None)["decision_weight"], w)
    given = rollout.with_signals(decision_weight=w)
    np.testing.assert_allclose(credit.pooled(given, base=credit.rloo), credit.rloo(rollout) * w, rtol=1e-6)
    assert float(outcome(rollout).std()) > 0.1


def test_places():
    rollout = random(3, ("entropy",)).filled()
    mask = np.asarray(rollout.mask)
    before = mask.cumsum(-1) - mask
    np.testing.assert_array_equal(depth(2)(rollout), before // 2)
    surprise = np.where(mask, -np.asarray(rollout.logp), 0)
    np.testing.assert_array_equal(visited((0.5, 2.0))(rollout), np.digitize(surprise.cumsum(-1) - surprise, (0.5, 2.0), right=True))
    np.testing.assert_array_equal(unsure((-0.2, 0.4))(rollout), np.digitize(np.asarray(rollout["entropy"]), (-0.2, 0.4), right=True))
    np.testing.assert_array_equal(turn(rollout), rollout.segment)
    assert same_column(rollout).min() == rollout.tokens.shape[-1]


def test_an_experiment_carries_the_totals_in_its_state():
    """They lie in aux, so they are saved and restored with it; without the entry, the credit says what it lacks."""
    exp = dataclasses.replace(micro.experiment(), credit=credit.pooled)
    with pytest.raises(ValueError, match="pooled needs the signal decision_weight"):
        exp.check()
    state = programs.build(dataclasses.replace(exp, signals={"decision": signals.decision(places=8)}).check()).state
    assert {name: x.shape for name, x in state.aux["decision"].items()} == dict.fromkeys(Evidence._fields, (8,))
