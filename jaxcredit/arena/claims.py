"""Headlines of papers that a small world can test: is the credit better, does a policy learn better, where does it stop, where reverse?

Each is measured twice: the paired ratio of direction-penalised signal-to-noise of a batch's gradient, and what a tabular policy learns,
seed by seed. Verdicts are computed from the intervals.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcredit import arena, credit
from jaxcredit.arena import learn, sweeps
from jaxcredit.arena.metrics import Estimate
from jaxcredit.arena.sweeps import Sweep
from jaxcredit.credit import per_group
from jaxcredit.credit.trees.sploo import l1, safe
from jaxcredit.kernels import center, returns_to_go, standardize, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask
from jaxcredit.utils import progress
from jaxcredit.utils.tables import Column, Sheet

MARGIN = 0.02  # of the way to the best policy: what is less is not worth a word, however sure


class Claim(NamedTuple):
    """`challenger` is said to beat `rival`: in `number` of its gradient, and in learning, by "area" under the curve or at the "final"."""

    text: str
    challenger: str
    rival: str
    number: str = "asnr"
    leg: str = "area"


class Experiment(NamedTuple):
    """Claims about one family at some values of a knob."""

    paper: str
    sweep: Sweep
    claims: Sequence[Claim]
    steps: int = 60
    prompts: int = 4
    group: int = 8
    rate: float = 0.1
    climb: optax.GradientTransformation = (
        learn.LEVEL
    )  # Adam itself, a scale for each row of the table, undoes what weights do


class Finding(NamedTuple):
    """A claim, where it was looked at, and at each of the knob's values the ratio of credit and the difference in learning."""

    claim: Claim
    paper: str
    setting: str
    values: Sequence[float]
    credit: list[Estimate]
    learning: list[Estimate]  # challenger - rival, in shares of the way to the best policy
    knob: str
    steps: Sequence[
        tuple[float, float]
    ] = ()  # challenger's and rival's median steps to 90 % of the way, inf: later than was looked

    def sides(self) -> dict[str, list[int]]:
        """1, -1 or 0 at each value, for each leg that was measured."""
        legs = {
            "credit": [sweeps.side(e) for e in self.credit],
            "learning": [sweeps.side(e, 0.0, MARGIN) for e in self.learning],
        }
        return {leg: s for leg, s in legs.items() if s}

    def verdict(self) -> str:
        return "; ".join(
            f"{leg}: {judge(s, self.values, self.knob)}" for leg, s in self.sides().items()
        )


def judge(sides: Sequence[int], values: Sequence[float], knob: str) -> str:
    """holds (everywhere), holds where, reverses where, not seen: in words, from the sides on which the intervals lie."""

    def where(side):
        return f"{knob} = " + ", ".join(
            f"{v:g}" for v, s in zip(values, sides, strict=True) if s == side
        )

    if all(s == 1 for s in sides):
        return "holds"
    if all(s == -1 for s in sides):
        return "reverses"
    parts = [f"holds where {where(1)}"] * (1 in sides) + [f"reverses where {where(-1)}"] * (
        -1 in sides
    )
    return ", ".join(parts) or "not seen"


@per_group(needs=("process",))
def summed(group: Rollout, *, verifier: float = 1.0):
    """The sum of a reward model's scores to come, against the others that are still at it, with the verifier's reward."""
    earned = returns_to_go(
        jnp.where(group.segment_mask, group["process"], 0), where=group.segment_mask
    )
    others = jnp.where(group.segment_mask, 1.0, 0)
    mean = (earned.sum(0) - earned) / jnp.maximum(others.sum(0) - others, 1)
    R = center(outcome(group), where=trajectory_mask(group), leave_one_out=True)[:, None]
    return to_tokens(jnp.where(group.segment_mask, earned - mean, 0) + verifier * R, group)


@per_group(needs=("gain",))
def raw_gain(group: Rollout):
    """A turn's gain of information, as it is."""
    return to_tokens(group["gain"], group)


@per_group(needs=("gain",))
def gain_by_turn(group: Rollout):
    """A turn's gain against those of the same turn, in their deviations."""
    turn = jnp.broadcast_to(jnp.arange(group.segment_mask.shape[1]), group.segment_mask.shape)
    return to_tokens(standardize(group["gain"], by=turn, where=group.segment_mask), group)


GRPO = {"grpo": credit.grpo}
LAG = {"hae": credit.hae, "gae .95": partial(credit.ppo, whiten=False)}
EXPERIMENTS = (
    Experiment(
        "2509.18314",
        Sweep(
            arena.KeyBranch,
            "c_pre",
            (1, 0.8, 0.5),
            {
                "tempo": credit.tempo,
                **GRPO,
                "rloo": credit.rloo,
                "p0": credit.sploo,
                "safe": safe,
                "l1": l1,
            },
        ),
        (
            Claim("TEMPO's branch credit beats GRPO", "tempo", "grpo"),
            Claim("SPLOO (p0) beats leave-one-out", "p0", "rloo"),
            Claim("SPLOO with evidence (safe) beats leave-one-out", "safe", "rloo"),
            Claim("SPLOO with TEMPO's weights (l1) beats TEMPO", "l1", "tempo"),
        ),
        prompts=1,
    ),
    Experiment(
        "2504.15275",
        Sweep(
            arena.HackablePRM,
            "hack",
            (-0.6, 0.4, 0.9),
            {
                "least + verifier": credit.pure,
                "least": partial(credit.pure, outcome_weight=0.0),
                "sum + verifier": summed,
                "outcome": credit.rloo,
            },
        ),
        (
            Claim(
                "with a verifier, the least step ends higher than the sum of steps",
                "least + verifier",
                "sum + verifier",
                leg="final",
            ),
            Claim("the least step needs no verifier", "least", "least + verifier", leg="final"),
            Claim("the reward model helps the outcome", "least + verifier", "outcome"),
        ),
        steps=120,
        prompts=8,
        rate=0.3,
    ),
    Experiment(
        "2510.06214",
        Sweep(
            arena.Strata,
            "offset",
            (0, 0.1, 0.3),
            {"san": partial(credit.san, alpha=1.0), "blend": credit.san, **GRPO},
        ),
        (
            Claim(
                "normalising in strata beats GRPO for the act in a stratum",
                "san",
                "grpo",
                "asnr/act",
            ),
            Claim(
                "normalising in strata beats GRPO where the stratum is a choice",
                "san",
                "grpo",
                "asnr",
            ),
            Claim("the blend of both beats GRPO", "blend", "grpo", "asnr"),
        ),
    ),
    Experiment(
        "2505.10978",
        Sweep(arena.AnchorHub, "alias", (0, 0.5, 1), {"gigpo": credit.gigpo, **GRPO}),
        (Claim("GiGPO beats GRPO where states repeat", "gigpo", "grpo"),),
        prompts=1,
        rate=0.03,
    ),
    Experiment(
        "2505.10978",
        Sweep(arena.AnchorHub, "timed", (0, 1), {"gigpo": credit.gigpo, **GRPO}),
        (Claim("GiGPO's anchors may carry the step's number", "gigpo", "grpo"),),
        prompts=1,
        rate=0.03,
    ),
    Experiment(
        "2602.16165",
        Sweep(arena.PlanLag, "lag", (0, 0.5, 1), LAG),
        (Claim("hierarchical GAE beats flat GAE", "hae", "gae .95"),),
        prompts=1,
    ),
    Experiment(
        "2510.14967",
        Sweep(
            arena.BitSearch,
            "eta",
            (1, 0.3, 0.05),
            {"by turn": gain_by_turn, "raw": raw_gain, "igpo": credit.igpo, **GRPO},
            {"leaks": 1, "leak": 0.5},
        ),
        (
            Claim("information gain normalised by turn beats GRPO", "by turn", "grpo"),
            Claim("normalised by turn beats the raw gain", "by turn", "raw"),
            Claim("normalised by turn beats IGPO, which adds up later turns", "by turn", "igpo"),
        ),
        rate=1.0,
    ),
    Experiment(
        "1705.08926",
        Sweep(
            arena.Team,
            "p",
            (0.3, 0.5, 0.8),
            {"shapley": credit.shapley, "coma": credit.coma, **GRPO},
        ),
        (
            Claim("Shapley values beat counterfactuals (COMA)", "shapley", "coma"),
            Claim("counterfactuals (COMA) beat a shared outcome", "coma", "grpo"),
        ),
    ),
    Experiment(
        "2503.20783",
        Sweep(
            arena.Lengths,
            "long",
            (4, 8, 16),
            {"constant": credit.rloo, "mean": sweeps.per_sequence},
            {"long_right": 0.7},
        ),
        (Claim("a constant divisor beats the mean over each answer", "constant", "mean"),),
    ),
)


def measure(
    experiment: Experiment, *, seeds: int = 8, prompts: int = 256, seed: int = 0
) -> list[Finding]:
    """Both legs of an experiment."""
    sweep, N = experiment.sweep, experiment
    curve = sweeps.measure(sweep, prompts=prompts, seed=seed)
    used = {name for c in N.claims for name in (c.challenger, c.rival)}
    tasks = jax.tree.map(
        lambda *x: np.stack([np.asarray(y, np.float32) for y in x]),
        *(sweep.at(v) for v in sweep.values),
    )
    settings = {
        "steps": N.steps,
        "seeds": seeds,
        "prompts": N.prompts,
        "group": N.group,
        "rate": N.rate,
        "climb": N.climb,
    }
    learnt = {name: learn.learn(tasks, sweep.estimators[name], **settings) for name in sorted(used)}
    found = []
    for c in N.claims:
        legs = [getattr(learnt[name], c.leg)() for name in (c.challenger, c.rival)]
        ratio, gain = curve.versus(c.challenger, c.rival, c.number), learn.paired(*legs)
        there = [np.median(learnt[name].steps_to(0.9), 1) for name in (c.challenger, c.rival)]
        found.append(
            Finding(
                c,
                N.paper,
                sweep.family.__name__,
                sweep.values,
                ratio,
                gain,
                sweep.knob,
                list(zip(*there, strict=True)),
            )
        )
    return found


def truncation(*, T: int = 4, k: int = 4000, seeds: int = 8) -> Finding:
    """Of T step rewards with equal variance and correlation rho: Var of the whole sum over T times Var of one step given its prefix.

    Groups of whole rollouts against groups of one step that share what came before; above 1 the factor is more than T. No learner.
    """
    values, text = (
        (-0.2, 0, 0.5),
        "groups of one step have a T-th of the variance or less (ratio of variances over T)",
    )
    claim = Claim(text, "one step", "whole")
    draws = []
    for rho in values:
        root = np.linalg.cholesky((1 - rho) * np.eye(T) + rho)
        r = np.random.default_rng(0).normal(size=(seeds, k, T)) @ root.T
        draws.append(r.sum(-1).var(-1) / r.var(1).mean(-1) / T)
    return Finding(
        claim,
        "2602.23440",
        "T = 4 step rewards",
        values,
        learn.paired(np.array(draws), np.zeros((len(values), seeds))),
        [],
        "rho",
    )


def run(
    experiments: Sequence[Experiment] = EXPERIMENTS,
    *,
    tell: progress.Tell = progress.silent,
    **settings,
) -> list[Finding]:
    """All of them, compiling side by side; `tell` hears how far it is."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = progress.each(
            pool, partial(measure, **settings), experiments, tell, lambda e: e.sweep.title
        )
        return [*sum(found, []), truncation()]


def rows(findings: Sequence[Finding]) -> list[tuple[str, str, str, str]]:
    """Claim, setting, measured, verdict."""

    def numbers(f):
        credits = [f"{e.value:.3g} ({e.low:.2g}..{e.high:.2g})" for e in f.credit]
        gains = [f"{e.value:+.3f} ({e.low:+.3f}..{e.high:+.3f})" for e in f.learning]
        to = [
            f"90 % after {' and '.join(f'{s:g}' if np.isfinite(s) else 'never' for s in pair)}"
            for pair in f.steps
        ]
        columns = [x for x in (credits, gains, to) if x]
        return "; ".join(
            f"{f.knob} {v:g}: " + ", ".join(column[i] for column in columns)
            for i, v in enumerate(f.values)
        )

    return [(f"{f.claim.text} ({f.paper})", f.setting, numbers(f), f.verdict()) for f in findings]


HEADER = (
    "claim",
    "setting",
    "measured: ratio of credit, difference in learning, steps to 90 %",
    f"verdict (learning beyond {MARGIN:g})",
)


def table(findings: Sequence[Finding]) -> Sheet:
    answer = Sheet(*(Column(title, wraps=True, least=16) for title in HEADER), lines=True)
    for row in rows(findings):
        answer.add_row(*row)
    return answer


def markdown(findings: Sequence[Finding]) -> str:
    lines = [HEADER, ("---",) * len(HEADER), *rows(findings)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
