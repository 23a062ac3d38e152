"""Sweeps over the knob of a family that changes the order of its estimators.

Knobs are traced, so a sweep compiles its world once and each estimator once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.numpy import asarray

from jaxcredit import arena, credit
from jaxcredit.arena import matrix, metrics
from jaxcredit.arena.family import Family
from jaxcredit.credit import Credit, method_of
from jaxcredit.credit.trees.sploo import l1, safe
from jaxcredit.kernels import trajectory_lengths
from jaxcredit.utils import progress


class Sweep(NamedTuple):
    """A family at several values of one knob.

    Attributes:
        family: the family.
        knob: name of the knob.
        values: its values.
        estimators: estimators by name.
        fixed: values of other knobs.
        number: name of the number that is compared, see `metrics` and `matrix.evaluate`.
        base: the estimator or control that it is divided by; "chance" for 1/2.
        text: description of the knob.
    """

    family: Callable[..., Family]
    knob: str
    values: Sequence[float]
    estimators: Mapping[str, Credit]
    fixed: Mapping[str, Any] = {}
    number: str = "asnr"
    base: str = "broadcast"
    text: str = ""

    @property
    def title(self) -> str:
        """Family and knob, as a heading."""
        return f"{self.family.__name__}: {self.knob}"

    def at(self, value: float) -> Family:
        """The family at one value, an array, so that all values share a program."""
        return self.family(**self.fixed, **{self.knob: np.asarray(value, np.float32)})


class Curve(NamedTuple):
    """Result of a sweep.

    Attributes:
        sweep: the sweep.
        draws: bootstrap draws [values, 1 + B] by estimator and number.
    """

    sweep: Sweep
    draws: dict[str, dict[str, np.ndarray]]

    def versus(self, name: str, base: str = "", number: str = "") -> list[metrics.Interval]:
        """Paired ratio of an estimator to the base, at each value.

        Args:
            name: the estimator.
            base: what it is divided by; "" for the sweep's base.
            number: the number compared; "" for the sweep's number.
        """
        number, base = number or self.sweep.number, base or self.sweep.base
        divisor = (
            np.full_like(self.draws[name][number], 0.5)
            if base == "chance"
            else self.draws[base][number]
        )
        return [metrics.ratio(a, b) for a, b in zip(self.draws[name][number], divisor, strict=True)]


def per_sequence(rollout):
    """RLOO's advantage under a loss that averages over the tokens of each answer."""
    n = jax.vmap(trajectory_lengths)(rollout.filled())
    return credit.rloo(rollout) / asarray(n, float)[..., None] * n.mean()


GROUP = {"grpo": credit.grpo}
PREFIX = {"tempo": credit.tempo, "sploo": credit.sploo, "sploo_safe": safe, "sploo_l1": l1}
CRITIC = {
    "ppo .95": partial(credit.ppo, whiten=False),
    "ppo 0": partial(credit.ppo, lam=0.0, whiten=False),
}
SWEEPS = (
    Sweep(
        arena.KeyBranch,
        "c_pre",
        (1, 0.97, 0.9, 0.8, 0.65, 0.5),
        PREFIX,
        text="probability of the most likely token before the key",
    ),
    Sweep(
        arena.HackablePRM,
        "hack",
        (-0.6, -0.2, 0.2, 0.6, 0.9),
        {
            "least step": partial(credit.pure, outcome_weight=0.0),
            "least + verifier": credit.pure,
            **GROUP,
        },
        text="score of the reward model for filler",
    ),
    Sweep(
        arena.Strata,
        "offset",
        (0, 0.03, 0.1, 0.2, 0.3),
        {"san 1": partial(credit.san, alpha=1.0), "san .6": credit.san, **GROUP},
        number="asnr/act",
        text="difference of rewards between strata; gradient of the act within a stratum",
    ),
    Sweep(
        arena.Strata,
        "offset",
        (0.03, 0.1, 0.2, 0.3),
        {"san 1": partial(credit.san, alpha=1.0), "san .6": credit.san, **GROUP},
        number="asnr/stratum",
        text="the same; gradient of the choice of a stratum",
    ),
    Sweep(
        arena.AnchorHub,
        "alias",
        (0, 0.2, 0.4, 0.6, 0.8, 1),
        {"gigpo": credit.gigpo, "hgpo": credit.hgpo, **GROUP},
        text="probability that a turn's state is recorded as another",
    ),
    Sweep(
        arena.PlanLag,
        "lag",
        (0, 0.25, 0.5, 0.75, 1),
        {"hae": credit.hae, **CRITIC},
        text="share of a change of value that the critic shows only after the subgoal",
    ),
    Sweep(
        arena.BitSearch,
        "eta",
        (1, 0.6, 0.3, 0.1),
        {"igpo log": credit.igpo, "igpo prob": partial(credit.igpo, kind="prob"), **GROUP},
        {"log": 1.0, "leaks": 1, "leak": 0.5},
        text="exponent with which the policy uses its information; the signal assumes 1",
    ),
    Sweep(
        arena.Team,
        "p",
        (0.3, 0.5, 0.7, 0.8, 0.9),
        {
            "coma": credit.coma,
            "shapley": credit.shapley,
            "difference": credit.difference_rewards,
            **GROUP,
        },
        text="probability that an agent takes part",
    ),
    Sweep(
        arena.Recovery,
        "p_late",
        (0.05, 0.3, 0.5, 0.7, 0.9),
        {"capo": credit.capo, "ppo .95": CRITIC["ppo .95"], **GROUP},
        text="success probability of a repaired answer; a judge marks the first mistake",
    ),
    Sweep(
        arena.Umbrella,
        "vary",
        (0, 0.1, 0.25, 0.5, 1),
        {"tempo": credit.tempo, "sploo": credit.sploo, "ppo .95": CRITIC["ppo .95"]},
        text="variation of observations, which carry no information",
    ),
    Sweep(
        arena.Twin,
        "d",
        (-0.4, -0.2, 0.2, 0.4),
        {"grpo": credit.grpo, "tempo": credit.tempo, "difference": credit.difference_rewards},
        number="sign",
        base="chance",
        text="true effect of the act, which the log does not show; sign accuracy over chance",
    ),
    Sweep(
        arena.ReplayNoise,
        "rho",
        (0, 0.1, 0.3, 0.6, 1),
        {"ppo 0": CRITIC["ppo 0"], "ppo .95": CRITIC["ppo .95"], "tempo": credit.tempo},
        text="probability that a replay starts in another state; values are means of 4 replays",
    ),
    Sweep(
        arena.ReplayNoise,
        "rho",
        (0, 0.3, 1),
        {"ppo 0": CRITIC["ppo 0"], "ppo .95": CRITIC["ppo .95"], "tempo": credit.tempo},
        number="asnr_per_1k",
        text="the same for each sampled token, replays included",
    ),
    Sweep(
        arena.Lengths,
        "long",
        (4, 6, 8, 12, 16),
        {"mean over each answer": per_sequence, **GROUP},
        {"long_right": 0.7},
        text="length of long answers (short ones: 4); 70 % of right answers are long",
    ),
)


def measure(
    sweep: Sweep, *, prompts: int = 256, group: int = 16, seed: int = 0, resamples: int = 200
) -> Curve:
    """Measure the estimators and controls of a sweep at each of its values.

    Args:
        sweep: the sweep.
        prompts: groups at each value.
        group: answers in a group.
        seed: seed of the batches and of the bootstrap.
        resamples: bootstrap replicates.

    Raises:
        ValueError: an estimator whose credit is 0 or not finite.
    """
    weights = metrics.resampling(prompts, resamples=resamples, seed=seed)
    programs = {name: (f, matrix.compile_estimator(f)) for name, f in sweep.estimators.items()}
    draws: dict[str, dict[str, list]] = {}
    for value in sweep.values:
        batch, logits, blocks = jax.block_until_ready(
            matrix.sample_family(sweep.at(value), seed, prompts=prompts, group=group)
        )
        evaluated = partial(
            matrix.evaluate, sweep.at(value), batch, weights=weights, logits=logits, blocks=blocks
        )
        on_device = jax.tree.map(asarray, batch.rollout)
        results = {
            name: evaluated(x, needs=()) for name, x in matrix.control_credits(batch, seed).items()
        }
        for name, (f, program) in programs.items():
            results[name] = evaluated(program(on_device), needs=tuple(method_of(f).needs))
        for name, numbers in results.items():
            if isinstance(numbers, str):
                raise ValueError(f"{name} at {sweep.title} = {value:g}: {numbers}")
            for number, values in numbers.items():
                draws.setdefault(name, {}).setdefault(number, []).append(values)
    return Curve(
        sweep,
        {
            name: {number: np.array(x) for number, x in numbers.items()}
            for name, numbers in draws.items()
        },
    )


def run(
    sweeps: Sequence[Sweep] = SWEEPS,
    *,
    tell: progress.ProgressCallback = progress.no_progress,
    **settings,
) -> list[Curve]:
    """Measure sweeps in parallel threads; `tell` is a progress callback.

    `settings` are keywords of `measure`.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return progress.parallel_map(
            pool, partial(measure, **settings), sweeps, tell, lambda sweep: sweep.title
        )


def side(e: metrics.Interval, level: float = 1.0, margin: float = 1e-3) -> int:
    """Side of a level on which an interval lies: 1 above, -1 below, else 0.

    An end closer to the level than `margin` counts as on it.
    """
    return int(e.low > level + margin) - int(e.high < level - margin)


def regions(curve: Curve, name: str, base: str = "") -> dict[str, list[float]]:
    """Values of the knob at which an estimator "wins" against the base, "loses", or is "even"."""
    sides = [side(e) for e in curve.versus(name, base)]
    return {
        word: [v for v, s in zip(curve.sweep.values, sides, strict=True) if s == k]
        for word, k in (("wins", 1), ("loses", -1), ("even", 0))
    }
