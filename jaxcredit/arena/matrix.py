"""Every estimator in every family: a number or a reason in every cell, on the same batches, so that all differences are paired."""

import dataclasses
import difflib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from rich.text import Text

from jaxcredit import arena
from jaxcredit.arena import metrics
from jaxcredit.arena.family import Batch, Family
from jaxcredit.credit import Credit, columns, method_of
from jaxcredit.credit import estimators as known_estimators
from jaxcredit.rollout import Rollout, outcome
from jaxcredit.rollout.transforms import map_arrays
from jaxcredit.utils import progress
from jaxcredit.utils.plain_text import one_line
from jaxcredit.utils.tables import Column, Sheet

CONTROLS = ("exact", "broadcast", "shuffled", "flipped")
# With the controls 81 cells in which something is to be seen: what a family is for, and what it is held against.
QUICK = {
    "KeyBranch": ("rloo", "grpo", "tempo", "sploo", "ppo"),
    "HackablePRM": ("grpo", "pure", "ppo"),
    "Strata": ("grpo", "san"),
    "AnchorHub": ("grpo", "gigpo", "ppo"),
    "PlanLag": ("grpo", "hae", "ppo"),
    "BitSearch": ("grpo", "igpo", "rudder"),
    "Team": ("grpo", "coma", "shapley", "difference_rewards"),
    "Recovery": ("grpo", "ppo"),
    "Umbrella": ("grpo", "tempo"),
    "Twin": ("grpo", "difference_rewards"),
    "ReplayNoise": ("grpo", "ppo"),
    "Lengths": ("grpo", "san"),
}
# What making a signal takes beside the group's own answers: a model that reads each answer once, or sampling on from its segments.
READ = {
    "value",
    "token_value",
    "value_plan",
    "value_switch",
    "process",
    "error",
    "verdict",
    "info",
    "gain",
    "action_value",
}
SAMPLED = {"counterfactual": 1, "choice_value": 2}
ONCE = {
    "xla_backend_optimization_level": 0
}  # of programs that run once: compiling is what they cost, this halves it


class Cell(NamedTuple):
    """`numbers` by name (see `metrics`), or none and the `reason`. `versus/asnr` is the paired ratio to broadcast credit (RLOO's)."""

    family: str
    estimator: str
    numbers: dict[str, metrics.Estimate]
    reason: str = ""


def run(
    families: Sequence[Family] | None = None,
    estimators: Mapping[str, Credit] | None = None,
    *,
    only: Mapping[str, Iterable[str]] | None = None,
    prompts: int = 256,
    group: int = 16,
    seed: int = 0,
    resamples: int = 200,
    tell: progress.Tell = progress.silent,
) -> list[Cell]:
    """The matrix of families (default: all, as they come) and estimators (default: `jaxcredit.credit.estimators()`), and the controls.

    `only`: the estimators of each family by name, where not all are wanted. An estimator compiles once: rollouts of all families are
    padded to one shape, which credit ignores by law. `tell` hears how far it is.
    """
    families = [f() for f in arena.FAMILIES] if families is None else families
    estimators = known_estimators() if estimators is None else estimators
    if prompts < 2 or group < 2:
        raise ValueError(
            f"{prompts} groups of {group}: an interval needs at least 2 groups, and peers at least 2 answers"
        )
    weights = metrics.resampling(prompts, resamples=resamples, seed=seed)
    programs = {name: compiled(f) for name, f in estimators.items()}

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # compiling leaves Python alone
        sampled = functools.partial(draw, seed=seed, prompts=prompts, group=group)
        drawn = progress.each(
            pool,
            lambda task: jax.block_until_ready(sampled(task)),
            families,
            tell,
            lambda task: f"answers of {type(task).__name__}",
        )
        T = max(batch.rollout.tokens.shape[-1] for batch, *_ in drawn)
        K = max(batch.rollout.reward.shape[-1] for batch, *_ in drawn)
        cells, done = [], itertools.count(1)
        listed = [
            [
                n
                for n in (estimators if only is None else only[type(task).__name__])
                if n not in CONTROLS
            ]
            for task in families
        ]
        total = sum(map(len, listed))
        for task, names, (batch, logits, blocks) in zip(families, listed, drawn, strict=True):
            wide = pad(batch.rollout, T, K)
            judged = functools.partial(
                judge, task, batch, weights=weights, logits=logits, blocks=blocks
            )
            controls = {name: judged(x, needs=()) for name, x in control(batch, seed).items()}
            base = controls["broadcast"]
            assert not isinstance(base, str), f"{type(task).__name__}: {base}"

            def one(name, batch=batch, wide=wide, judged=judged, task=task):
                found = numbers_of(name, batch, wide, judged)
                tell(f"{type(task).__name__}, {name}", next(done), total)
                return found

            def numbers_of(name, batch, wide, judged):
                if name not in estimators:
                    return f"the catalogue has no {name}"
                needs = tuple(method_of(estimators[name]).needs)
                if missing := [s for s in needs if s not in batch.rollout.signals]:
                    return "needs " + ", ".join(missing)
                try:
                    signals = {s: wide.signals[s] for s in needs}
                    return judged(
                        programs[name](dataclasses.replace(wide, signals=signals)), needs=needs
                    )
                except (
                    ValueError,
                    KeyError,
                    TypeError,
                ) as error:  # it does not apply: the cell says why
                    return f"{type(error).__name__}: {error.args[0] if error.args else error}"

            family = type(task).__name__
            for name, found in [*controls.items(), *zip(names, pool.map(one, names), strict=True)]:
                if isinstance(found, str):
                    cells.append(Cell(family, name, {}, found))
                    continue
                numbers = {key: metrics.estimate(x) for key, x in found.items()}
                for key in ("asnr", "gsnr", "asnr_per_1k"):
                    numbers[f"versus/{key}"] = metrics.ratio(found[key], base[key])
                cells.append(Cell(family, name, numbers))
    return cells


def chosen(
    family: Sequence[str] = (),
    estimators: Mapping[str, Credit] | None = None,
    *,
    quick: bool = False,
    **settings,
) -> list[Cell]:
    """The matrix as a person asks for it: families by name (all), and these estimators, or the catalogue, or the quick list and these."""
    known, own = {f.__name__.lower(): f for f in arena.FAMILIES}, dict(estimators or {})
    for name in family:
        if name.lower() not in known:
            near = difflib.get_close_matches(name.lower(), known, 1)
            hint = f"; did you mean {known[near[0]].__name__}?" if near else ""
            raise ValueError(
                f"no family is called {name!r}{hint} They are: {', '.join(f.__name__ for f in arena.FAMILIES)}"
            )
    kinds = [known[name.lower()] for name in family] or arena.FAMILIES
    listed = (
        {f.__name__: (*(QUICK[f.__name__] if quick else ()), *own) for f in kinds}
        if quick or own
        else None
    )
    return run([f() for f in kinds], known_estimators() | own, only=listed, **settings)


def control(batch: Batch, seed: int = 0) -> dict[str, np.ndarray]:
    """Exact credit; the outcome for all tokens alike; exact credit shuffled inside each answer; exact credit with its sign flipped."""
    A, mask, R = (
        np.asarray(batch.truth.advantage),
        np.asarray(batch.rollout.action_mask),
        np.asarray(outcome(batch.rollout)),
    )
    order = np.where(mask, np.random.default_rng(seed).random(mask.shape), 2.0)
    shuffled = np.zeros_like(A)
    # The i-th chosen token gets the credit of the one whose lot is i-th.
    np.put_along_axis(
        shuffled,
        np.argsort(~mask, -1, kind="stable"),
        np.take_along_axis(A, np.argsort(order, -1), -1),
        -1,
    )
    broadcast = np.where(mask, (R - R.mean(-1, keepdims=True))[..., None], 0)
    return {
        "exact": A,
        "broadcast": broadcast,
        "shuffled": np.where(mask, shuffled, 0),
        "flipped": -A,
    }


def cost(task: Family, rollout: Rollout, needs: Iterable[str]) -> tuple[float, float]:
    """Tokens an answer takes: sampled, and read by another model. Vines pay for every continuation, counterfactuals for the rest of it."""
    needs, K = set(needs), task.segments
    own = float(np.asarray(rollout.action_mask).sum(-1).mean())
    replays = getattr(task, "continuations", 0) if needs & {"value", "token_value"} else 0
    sampled = (
        own
        + replays * own * (own + 1) / 2
        + sum(n * own * (K + 1) / 2 for s, n in SAMPLED.items() if s in needs)
    )
    if "coalition" in needs:
        sampled += own * rollout.signals["coalition"].shape[-1]
    return sampled, own if needs & READ and not replays else 0.0


def pad(rollout: Rollout, T: int, K: int) -> Rollout:
    """Copy of a rollout padded to T tokens and K segments. The padding is masked out."""
    sizes = {"T": T, "K": K, "K+1": K + 1}

    def widen(name, axes, x):
        width = [(0, sizes.get(a, n) - n) for a, n in zip(axes, x.shape, strict=True)]
        return np.pad(x, width, constant_values=-1 if name == "segment" else 0)

    return map_arrays(widen, rollout)


def table(cells: Sequence[Cell], number: str = "versus/asnr", *, intervals: bool = True) -> Sheet:
    """Estimators down, families across; green where the interval lies above 1, red where it lies below. Reasons are notes below."""
    families = list(dict.fromkeys(c.family for c in cells))
    found = {(c.family, c.estimator): c for c in cells}
    reasons = {
        reason: i for i, reason in enumerate(dict.fromkeys(c.reason for c in cells if c.reason), 1)
    }
    title = f"{number}: paired ratio to broadcast credit" if "versus" in number else number
    notes = [Text(f"note {i}: {one_line(reason)}", style="dim") for reason, i in reasons.items()]
    answer = Sheet("estimator", *(Column(family) for family in families), title=title, notes=notes)
    for name in dict.fromkeys(c.estimator for c in cells):
        answer.add_row(
            name,
            *(_shown(found.get((family, name)), number, intervals, reasons) for family in families),
        )
    return answer


def as_json(cells: Sequence[Cell]) -> list[dict]:
    """Plain lists and dicts; what is not a number is null."""

    def plain(e):
        return [x if np.isfinite(x) else None for x in e]

    return [
        c._asdict() | {"numbers": {name: plain(e) for name, e in c.numbers.items()}} for c in cells
    ]


@functools.partial(jax.jit, static_argnames=("prompts", "group"), compiler_options=ONCE)
def draw(task: Family, seed: int, *, prompts: int, group: int) -> tuple[Batch, jax.Array, dict]:
    """Groups of a family, its logits and its blocks of parameters."""
    return (
        arena.sample(task, prompts=prompts, group=group, key=jax.random.key(seed)),
        task.policy(),
        task.blocks(),
    )


def compiled(estimator: Credit) -> Callable[[Rollout], jax.Array]:
    """A program of what reaches the gradient: advantage times weight."""

    def reaching(rollout):
        given = columns(estimator(rollout), rollout)
        return given["advantage"] * given["weight"]

    return jax.jit(reaching, compiler_options=ONCE)


def judge(
    task: Family, batch: Batch, credit, *, needs, weights, logits, blocks
) -> dict[str, metrics.Draws] | str:
    """All numbers of a credit, or why there are none."""
    credit = np.asarray(credit)[..., : batch.rollout.tokens.shape[-1]]
    if not np.isfinite(credit).all():
        return "credit is not finite"
    if not credit.any():
        return "no token gets any credit"
    numbers = metrics.measure(credit, metrics.slopes(credit, batch, logits), batch, weights, blocks)
    sampled, read = cost(task, batch.rollout, needs)
    thousands = credit.shape[1] * (sampled + read) / 1000
    flat = np.ones(len(weights))
    return numbers | {
        "asnr_per_1k": numbers["asnr"] / thousands,
        "tokens_sampled": flat * sampled,
        "tokens_read": flat * read,
    }


def _shown(cell: Cell | None, number: str, intervals: bool, reasons: Mapping[str, int]) -> Text:
    if cell is None:
        return Text()
    if cell.reason:
        return Text(f"note {reasons[cell.reason]}", style="dim")
    e = cell.numbers.get(number)
    if e is None or np.isnan(e.value):
        return Text("no gradient", style="dim")
    color = "green" if e.low > 1 else "red" if e.high < 1 else ""
    text = Text(f"{e.value:.3g}", style=color if "versus" in number else "")
    return text.append(f" {e.low:.2g}..{e.high:.2g}", style="dim") if intervals else text
