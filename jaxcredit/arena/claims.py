"""Claims of papers, tested in small worlds: where each holds and where it reverses.

Each claim is measured twice: by the paired ratio of the gradient's signal-to-noise (asnr in
`metrics`), and by the paired difference of what tabular policies learn. Verdicts are computed from
the confidence intervals.
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
from jaxcredit.arena.metrics import Interval
from jaxcredit.arena.sweeps import Sweep
from jaxcredit.credit import per_group
from jaxcredit.credit.trees.sploo import l1, safe
from jaxcredit.kernels import center, returns_to_go, standardize, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask
from jaxcredit.utils import progress
from jaxcredit.utils.tables import Column, Sheet

# Smaller differences in learning count as 0, as a share of the way to the best policy.
MARGIN = 0.02


class Claim(NamedTuple):
    """A claim that one estimator beats another.

    Attributes:
        text: the claim in words.
        challenger: the estimator that is claimed to be better.
        rival: the estimator that it is compared with.
        number: number of the gradient that is compared.
        leg: what is compared in learning: "area" under the learning curve, or its "final" value.
    """

    text: str
    challenger: str
    rival: str
    number: str = "asnr"
    leg: str = "area"


class ClaimTest(NamedTuple):
    """Claims about one family at several values of a knob.

    Attributes:
        paper: arXiv number.
        sweep: family, knob, values and estimators.
        claims: the claims.
        steps: gradient steps of the learners.
        prompts: groups in a step.
        group: answers in a group.
        rate: learning rate.
        optimizer: optimizer of the learners. Adam would undo the weights of an estimator, see
            `learn.adam_with_one_scale`.
    """

    paper: str
    sweep: Sweep
    claims: Sequence[Claim]
    steps: int = 60
    prompts: int = 4
    group: int = 8
    rate: float = 0.1
    optimizer: optax.GradientTransformation = learn.ADAM_ONE_SCALE


class Finding(NamedTuple):
    """Result of a claim at each value of the knob.

    Attributes:
        claim: the claim.
        paper: arXiv number.
        setting: name of the family.
        values: values of the knob.
        credit: ratio of the gradient's number, challenger over rival.
        learning: difference in learning, challenger less rival, as a share of the way to the best
            policy; empty without learners.
        knob: name of the knob.
        steps: median steps of challenger and rival to 90 % of the way; inf if it is not reached.
    """

    claim: Claim
    paper: str
    setting: str
    values: Sequence[float]
    credit: list[Interval]
    learning: list[Interval]
    knob: str
    steps: Sequence[tuple[float, float]] = ()

    def sides(self) -> dict[str, list[int]]:
        """1 (challenger better), -1 (worse) or 0 at each value, for "credit" and "learning"."""
        legs = {
            "credit": [sweeps.side(e) for e in self.credit],
            "learning": [sweeps.side(e, 0.0, MARGIN) for e in self.learning],
        }
        return {leg: s for leg, s in legs.items() if s}

    def verdict(self) -> str:
        """Verdict on each leg, in words."""
        return "; ".join(
            f"{leg}: {verdict_in_words(s, self.values, self.knob)}"
            for leg, s in self.sides().items()
        )


def verdict_in_words(sides: Sequence[int], values: Sequence[float], knob: str) -> str:
    """Verdict from the sides of the intervals.

    >>> verdict_in_words([1, 0, -1], [1, 0.8, 0.5], "c")
    'holds where c = 1, reverses where c = 0.5'
    """

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
def sum_of_scores(group: Rollout, *, verifier: float = 1.0):
    """Sum of process scores to come, less the mean of answers as long, plus RLOO's advantage."""
    earned = returns_to_go(
        jnp.where(group.segment_mask, group["process"], 0), where=group.segment_mask
    )
    others = jnp.where(group.segment_mask, 1.0, 0)
    mean = (earned.sum(0) - earned) / jnp.maximum(others.sum(0) - others, 1)
    R = center(outcome(group), where=trajectory_mask(group), leave_one_out=True)[:, None]
    return to_tokens(jnp.where(group.segment_mask, earned - mean, 0) + verifier * R, group)


@per_group(needs=("gain",))
def raw_gain(group: Rollout):
    """Information gain of each turn."""
    return to_tokens(group["gain"], group)


@per_group(needs=("gain",))
def gain_by_turn(group: Rollout):
    """Information gain of each turn, normalized over the turns with the same number."""
    turn = jnp.broadcast_to(jnp.arange(group.segment_mask.shape[1]), group.segment_mask.shape)
    return to_tokens(standardize(group["gain"], by=turn, where=group.segment_mask), group)


GRPO = {"grpo": credit.grpo}
LAG = {"hae": credit.hae, "gae .95": partial(credit.ppo, whiten=False)}
CLAIM_TESTS = (
    ClaimTest(
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
    ClaimTest(
        "2504.15275",
        Sweep(
            arena.HackablePRM,
            "hack",
            (-0.6, 0.4, 0.9),
            {
                "least + verifier": credit.pure,
                "least": partial(credit.pure, outcome_weight=0.0),
                "sum + verifier": sum_of_scores,
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
    ClaimTest(
        "2510.06214",
        Sweep(
            arena.Strata,
            "offset",
            (0, 0.1, 0.3),
            {"san": partial(credit.san, alpha=1.0), "blend": credit.san, **GRPO},
        ),
        (
            Claim(
                "normalizing in strata beats GRPO for the act in a stratum",
                "san",
                "grpo",
                "asnr/act",
            ),
            Claim(
                "normalizing in strata beats GRPO where the stratum is a choice",
                "san",
                "grpo",
                "asnr",
            ),
            Claim("the blend of both beats GRPO", "blend", "grpo", "asnr"),
        ),
    ),
    ClaimTest(
        "2505.10978",
        Sweep(arena.AnchorHub, "alias", (0, 0.5, 1), {"gigpo": credit.gigpo, **GRPO}),
        (Claim("GiGPO beats GRPO where states repeat", "gigpo", "grpo"),),
        prompts=1,
        rate=0.03,
    ),
    ClaimTest(
        "2505.10978",
        Sweep(arena.AnchorHub, "timed", (0, 1), {"gigpo": credit.gigpo, **GRPO}),
        (Claim("GiGPO's anchors may carry the step's number", "gigpo", "grpo"),),
        prompts=1,
        rate=0.03,
    ),
    ClaimTest(
        "2602.16165",
        Sweep(arena.PlanLag, "lag", (0, 0.5, 1), LAG),
        (Claim("hierarchical GAE beats flat GAE", "hae", "gae .95"),),
        prompts=1,
    ),
    ClaimTest(
        "2510.14967",
        Sweep(
            arena.BitSearch,
            "eta",
            (1, 0.3, 0.05),
            {"by turn": gain_by_turn, "raw": raw_gain, "igpo": credit.igpo, **GRPO},
            {"leaks": 1, "leak": 0.5},
        ),
        (
            Claim("information gain normalized by turn beats GRPO", "by turn", "grpo"),
            Claim("normalized by turn beats the raw gain", "by turn", "raw"),
            Claim("normalized by turn beats IGPO, which adds up later turns", "by turn", "igpo"),
        ),
        rate=1.0,
    ),
    ClaimTest(
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
    ClaimTest(
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


def measure(test: ClaimTest, *, seeds: int = 8, prompts: int = 256, seed: int = 0) -> list[Finding]:
    """Measure the claims of one test.

    Args:
        test: the claims, with their family.
        seeds: learners for each estimator and value.
        prompts: groups for the gradient's numbers.
        seed: seed of those groups.
    """
    sweep = test.sweep
    curve = sweeps.measure(sweep, prompts=prompts, seed=seed)
    used = {name for c in test.claims for name in (c.challenger, c.rival)}
    tasks = jax.tree.map(
        lambda *x: np.stack([np.asarray(y, np.float32) for y in x]),
        *(sweep.at(v) for v in sweep.values),
    )
    settings = {
        "steps": test.steps,
        "seeds": seeds,
        "prompts": test.prompts,
        "group": test.group,
        "rate": test.rate,
        "optimizer": test.optimizer,
    }
    curves = {name: learn.learn(tasks, sweep.estimators[name], **settings) for name in sorted(used)}
    findings = []
    for c in test.claims:
        legs = [getattr(curves[name], c.leg)() for name in (c.challenger, c.rival)]
        ratio, gain = curve.versus(c.challenger, c.rival, c.number), learn.paired_difference(*legs)
        medians = [np.median(curves[name].steps_to(0.9), 1) for name in (c.challenger, c.rival)]
        findings.append(
            Finding(
                c,
                test.paper,
                sweep.family.__name__,
                sweep.values,
                ratio,
                gain,
                sweep.knob,
                list(zip(*medians, strict=True)),
            )
        )
    return findings


def truncation(*, T: int = 4, k: int = 4000, seeds: int = 8) -> Finding:
    """Variance of whole rollouts over T times that of single steps, for correlated step rewards.

    T step rewards have equal variance and correlation rho. Groups of whole rollouts are compared
    with groups of one step that share the prefix. There is no learner.

    Args:
        T: number of steps.
        k: samples for each seed.
        seeds: number of seeds.
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
        learn.paired_difference(np.array(draws), np.zeros((len(values), seeds))),
        [],
        "rho",
    )


def run(
    tests: Sequence[ClaimTest] = CLAIM_TESTS,
    *,
    tell: progress.ProgressCallback = progress.no_progress,
    **settings,
) -> list[Finding]:
    """Measure tests in parallel threads; `tell` is a progress callback.

    `settings` are keywords of `measure`.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        findings = progress.parallel_map(
            pool, partial(measure, **settings), tests, tell, lambda e: e.sweep.title
        )
        return [*sum(findings, []), truncation()]


def rows(findings: Sequence[Finding]) -> list[tuple[str, str, str, str]]:
    """Rows of the table: claim, setting, measured, verdict."""

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
    """Findings as a table for `Console.print`."""
    sheet = Sheet(*(Column(title, wraps=True, least=16) for title in HEADER), lines=True)
    for row in rows(findings):
        sheet.add_row(*row)
    return sheet


def markdown(findings: Sequence[Finding]) -> str:
    """Findings as a Markdown table."""
    lines = [HEADER, ("---",) * len(HEADER), *rows(findings)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
