"""Matrix of estimators and families of worlds: each cell has numbers, or the reason for none.

All estimators of a family get the same batch, so that differences between them are paired.
"""

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
from jaxcredit.arena.family import Family, LabeledBatch
from jaxcredit.credit import Credit, columns, method_of
from jaxcredit.credit import estimators as known_estimators
from jaxcredit.rollout import Rollout, outcome
from jaxcredit.rollout.transforms import map_arrays
from jaxcredit.utils import progress
from jaxcredit.utils.plain_text import one_line
from jaxcredit.utils.tables import Column, Sheet

CONTROLS = ("exact", "broadcast", "shuffled", "flipped")
# Estimators of the quick matrix: those a family is made for, and those they are compared with.
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
# Signals that a model computes from each answer, in one forward pass.
READ_SIGNALS = {
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
# Signals that need further answers, sampled from each segment on: number of answers each.
RESAMPLED_SIGNALS = {"counterfactual": 1, "choice_value": 2}
# XLA options of programs that run once: less optimization halves the time to compile.
RUN_ONCE = {"xla_backend_optimization_level": 0}


class Cell(NamedTuple):
    """Result of one estimator in one family.

    Attributes:
        family: name of the family.
        estimator: name of the estimator or control.
        numbers: numbers of `evaluate` with intervals, by name. "versus/NAME" is the paired ratio to
            broadcast credit (that of dr_grpo). Empty if there is a reason.
        reason: why there are no numbers.
    """

    family: str
    estimator: str
    numbers: dict[str, metrics.Interval]
    reason: str = ""


class _Drawn(NamedTuple):
    """A family's batch, its policy and its blocks of parameters."""

    batch: LabeledBatch
    logits: jax.Array
    blocks: dict


def run(
    families: Sequence[Family] | None = None,
    estimators: Mapping[str, Credit] | None = None,
    *,
    only: Mapping[str, Iterable[str]] | None = None,
    prompts: int = 256,
    group: int = 16,
    seed: int = 0,
    resamples: int = 200,
    tell: progress.ProgressCallback = progress.no_progress,
) -> list[Cell]:
    """Measure estimators and controls in families of worlds.

    Rollouts of all families are padded to one shape, so that each estimator compiles once.

    Args:
        families: families with their knobs; None for all in `arena.FAMILIES`.
        estimators: estimators by name; None for `jaxcredit.credit.estimators()`.
        only: names of the estimators of each family, by the family's name; None for all.
        prompts: groups in each family, >= 2.
        group: answers in a group, >= 2.
        seed: seed of the batches and of the bootstrap.
        resamples: bootstrap replicates.
        tell: progress callback, see `jaxcredit.utils.progress`.

    Returns:
        A `Cell` for each control and each estimator of each family.

    Raises:
        ValueError: fewer than 2 prompts or answers, or a family in which all answers of each group
            have the same outcome.
    """
    families = [f() for f in arena.FAMILIES] if families is None else families
    estimators = known_estimators() if estimators is None else estimators
    if prompts < 2 or group < 2:
        raise ValueError(
            f"{prompts} groups of {group}: an interval needs at least 2 groups, "
            "and an estimator at least 2 answers in each"
        )
    weights = metrics.resampling(prompts, resamples=resamples, seed=seed)
    programs = {name: compile_estimator(f) for name, f in estimators.items()}
    names = [
        [
            name
            for name in (estimators if only is None else only[type(task).__name__])
            if name not in CONTROLS
        ]
        for task in families
    ]
    cells, done, total = [], itertools.count(1), sum(map(len, names))
    # Threads: compilation releases Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = progress.parallel_map(
            pool,
            lambda task: _Drawn(
                *jax.block_until_ready(sample_family(task, seed=seed, prompts=prompts, group=group))
            ),
            families,
            tell,
            lambda task: f"answers of {type(task).__name__}",
        )
        T = max(d.batch.rollout.tokens.shape[-1] for d in drawn)
        K = max(d.batch.rollout.reward.shape[-1] for d in drawn)
        for task, family_names, family_draw in zip(families, names, drawn, strict=True):
            padded = pad(family_draw.batch.rollout, T, K)

            def measured(name, task=task, family_draw=family_draw, padded=padded):
                result = _numbers(
                    name, task, family_draw, padded, estimators, programs, weights=weights
                )
                tell(f"{type(task).__name__}, {name}", next(done), total)
                return result

            controls = _measured_controls(task, family_draw, seed, weights=weights)
            results = zip(family_names, pool.map(measured, family_names), strict=True)
            cells += _cells(type(task).__name__, [*controls.items(), *results])
    return cells


def _measured_controls(task, drawn, seed, *, weights) -> dict[str, dict[str, metrics.Draws] | str]:
    """Draws of every number by control, broadcast credit among them."""
    batch, logits, blocks = drawn
    controls = {
        name: evaluate(task, batch, x, needs=(), weights=weights, logits=logits, blocks=blocks)
        for name, x in control_credits(batch, seed).items()
    }
    if isinstance(controls["broadcast"], str):
        raise ValueError(
            f"{type(task).__name__}: all answers of a group have the same outcome, in each of "
            f"{len(batch.rollout.tokens)} groups; sample more groups (prompts) or answers (group)"
        )
    return controls


def _numbers(name, task, drawn, padded, estimators, programs, *, weights):
    """Draws of an estimator's numbers in one family, or the reason why there are none."""
    batch, logits, blocks = drawn
    if name not in estimators:
        return f"unknown estimator {name}"
    needs = tuple(method_of(estimators[name]).needs)
    if missing := [signal for signal in needs if signal not in batch.rollout.signals]:
        return "needs " + ", ".join(missing)
    try:
        signals = {signal: padded.signals[signal] for signal in needs}
        credit = programs[name](dataclasses.replace(padded, signals=signals))
        return evaluate(
            task, batch, credit, needs=needs, weights=weights, logits=logits, blocks=blocks
        )
    except (ValueError, KeyError, TypeError) as error:  # the estimator does not apply
        return f"{type(error).__name__}: {error.args[0] if error.args else error}"


def _cells(family: str, results) -> list[Cell]:
    """Cells of one family from its draws or reasons, with ratios to broadcast credit."""
    broadcast, cells = dict(results)["broadcast"], []
    for name, result in results:
        if isinstance(result, str):
            cells.append(Cell(family, name, {}, result))
            continue
        numbers = {key: metrics.interval(x) for key, x in result.items()}
        for key in ("asnr", "gsnr", "asnr_per_1k"):
            numbers[f"versus/{key}"] = metrics.ratio(result[key], broadcast[key])
        cells.append(Cell(family, name, numbers))
    return cells


def run_selected(
    family: Sequence[str] = (),
    estimators: Mapping[str, Credit] | None = None,
    *,
    quick: bool = False,
    **settings,
) -> list[Cell]:
    """Measure estimators in families that are chosen by name.

    Args:
        family: names of families, in any case; empty for all.
        estimators: estimators by name. None, without `quick`: all of the library.
        quick: True adds the estimators of `QUICK`.
        **settings: keywords of `run`.

    Returns:
        A `Cell` for each control and each estimator of each family.

    Raises:
        ValueError: an unknown family.
    """
    known, own = {f.__name__.lower(): f for f in arena.FAMILIES}, dict(estimators or {})
    for name in family:
        if name.lower() not in known:
            similar = difflib.get_close_matches(name.lower(), known, 1)
            hint = f"did you mean {known[similar[0]].__name__}? " if similar else ""
            families = ", ".join(f.__name__ for f in arena.FAMILIES)
            raise ValueError(f"unknown family {name!r}; {hint}known: {families}")
    kinds = [known[name.lower()] for name in family] or arena.FAMILIES
    listed = (
        {f.__name__: (*(QUICK[f.__name__] if quick else ()), *own) for f in kinds}
        if quick or own
        else None
    )
    return run([f() for f in kinds], known_estimators() | own, only=listed, **settings)


def control_credits(batch: LabeledBatch, seed: int = 0) -> dict[str, np.ndarray]:
    """Credit of the controls, by name.

    exact: the true advantage; broadcast: the outcome less the group's mean, on all tokens;
    shuffled: the true advantages of an answer in random order; flipped: minus the true advantage.
    """
    A, mask, R = (
        np.asarray(batch.truth.advantage),
        np.asarray(batch.rollout.action_mask),
        np.asarray(outcome(batch.rollout)),
    )
    order = np.where(mask, np.random.default_rng(seed).random(mask.shape), 2.0)
    shuffled = np.zeros_like(A)
    # The i-th policy token gets the credit of the policy token that is i-th in random order.
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


def tokens_per_answer(task: Family, rollout: Rollout, needs: Iterable[str]) -> tuple[float, float]:
    """Tokens sampled for each answer, and tokens read by another model, with these signals.

    Values by continuations count every continuation; counterfactuals the rest of the answer.
    """
    needs, K = set(needs), task.segments
    own = float(np.asarray(rollout.action_mask).sum(-1).mean())
    replays = getattr(task, "continuations", 0) if needs & {"value", "token_value"} else 0
    sampled = (
        own
        + replays * own * (own + 1) / 2
        + sum(n * own * (K + 1) / 2 for s, n in RESAMPLED_SIGNALS.items() if s in needs)
    )
    if "coalition" in needs:
        sampled += own * rollout.signals["coalition"].shape[-1]
    return sampled, own if needs & READ_SIGNALS and not replays else 0.0


def pad(rollout: Rollout, T: int, K: int) -> Rollout:
    """Copy of a rollout padded to T tokens and K segments. The padding is masked out."""
    sizes = {"T": T, "K": K, "K+1": K + 1}

    def widen(name, axes, x):
        width = [(0, sizes.get(a, n) - n) for a, n in zip(axes, x.shape, strict=True)]
        return np.pad(x, width, constant_values=-1 if name == "segment" else 0)

    return map_arrays(widen, rollout)


def table(cells: Sequence[Cell], number: str = "versus/asnr", *, intervals: bool = True) -> Sheet:
    """One number of all cells as a table: a row for each estimator, a column for each family.

    Args:
        cells: cells of `run`.
        number: name of the number.
        intervals: whether to add the 95 % interval.

    Ratios are green if the interval is above 1, and red if it is below. Reasons are notes below.
    """
    families = list(dict.fromkeys(c.family for c in cells))
    by_key = {(c.family, c.estimator): c for c in cells}
    reasons = {
        reason: i for i, reason in enumerate(dict.fromkeys(c.reason for c in cells if c.reason), 1)
    }
    title = f"{number}: paired ratio to broadcast credit" if "versus" in number else number
    notes = [Text(f"note {i}: {one_line(reason)}", style="dim") for reason, i in reasons.items()]
    sheet = Sheet("estimator", *(Column(family) for family in families), title=title, notes=notes)
    for name in dict.fromkeys(c.estimator for c in cells):
        sheet.add_row(
            name,
            *(
                _shown(by_key.get((family, name)), number, intervals, reasons)
                for family in families
            ),
        )
    return sheet


def as_json(cells: Sequence[Cell]) -> list[dict]:
    """Cells as JSON data: an interval is [value, low, high], NaN and infinity are null."""

    def plain(e):
        return [x if np.isfinite(x) else None for x in e]

    return [
        c._asdict() | {"numbers": {name: plain(e) for name, e in c.numbers.items()}} for c in cells
    ]


@functools.partial(jax.jit, static_argnames=("prompts", "group"), compiler_options=RUN_ONCE)
def sample_family(
    task: Family, seed: int, *, prompts: int, group: int
) -> tuple[LabeledBatch, jax.Array, dict]:
    """Sampled groups of a family, its logits and its blocks of parameters."""
    return (
        arena.sample(task, prompts=prompts, group=group, key=jax.random.key(seed)),
        task.policy(),
        task.blocks(),
    )


def compile_estimator(estimator: Credit) -> Callable[[Rollout], jax.Array]:
    """Compiled function from a rollout to advantage times weight, which multiplies the gradient."""

    def weighted(rollout):
        given = columns(estimator(rollout), rollout)
        return given["advantage"] * given["weight"]

    return jax.jit(weighted, compiler_options=RUN_ONCE)


def evaluate(
    task: Family, batch: LabeledBatch, credit, *, needs, weights, logits, blocks
) -> dict[str, metrics.Draws] | str:
    """Numbers of one estimator's credit, or the reason why there are none.

    Args:
        task: the family.
        batch: its sampled groups.
        credit: advantages, [N, G, T] or padded.
        needs: names of the signals that the estimator used.
        weights: bootstrap weights of `metrics.resampling`.
        logits: the policy.
        blocks: masks of rows of parameters, by name.

    Returns:
        Draws by name: those of `metrics.measure`, tokens_sampled and tokens_read for each answer,
        and asnr_per_1k (asnr for each thousand tokens of a group).
    """
    credit = np.asarray(credit)[..., : batch.rollout.tokens.shape[-1]]
    if not np.isfinite(credit).all():
        return "credit is not finite"
    if not credit.any():
        return "credit is 0 on all tokens"
    numbers = metrics.measure(
        credit, metrics.group_gradients(credit, batch, logits), batch, weights, blocks
    )
    sampled, read = tokens_per_answer(task, batch.rollout, needs)
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
