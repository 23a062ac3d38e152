"""Sampling ahead: answers sampled before the update of the previous step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_trees_equal
from micro_experiment import build, experiment
from run_metrics import metrics_without_times

from jaxcredit.collect.batches import Batches
from jaxcredit.train import programs
from jaxcredit.train.programs import compose_step, make_collector
from jaxcredit.train.run import run


def ahead(steps=6, **kw):
    return dataclasses.replace(
        experiment(steps=steps), sample_ahead=True, save_every=3, eval_every=100, **kw
    )


def test_they_come_from_the_parameters_before_the_update_and_are_judged_after_it(
    tmp_path, monkeypatch
):
    exp = ahead(steps=4)  # the third step is saved, and the fourth is the last
    made = build(exp)
    told, seen, ends = [], [], []

    def make(exp, programs, batches):
        sampling = make_collector(exp, programs, batches)

        def collect(params, key, batch):
            told.append("sample")
            waiting = sampling(params, key, batch)

            def judge():
                told.append("judge")
                return waiting()

            return judge

        return collect

    def compose(exp, programs):
        step = compose_step(exp, programs)

        def update(state, *given):
            told.append("update")
            seen.append(given)
            state, metrics = step.update(state, *given)
            ends.append(state)
            return state, metrics

        return step._replace(update=update)

    monkeypatch.setattr("jaxcredit.train.run.build", build)
    monkeypatch.setattr("jaxcredit.train.loop.make_collector", make)
    monkeypatch.setattr("jaxcredit.train.loop.compose_step", compose)
    run(exp, tmp_path)
    order = "sample judge sample update judge sample update judge update sample judge update"
    assert " ".join(told) == order

    # The expected steps: with sampling ahead, the answers of step k come from the parameters before
    # update k - 1.
    state, batches = (
        made.init(jax.random.key(0)),
        Batches(len(exp.task.train), exp.prompts_per_step, exp.seed),
    )
    sampling, before = make_collector(exp, made, batches), None
    step = compose_step(exp, made)
    for k, early in enumerate([False, True, True, False]):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), k)
        now = jax.tree.map(lambda x: x.copy(), state.params)  # the update takes its own
        got = sampling(before if early else now, key, next(batches))()
        rollout = step.annotate(state, got)
        columns = step.credit(rollout)
        assert_trees_equal((rollout, columns), seen[k])
        before, (state, _) = now, step.update(state, rollout, columns)
    assert_trees_equal(state.params, ends[-1].params)


@pytest.mark.slow
def test_what_is_old_is_weighed_by_whole_answers():
    """Loss on answers of an older policy, by its formula: mean over tokens of -min(prod p / q, 2)
    A.
    """
    made = programs.build(ahead())
    state, batches = made.init(jax.random.key(0)), Batches(48, 4, 0)
    rollout = make_collector(ahead(), made, batches)(
        state.params, jax.random.key(1), next(batches)
    )().rollout.filled()
    gap = 0.3 * jax.random.normal(jax.random.key(2), rollout.logp.shape)
    columns = made.credit(rollout)
    p, mask = np.asarray(rollout.logp, np.float64), np.asarray(rollout.action_mask)
    weight = np.minimum(np.exp(np.where(mask, gap, 0).sum(-1, keepdims=True)), 2)
    want = -(weight * np.where(mask, columns["advantage"], 0)).sum() / mask.sum()
    stale = dataclasses.replace(rollout, logp=jnp.asarray(p - np.asarray(gap), jnp.float32))
    _, metrics = made.update(state, stale, columns)
    assert (weight == 2).any() and abs(want) > 1e-3
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_run_that_was_stopped_at_a_save_goes_on_as_if_it_never_had(tmp_path):
    run(ahead(), tmp_path / "whole")
    run(ahead(steps=3), tmp_path / "parts")
    run(ahead(), tmp_path / "parts", resume=True)
    whole, parts = (
        [
            {k: v for k, v in line.items() if not k.startswith("eval/")}
            for line in metrics_without_times(tmp_path / name)
        ]  # of step 3 too, once the last
        for name in ("whole", "parts")
    )
    assert parts == whole
    gaps = [line["sampler_logp_diff"] for line in whole[1:]]
    assert (
        max(gaps[0], gaps[3]) < 1e-5 < min(gaps[1], gaps[2], gaps[4], gaps[5])
    )  # one update old, but for the step after a save


def test_rounds_of_sampling_cannot_be_sent_ahead():
    with pytest.raises(
        ValueError, match="max_sampling_rounds = 2 waits for rewards.*sample_ahead=False"
    ):
        ahead(max_sampling_rounds=2).check()
