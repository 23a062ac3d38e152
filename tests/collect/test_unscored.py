"""Unscored answers (a reward that returns None): excluded from statistics, loss and means, and
counted.
"""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_experiment import ITEMS, experiment, score
from micro_experiment import build as built

from jaxcredit import credit
from jaxcredit.collect.dynamic import dynamic_sampling
from jaxcredit.collect.single_turn import single_turn
from jaxcredit.tasks import Task
from jaxcredit.train import failures as trouble
from jaxcredit.train import run as run_module
from jaxcredit.train.loop import rollout_metrics
from jaxcredit.train.programs import compose_step
from jaxcredit.train.run import run
from jaxcredit.train.runs.json_lines import read_metrics


@pytest.fixture(autouse=True)
def _share_programs(monkeypatch):
    monkeypatch.setattr(run_module, "build", built)


def change(reward, **fields):
    exp = experiment(steps=2)
    return dataclasses.replace(exp, task=Task("micro", ITEMS[:48], ITEMS[48:], reward), **fields)


def dull(meta):
    """Whether no answer to a prompt is scored: a quarter of the prompts."""
    return meta[0] == "a"


def abstains(meta, text, ids):
    return None if dull(meta) or sum(ids) % 3 == 0 else score(meta, text, ids)


def collected(exp, seed=0, **more):
    programs = built(exp)
    state = programs.init(jax.random.key(seed))
    collect = single_turn(
        programs.sample,
        exp.tokenizer,
        exp.task,
        group_size=exp.group_size,
        buckets=exp.buckets,
        **more,
    )
    return (
        programs,
        state,
        collect(state.params, jax.random.key(seed + 1), np.array([0, 1, 2, 47]))(),
    )


def test_what_is_unscored_did_not_take_place():
    exp = change(abstains)
    _, _, got = collected(exp)
    rollout = got.rollout.check()
    real, mask = np.asarray(rollout.segment_mask)[..., 0], np.asarray(rollout.action_mask)
    full = collected(change(score))[2].rollout
    tokens, chosen = np.asarray(full.tokens), np.asarray(full.action_mask)
    ends = np.array(
        [
            [
                abstains(got.metas[n], got.texts[n][g], tokens[n, g][chosen[n, g]].tolist())
                for g in range(4)
            ]
            for n in range(4)
        ],
        object,
    )
    assert (real == (ends != None)).all() and 0 < real.sum() < real.size  # noqa: E711
    assert (
        not mask[~real].any()
        and mask[real].any(-1).all()
        and (np.asarray(rollout.segment)[~real] == -1).all()
    )
    assert (np.asarray(rollout.reward)[~real] == 0).all()
    facts = rollout_metrics(rollout, {"advantage": jnp.zeros(mask.shape)})
    assert (
        int(facts["unscored"]) == (~real).sum()
        and int(facts["groups_unscored"]) == (~real.any(-1)).sum() > 0
    )
    assert float(facts["reward"]) == pytest.approx(ends[real].astype(float).mean())
    assert float(facts["length"]) == pytest.approx(mask.sum(-1)[real].mean())
    facts = rollout_metrics(full, {"advantage": jnp.zeros(mask.shape)})
    assert facts["unscored"] == facts["groups_unscored"] == 0


@pytest.mark.parametrize("name", ["tempo", "grpo", "reinforce_pp", "sploo"])
def test_an_unscored_answer_moves_nothing(name):
    """A step is the same as without the unscored answer, whatever its tokens, reward and log-probs."""
    exp = change(abstains, credit=getattr(credit, name))
    programs, state, got = collected(exp)
    gone = ~got.rollout.segment_mask
    noise = jax.random.randint(jax.random.key(5), got.rollout.tokens.shape, 0, 5)
    response = jnp.arange(noise.shape[-1]) >= noise.shape[-1] - exp.max_new_tokens
    other = dataclasses.replace(
        got.rollout,
        tokens=jnp.where(gone & response, noise, got.rollout.tokens),
        logp=jnp.where(gone, -9.0, got.rollout.logp),
        reward=jnp.where(gone, 1e6, got.rollout.reward),
        done=got.rollout.done ^ gone[..., 0],
    )
    after = []
    for rollout in (got.rollout, other):
        again = jax.tree.map(jnp.copy, state)
        after.append(compose_step(exp, programs).update(again, rollout, programs.credit(rollout)))
    for left, right in zip(*(jax.tree.leaves(new.params) for new, _ in after), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-7)
    for key in (
        "loss",
        "grad_norm",
        "entropy",
        "advantage_rms",
        "active_token_fraction",
        "sampler_logp_diff",
    ):
        assert float(after[0][1][key]) == pytest.approx(
            float(after[1][1][key]), rel=1e-5, abs=1e-7
        ), key
    assert float(after[0][1]["grad_norm"]) > 0


def test_dynamic_sampling_does_not_take_an_unscored_answer_for_a_wrong_one():
    def reward(meta, text, ids):
        return None if sum(ids) % 2 else 1.0

    exp = change(reward)
    programs = built(exp)
    state = programs.init(jax.random.key(0))
    collect = single_turn(
        programs.sample, exp.tokenizer, exp.task, group_size=exp.group_size, buckets=exp.buckets
    )
    got = dynamic_sampling(collect, lambda: np.arange(4), 2)(
        state.params, jax.random.key(1), np.arange(4)
    )()
    assert (
        got.metrics["groups_without_signal"] == 4 and not np.asarray(got.rollout.segment_mask).all()
    )


def test_a_run_counts_them_and_goes_on(tmp_path):
    run(change(abstains, steps=3), tmp_path)
    first, *lines = read_metrics(tmp_path)
    assert all(0 < line["unscored"] < 16 and np.isfinite(line["loss"]) for line in lines)
    assert (
        first["eval/unscored"] > 0
        and first["eval/greedy_accuracy"] <= first["eval/greedy_reward"] <= 1
    )


def test_a_run_in_which_nothing_is_scored_learns_nothing_and_says_why(tmp_path):
    with pytest.warns(
        UserWarning, match=r"all rewards of the last 5 steps were equal.*unscored \(None\)"
    ):
        run(change(lambda meta, text, ids: None, steps=7), tmp_path)
    first, *lines = read_metrics(tmp_path)
    assert all(
        line["unscored"] == 16 and line["groups_unscored"] == 4 and line["grad_norm"] == 0
        for line in lines
    )
    assert first["eval/unscored"] == 8 and first["eval/greedy_reward"] == 0


# Groups without a signal


@pytest.mark.parametrize(
    "value, cause",
    [
        (0.0, "every answer earned 0. Read a few answers"),
        (1.0, "every answer earned 1. Take harder"),
    ],
)
def test_equal_rewards_of_several_steps_are_told_once_with_the_cause(value, cause):
    history = [
        {"step": 0},
        *({"step": i, "reward": value, "reward_range": 0.0, "length": 3.0} for i in range(1, 12)),
    ]
    flat = trouble.FlatRewards()
    with pytest.warns(UserWarning, match=cause) as caught:
        for i in (2, 4, 4, 6, 7, 11):  # as a run shows them: metrics are fetched late
            flat.check(history[: i + 1])
    assert len(caught) == 1


def test_one_step_with_different_rewards_is_enough():
    history = [
        {"reward": 0.5, "reward_range": 0.5 * (i % 5 == 0), "length": 3.0} for i in range(20)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flat = trouble.FlatRewards()
        for i in range(20):
            flat.check(history[: i + 1])


def test_a_graded_reward_is_seen_to_grow_where_nothing_is_solved(tmp_path, capsys):
    run(change(lambda meta, text, ids: 0.5 * score(meta, text, ids)), tmp_path)
    assert "greedy reward 0." in (out := capsys.readouterr().out) and "eval/greedy_reward" in out
    looks = [line for line in read_metrics(tmp_path) if "eval/greedy_reward" in line]
    assert len(looks) == 2 and all(line["eval/greedy_accuracy"] == 0 for line in looks)
    assert any(line["eval/greedy_reward"] > 0 for line in looks)


def test_the_held_out_reward_is_not_shown_twice_where_it_is_the_accuracy(tmp_path, capsys):
    run(change(lambda meta, text, ids: float(len(ids) > 1)), tmp_path)
    assert (
        "greedy accuracy" in (out := capsys.readouterr().out)
        and "greedy reward" not in out
        and "eval/greedy_reward" not in out
    )
    assert all(
        line["eval/greedy_reward"] == line["eval/greedy_accuracy"]
        for line in read_metrics(tmp_path)
        if "eval/unscored" in line
    )


def test_waiting_for_the_update_is_not_counted_as_sampling(tmp_path):
    run(change(score), tmp_path)
    for line in read_metrics(tmp_path)[1:]:
        assert min(line[f"time/{name}"] for name in ("update_s", "sample_s", "reward_s")) >= 0
