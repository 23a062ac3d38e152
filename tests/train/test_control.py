"""Control experiment: with the rewards of each group shuffled, the quickstart does not learn."""

import dataclasses
import functools

import jax
import pytest
from paths import CONFIGS

from jaxcredit.cli import loading as find
from jaxcredit.tasks.statistics import wilson
from jaxcredit.train.run import run
from jaxcredit.train.runs.json_lines import read_metrics


def shuffled(credit):
    """The estimator on rewards that are randomly permuted within each group."""

    @functools.wraps(credit)
    def blind(rollout):
        key = jax.random.fold_in(
            jax.random.key(0), rollout.tokens.sum()
        )  # another deal for every rollout
        return credit(
            dataclasses.replace(
                rollout, reward=jax.random.permutation(key, rollout.reward, 1, independent=True)
            )
        )

    return blind


@pytest.mark.slow
def test_shuffled_rewards_teach_nothing_and_true_ones_do(tmp_path):
    exp, _ = find.experiment(str(CONFIGS / "quickstart.py"), ["--steps", "60"])
    accuracy = {}
    for name, credit in (("true", exp.credit), ("shuffled", shuffled(exp.credit))):
        run(dataclasses.replace(exp, credit=credit), tmp_path / name)
        accuracy[name] = [
            line["eval/greedy_accuracy"]
            for line in read_metrics(tmp_path / name)
            if "eval/greedy_accuracy" in line
        ]
    begin, n = accuracy["true"][0], exp.eval_prompts
    assert accuracy["shuffled"][0] == begin, "both begin with the same policy"
    noise = wilson(round(begin * n), n, z=3.0)
    assert accuracy["true"][-1] > 2 * noise.high
    assert all(noise.low <= x <= noise.high for x in accuracy["shuffled"]), accuracy
