"""Statistics of rollouts on which the choice of an estimator depends, with confidence intervals."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcredit.rollout import Rollout, diagnostics, outcome
from jaxcredit.tasks.statistics import Estimate


class Measurement(NamedTuple):
    """Statistics of a set of rollouts.

    Attributes:
        numbers: statistics by name. Those that are sums over groups are Estimates, with 95 %
            bootstrap intervals over prompts.
        modal: mean share of a group's answers that have the group's most frequent prefix, by the
            prefix's length in tokens.
        lengths: count, min, median, mean and max of the tokens (and, with several segments, the
            turns) of better and of worse answers.
        size: number of prompts, answers in a group, segments and tokens.
        signals: names of the signals that the rollouts carry.
    """

    numbers: dict[str, Estimate | float]
    modal: dict[int, float]
    lengths: dict[str, dict[str, float]]
    size: dict[str, int]
    signals: tuple[str, ...]


def measure(rollout: Rollout, logp: Any = None, *, draws: int = 300, seed: int = 0) -> Measurement:
    """Measure what `advise.recommend` needs.

    Args:
        rollout: N groups of rollouts.
        logp: [N, R, T], the trainer's log-probabilities of the same tokens. Their difference from
            the sampler's is measured if they are given.
        draws: number of bootstrap samples of the prompts.
        seed: seed of the bootstrap.
    """
    sums = {
        name: np.asarray(x, np.float64)
        for name, x in dict(jax.jit(diagnostics.sums)(rollout)).items()
    }
    numbers = _estimates(sums, draws, seed)
    if "state" in rollout.signals:
        sizes = np.asarray(diagnostics.pool_sizes(rollout["state"], rollout.segment_mask))
        numbers["anchor_median"] = float(np.median(sizes[sizes > 0])) if sizes.any() else 0.0
    if "value" in rollout.signals:
        numbers["critic_explains"] = float(diagnostics.explained_variance(rollout))
    if logp is not None:
        gap = diagnostics.logp_difference(rollout, jnp.asarray(logp))
        numbers |= {name: float(x) for name, x in gap.items()}
    rewards = np.asarray(outcome(rollout))[np.asarray(rollout.segment_mask.any(-1))]
    numbers["two_valued"] = float(len(np.unique(rewards)) <= 2)
    groups = max(sums["groups"].sum(), 1.0)
    longest = int(rollout.action_mask.sum(-1).max())
    depths = [depth for depth in diagnostics.DEPTHS if depth < longest]
    modal = sums["modal"].sum(0)
    lengths = jax.device_get(jax.jit(diagnostics.lengths_by_outcome)(rollout))
    if rollout.reward.shape[-1] == 1:
        lengths = {name: x for name, x in lengths.items() if name.startswith("tokens")}
    return Measurement(
        numbers=numbers,
        modal={depth: float(modal[i] / groups) for i, depth in enumerate(depths)},
        lengths={name: {k: float(v) for k, v in row.items()} for name, row in lengths.items()},
        size={
            "prompts": rollout.tokens.shape[0],
            "group": rollout.reward.shape[-2],
            "segments": rollout.reward.shape[-1],
            "tokens": int(rollout.action_mask.sum()),
        },
        signals=tuple(sorted(rollout.signals)),
    )


def _estimates(sums: dict[str, np.ndarray], draws: int, seed: int) -> dict[str, Estimate | float]:
    """Statistics of sums over prompts, with bootstrap intervals: prompts drawn with replacement."""
    N = len(sums["groups"])
    counts = np.random.default_rng(seed).multinomial(N, np.full(N, 1 / N), size=draws)
    resampled = [
        diagnostics.statistics({name: weights @ x for name, x in sums.items()})
        for weights in counts
    ]
    estimates: dict[str, Estimate | float] = {}
    for name, value in diagnostics.statistics({name: x.sum(0) for name, x in sums.items()}).items():
        values = [numbers[name] for numbers in resampled if name in numbers] or [value]
        low, high = np.quantile(values, [0.025, 0.975])
        estimates[name] = Estimate(value, float(low), float(high))
    return estimates
