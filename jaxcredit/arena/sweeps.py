"""For each family the knob that flips the order of its estimators: where each wins, where each loses, by paired intervals.

Knobs are traced: a sweep compiles its world once and each estimator once, however many values it visits.
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
    """A family at several values of one knob. `number` is what is compared; `base` is the estimator it is divided by."""

    family: Callable[..., Family]
    knob: str
    values: Sequence[float]
    estimators: Mapping[str, Credit]
    fixed: Mapping[str, Any] = {}  # its other knobs
    number: str = "asnr"
    base: str = "broadcast"
    text: str = ""  # what the knob is

    @property
    def title(self) -> str:
        return f"{self.family.__name__}: {self.knob}"

    def at(self, value: float) -> Family:
        """The family at a value: an array, that all of them share a program."""
        return self.family(**self.fixed, **{self.knob: np.asarray(value, np.float32)})


class Curve(NamedTuple):
    """What a sweep found: draws of every number by estimator, [values, 1 + B], over the same groups at each value."""

    sweep: Sweep
    draws: dict[str, dict[str, np.ndarray]]

    def versus(self, name: str, base: str = "", number: str = "") -> list[metrics.Estimate]:
        """Its number (the sweep's) over that of the base (the sweep's), paired, at each value."""
        number, base = number or self.sweep.number, base or self.sweep.base
        below = (
            np.full_like(self.draws[name][number], 0.5)
            if base == "chance"
            else self.draws[base][number]
        )
        return [metrics.ratio(a, b) for a, b in zip(self.draws[name][number], below, strict=True)]


def per_sequence(rollout):
    """Leave-one-out credit under a loss that takes each answer's mean over its tokens."""
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
        text="mass of the most likely token before the key",
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
        text="what the reward model gives to filler",
    ),
    Sweep(
        arena.Strata,
        "offset",
        (0, 0.03, 0.1, 0.2, 0.3),
        {"san 1": partial(credit.san, alpha=1.0), "san .6": credit.san, **GROUP},
        number="asnr/act",
        text="how much strata differ; the gradient of the act in them",
    ),
    Sweep(
        arena.Strata,
        "offset",
        (0.03, 0.1, 0.2, 0.3),
        {"san 1": partial(credit.san, alpha=1.0), "san .6": credit.san, **GROUP},
        number="asnr/stratum",
        text="the same; the gradient of the choice of the stratum",
    ),
    Sweep(
        arena.AnchorHub,
        "alias",
        (0, 0.2, 0.4, 0.6, 0.8, 1),
        {"gigpo": credit.gigpo, "hgpo": credit.hgpo, **GROUP},
        text="how often a turn's state is mistaken for another",
    ),
    Sweep(
        arena.PlanLag,
        "lag",
        (0, 0.25, 0.5, 0.75, 1),
        {"hae": credit.hae, **CRITIC},
        text="how much of a change the critic sees only when the subgoal ends",
    ),
    Sweep(
        arena.BitSearch,
        "eta",
        (1, 0.6, 0.3, 0.1),
        {"igpo log": credit.igpo, "igpo prob": partial(credit.igpo, kind="prob"), **GROUP},
        {"log": 1.0, "leaks": 1, "leak": 0.5},
        text="how much of what it knows the policy uses; a reader believes all of it",
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
        text="how likely an agent takes part",
    ),
    Sweep(
        arena.Recovery,
        "p_late",
        (0.05, 0.3, 0.5, 0.7, 0.9),
        {"capo": credit.capo, "ppo .95": CRITIC["ppo .95"], **GROUP},
        text="what a mended answer is worth; a judge marks the first mistake",
    ),
    Sweep(
        arena.Umbrella,
        "vary",
        (0, 0.1, 0.25, 0.5, 1),
        {"tempo": credit.tempo, "sploo": credit.sploo, "ppo .95": CRITIC["ppo .95"]},
        text="how much observations vary; they mean nothing",
    ),
    Sweep(
        arena.Twin,
        "d",
        (-0.4, -0.2, 0.2, 0.4),
        {"grpo": credit.grpo, "tempo": credit.tempo, "difference": credit.difference_rewards},
        number="sign",
        base="chance",
        text="the act's true effect, which the log does not show; sign skill over chance",
    ),
    Sweep(
        arena.ReplayNoise,
        "rho",
        (0, 0.1, 0.3, 0.6, 1),
        {"ppo 0": CRITIC["ppo 0"], "ppo .95": CRITIC["ppo .95"], "tempo": credit.tempo},
        text="how often going back leads elsewhere; values are means of 4 replays",
    ),
    Sweep(
        arena.ReplayNoise,
        "rho",
        (0, 0.3, 1),
        {"ppo 0": CRITIC["ppo 0"], "ppo .95": CRITIC["ppo .95"], "tempo": credit.tempo},
        number="asnr_per_1k",
        text="the same for each token sampled: replays are paid for",
    ),
    Sweep(
        arena.Lengths,
        "long",
        (4, 6, 8, 12, 16),
        {"mean over each answer": per_sequence, **GROUP},
        {"long_right": 0.7},
        text="length of a long answer, a short one has 4; seven of ten right ones are long",
    ),
)


def measure(
    sweep: Sweep, *, prompts: int = 256, group: int = 16, seed: int = 0, resamples: int = 200
) -> Curve:
    """The sweep's number for every estimator and control at every value, with bootstrap replicates over the groups."""
    weights = metrics.resampling(prompts, resamples=resamples, seed=seed)
    programs = {name: (f, matrix.compiled(f)) for name, f in sweep.estimators.items()}
    found: dict[str, dict[str, list]] = {}
    for value in sweep.values:
        batch, logits, blocks = jax.block_until_ready(
            matrix.draw(sweep.at(value), seed, prompts=prompts, group=group)
        )
        judged = partial(
            matrix.judge, sweep.at(value), batch, weights=weights, logits=logits, blocks=blocks
        )
        on_device = jax.tree.map(asarray, batch.rollout)
        here = {name: judged(x, needs=()) for name, x in matrix.control(batch, seed).items()}
        for name, (f, program) in programs.items():
            here[name] = judged(program(on_device), needs=tuple(method_of(f).needs))
        for name, numbers in here.items():
            if isinstance(numbers, str):
                raise ValueError(f"{name} at {sweep.title} = {value:g}: {numbers}")
            for number, draws in numbers.items():
                found.setdefault(name, {}).setdefault(number, []).append(draws)
    return Curve(
        sweep,
        {
            name: {number: np.array(x) for number, x in numbers.items()}
            for name, numbers in found.items()
        },
    )


def run(
    sweeps: Sequence[Sweep] = SWEEPS, *, tell: progress.Tell = progress.silent, **settings
) -> list[Curve]:
    """All of them, compiling side by side; `tell` hears how far it is."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return progress.each(
            pool, partial(measure, **settings), sweeps, tell, lambda sweep: sweep.title
        )


def side(e: metrics.Estimate, level: float = 1.0, margin: float = 1e-3) -> int:
    """1 where the interval lies above the level, -1 below, 0 where it does not tell; less than the margin is no difference."""
    return int(e.low > level + margin) - int(e.high < level - margin)


def regions(curve: Curve, name: str, base: str = "") -> dict[str, list[float]]:
    """The knob's values at which an estimator wins against the base, loses, or neither can be said."""
    sides = [side(e) for e in curve.versus(name, base)]
    return {
        word: [v for v, s in zip(curve.sweep.values, sides, strict=True) if s == k]
        for word, k in (("wins", 1), ("loses", -1), ("even", 0))
    }
