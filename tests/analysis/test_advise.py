"""Advice: the decision tree for given numbers, for rollouts of a file, a run and a world."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from micro_experiment import build
from paths import MICRO

from jaxcredit import arena, credit
from jaxcredit.analysis import advise
from jaxcredit.analysis.measurement import Measurement, measure
from jaxcredit.cli import main as cli
from jaxcredit.rollout import files
from jaxcredit.tasks.statistics import Estimate

OUTCOME_ONLY = {
    "zero_signal": 0.1,
    "reward": 0.5,
    "truncated": 0.0,
    "branchings": 5.0,
    "children_alone": 0.6,
    "decided": Estimate(0.01, -0.02, 0.04),
    "tau": 0.9,
    "gap_mean": 1e-4,
    "gap_max": 1e-2,
    "gap_off": 0.0,
}
LENGTHS = {
    f"tokens_{kind}": {"count": 9.0, "min": 1.0, "median": 5.0, "mean": 5.0, "max": 9.0}
    for kind in ("better", "worse")
}
# Name: changed numbers, signals, the first estimator recommended, and one that is not.
CASES = {
    "nothing": ({}, (), "rloo", "tempo"),
    "overlap": ({"decided": Estimate(0.35, 0.3, 0.4), "tau": 0.7}, (), "tempo", None),
    "some overlap": ({"decided": Estimate(0.2, 0.15, 0.25), "tau": 0.3}, (), "sploo", None),
    "overlap that nothing depends on": (
        {"decided": Estimate(0.3, -0.01, 0.6), "tau": 0.9},
        (),
        "rloo",
        "tempo",
    ),
    "states come back": ({"anchor_median": 6.0, "turns_alone": 0.1}, ("state",), "gigpo", "tempo"),
    "states are too fine": (
        {"anchor_median": 1.0, "turns_alone": 0.8},
        ("state",),
        "rloo",
        "gigpo",
    ),
    "strata": ({"strata_ratio": 7.0, "strata": 3.0}, ("stratum",), "san", "tempo"),
    "strata alike": ({"strata_ratio": 0.2, "strata": 3.0}, ("stratum",), "rloo", "san"),
    "a process reward": ({}, ("process",), "pure", "tempo"),
    "several agents": ({}, ("agent",), "dr_mas", None),
    "agents and counterfactuals": ({}, ("agent", "counterfactual"), "difference_rewards", None),
    "a good critic": ({"critic_explains": 0.6}, ("value",), "ppo", None),
    "a bad critic": ({"critic_explains": 0.05}, ("value",), "rloo", "ppo"),
    "information": ({}, ("gain",), "igpo", None),
    "one answer a prompt": ({"group": 1}, (), "ppo", None),
}


def measured(change, signals):
    group = change.pop("group", 16)
    size = {"prompts": 9, "group": group, "segments": 1, "tokens": 99}
    return Measurement({**OUTCOME_ONLY, **change}, {1: 0.5}, LENGTHS, size, signals)


@pytest.mark.parametrize("case", CASES)
def test_the_tree(case):
    change, signals, first, against = CASES[case]
    steps = advise.recommend(measured(dict(change), signals))
    names = [name for name, _ in advise.estimators(steps)]
    assert names[0] == first and against not in names
    assert against is None or any(against in s.avoid for s in steps)
    assert {name for s in steps for name in (*s.take, *s.avoid)} <= set(credit.__all__)


def test_problems_of_the_trainer_come_first():
    def verdicts(**change):
        return [s.verdict for s in advise.recommend(measured(change, ()))]

    assert verdicts(gap_mean=0.2)[0].startswith("no: fix it first")
    assert (
        "easier prompts" in verdicts(zero_signal=0.8, reward=0.05)[1]
        and "harder prompts" in verdicts(zero_signal=0.8, reward=0.9)[1]
    )
    assert any("raise `max_new_tokens`" in verdict for verdict in verdicts(truncated=0.4))
    assert any("length predicts the reward" in verdict for verdict in verdicts(length_reward=-0.5))


def some(T=5):
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(1, 3, (2, 4, T)),
        "action_mask": np.ones((2, 4, T), bool),
        "reward": rng.integers(0, 2, (2, 4)) * 1.0,
    }


def test_a_file_of_rollouts_goes_there_and_back(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        **some(),
        logp=np.full((2, 4, 5), -1.0),
        trainer_logp=np.full((2, 4, 5), -1.5),
        stratum=np.ones((2, 4), int),
    )
    rollout, logp = files.load(tmp_path / "a.npz")
    assert (
        rollout.reward.shape == (2, 4, 1)
        and rollout.segment_mask.all()
        and float(logp.mean()) == -1.5
        and (rollout.segment == 0).all()
    )
    files.save(tmp_path / "b.npz", rollout, logp)
    again, logp = files.load(tmp_path / "b.npz")
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(rollout), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(logp.mean()) == -1.5 and "stratum" in again.signals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "lacks tokens; expected a .npz file with one array"),
        ({"rewards": np.ones(3)}, "holds rewards, which no field or signal is called"),
        ({"reward": np.ones((2, 4, 3))}, "add segment"),
        ({"reward": np.ones((2, 3))}, "4 rows but 3 trajectories"),
        ({"trainer_logp": np.ones((2, 4, 5))}, "needs both"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_why(tmp_path, change, message):
    np.savez(
        tmp_path / "a.npz", **{name: x for name, x in {**some(), **change}.items() if x is not None}
    )
    with pytest.raises(ValueError, match=message):
        files.load(tmp_path / "a.npz")


@pytest.mark.slow
def test_a_run_is_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxcredit.train.run.build", build)
    cli.main(["train", MICRO, "--runs", str(tmp_path), "--steps", "2"])
    capsys.readouterr()
    cli.main(
        [
            "advise",
            str(tmp_path / "micro"),
            "--prompts",
            "8",
            "--json",
            "--save",
            str(tmp_path / "x.npz"),
        ]
    )
    told = json.loads(capsys.readouterr().out)
    assert told["step"] == 2 and told["size"]["prompts"] == 8 and told["size"]["group"] == 4
    assert told["numbers"]["gap_max"] < 1e-4 and told["recommend"]
    low, value, high = (told["numbers"]["zero_signal"][k] for k in ("low", "value", "high"))
    assert 0 <= low <= value <= high <= 1
    cli.main(["advise", str(tmp_path / "x.npz"), "--json"])
    again = json.loads(capsys.readouterr().out)
    assert again["numbers"] == told["numbers"] and again["recommend"] == told["recommend"]
    cli.main(["advise", str(tmp_path / "x.npz")])
    assert "share of a group on its modal prefix" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("c_pre", "first", "not_"), [(1.0, "tempo", None), (0.5, "rloo", "tempo")])
def test_worlds_are_told_apart_as_the_arena_measured_them(c_pre, first, not_):
    """KeyBranch: TEMPO has a better signal-to-noise ratio than GRPO if c_pre is 1, not if 0.5."""
    batch = jax.jit(lambda task, key: arena.sample(task, prompts=128, group=16, key=key))(
        arena.KeyBranch(c_pre=c_pre), jax.random.key(1)
    )
    m = measure(dataclasses.replace(batch.rollout, signals={}))  # without signals
    names = [name for name, _ in advise.estimators(advise.recommend(m))]
    assert names[0] == first and not_ not in names


def test_a_file_with_the_old_names_of_masks_is_read(tmp_path):
    x = some()
    np.savez(tmp_path / "new.npz", **x)
    x["mask"] = x.pop("action_mask")
    np.savez(tmp_path / "old.npz", **x, real=np.ones((2, 4, 1), bool), valid=x["mask"])
    old, new = (files.load(tmp_path / name)[0].filled() for name in ("old.npz", "new.npz"))
    np.testing.assert_array_equal(old.action_mask, new.action_mask)
    np.testing.assert_array_equal(old.token_mask, new.token_mask)
