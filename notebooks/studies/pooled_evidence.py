"""Evidence pooled over groups (`credit.pooled`) against GRPO and TEMPO, which use one group.

    python notebooks/studies/pooled_evidence.py [--seeds 16] [--steps 100] [--prompts 256]
        [--group 8] [--seed 0] [--fresh] [--out pooled.png]

Two measurements in each world: the signal-to-noise of a group's gradient at a fixed policy after
evidence of some groups, and learning curves of policies that pool while they learn. The worlds are
tabular, so the token's position identifies the decision.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from jaxcredit import arena, credit
from jaxcredit.arena import learn, matrix, metrics, sweeps
import sploo_bounds
from jaxcredit.arena.metrics import Interval
from jaxcredit.credit.trees.sploo import l1
from jaxcredit.train.runs.console import wide_console
from jaxcredit.utils.colors import COLORS
from jaxcredit.signals.decision_points import (
    decision,
    entropy_bins,
    same_column,
    same_prefix,
    surprisal_bins,
)
from jaxcredit.utils.tables import Sheet

GROUPS = (16, 256, 2048)  # numbers of groups that are pooled at a fixed policy
GROUPS_PER_BATCH = 16


def annotators(**knobs):
    """Annotators of decision_weight: by depth (all peers, prefixes, columns), entropy or visits."""
    made = {
        "pooled": decision(places=32, **knobs),
        "by prefix": decision(places=32, peers=(same_prefix,), **knobs),
        "by column": decision(places=32, peers=(same_column,), **knobs),
        "by entropy": decision(entropy_bins(), 32, **knobs),
        "by visits": decision(surprisal_bins(), 32, **knobs),
    }
    return {name: make(None, None) for name, make in made.items()}


ANNOTATORS, UNDISCOUNTED = annotators(), annotators(decay=1.0)  # no decay at a fixed policy
L1, P0 = (
    partial(l1, normalize=True),
    partial(credit.sploo, normalize=True),
)  # divided by the group's deviation, as TEMPO and GRPO are
ONE_GROUP = {"rloo": credit.rloo, "grpo": credit.grpo, "tempo": credit.tempo, "l1": L1, "p0": P0}
POOLING = {
    "pooled": credit.pooled,
    "on p0": partial(credit.pooled, base=P0),
    "by prefix": credit.pooled,
}
LEARNERS = ("grpo", "tempo", "l1", "p0", *POOLING)
RIVALS = ("tempo", "grpo")
LABELS = {"pooled 16": f"pooled, {GROUPS[0]} groups", "pooled": f"pooled, {GROUPS[-1]} groups"}


class FamilyCells(NamedTuple):
    """Cells of one family of worlds.

    Attributes:
        name: name of the family.
        cells: knobs of each cell, in words.
        tasks: the family, its knobs with a leading axis of cells.
        rate: learning rate.
        learns: whether learning curves are measured.
    """

    name: str
    cells: Sequence[str]
    tasks: Any
    rate: float = 0.3
    learns: bool = True


class CellResult(NamedTuple):
    """Results in one cell.

    Attributes:
        family: name of the family.
        cell: knobs, in words.
        snr: bootstrap draws [1 + B] of asnr, by estimator.
        area: mean progress of the learning curves [seeds], by estimator; empty without learners.
    """

    family: str
    cell: str
    snr: dict[str, np.ndarray]
    area: dict[str, np.ndarray]

    def ratio(self, a: str, b: str) -> Interval:
        """Ratio of asnr of two estimators."""
        return metrics.ratio(self.snr[a], self.snr[b])

    def gain(self, a: str, b: str) -> Interval:
        """Difference in learning of two estimators."""
        return learn.paired_difference(self.area[a][None], self.area[b][None])[0]

    def rival(self, leg: str) -> str:
        """The better of TEMPO and GRPO, by "snr" or "area"."""
        return max(
            RIVALS, key=lambda name: self.snr[name][0] if leg == "snr" else self.area[name].mean()
        )

    def versus(self, name: str, leg: str) -> Interval:
        """An estimator against the rival: ratio of asnr, or difference in learning."""
        return (self.ratio if leg == "snr" else self.gain)(name, self.rival(leg))


def worlds(fresh: bool = False) -> list[FamilyCells]:
    """Families on which `pooled` was designed, or (`fresh`) other knobs and families."""

    def of(make, cells, *, name="", fixed=None, **kw):
        tasks = [make(**{k: np.float32(v) for k, v in c.items()}, **(fixed or {})) for c in cells]
        return FamilyCells(
            name or make.__name__,
            [" ".join(f"{k}={v:g}" for k, v in c.items()) or "defaults" for c in cells],
            stack(tasks),
            **kw,
        )

    mass = (0.95, 0.85, 0.72, 0.58) if fresh else (1, 0.9, 0.8, 0.65, 0.5)
    rare = (0.2, 0.35) if fresh else (0.1, 0.5)
    at = (5, 12) if fresh else (2, 16)
    keys = [{"c_pre": c, "q": q} for q in rare for c in mass] + [
        {"at": t, "c_pre": 0.8, "q": q} for q in rare for t in at
    ]
    same = [{"c_pre": c, "c_post": c, "q": c} for c in ((0.9, 0.65) if fresh else (0.8, 0.5))]
    names, trees = zip(
        *[
            (knobs, task)
            for _, knobs, task in sploo_bounds.trees(seeds=range(6, 12) if fresh else range(6))
        ],
        strict=True,
    )
    others = (
        (arena.BitSearch, arena.Team, arena.Recovery, arena.Umbrella, arena.Lengths)
        if fresh
        else ()
    )
    return [
        of(arena.KeyBranch, keys),
        of(
            arena.Strata,
            [{"offset": x, "sd": 0.1} for x in ((0.05, 0.2) if fresh else (0, 0.1, 0.3))],
            rate=0.1,
        ),
        of(
            arena.AnchorHub,
            [{"right": x} for x in ((0.25, 0.5) if fresh else (0.2, 0.35, 0.6))],
            rate=0.05,
        ),
        FamilyCells("TokenTree", names, stack(trees)),
        of(arena.KeyBranch, same, name="one entropy", fixed={"options": 4}, learns=False),
        *(of(make, [{}], learns=False) for make in others),
    ]


def stack(tasks):
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]), *tasks)


@partial(
    jax.jit,
    static_argnames=("batches", "group"),
    compiler_options={"xla_backend_optimization_level": 1},
)
def annotator_states(task, key, *, batches: int, group: int):
    """States of the annotators after 1, 2, ... batches of one policy."""

    def step(aux, key):
        rollout = arena.sample(task, prompts=GROUPS_PER_BATCH, group=group, key=key).rollout
        aux = {
            name: annotator.update(aux[name], None, rollout, {})[0]
            for name, annotator in UNDISCOUNTED.items()
        }
        return aux, aux

    return jax.lax.scan(
        step,
        {name: annotator.init(None, None) for name, annotator in UNDISCOUNTED.items()},
        jax.random.split(key, batches),
    )[1]


def signal_to_noise(
    family: FamilyCells, *, prompts: int, group: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Draws of asnr in each cell, by estimator; "pooled 16" has evidence of 16 groups."""
    programs = {name: matrix.compile_estimator(f) for name, f in ONE_GROUP.items()}
    resampled, results = metrics.resampling(prompts, seed=seed), []
    for i in range(len(family.cells)):
        task = jax.tree.map(lambda x, i=i: x[i], family.tasks)
        states = annotator_states(
            task, jax.random.key(seed + 1), batches=GROUPS[-1] // GROUPS_PER_BATCH, group=group
        )
        batch, logits, _ = jax.block_until_ready(
            matrix.sample_family(task, seed, prompts=prompts, group=group)
        )
        credits = {name: np.asarray(program(batch.rollout)) for name, program in programs.items()}
        for name, annotator in UNDISCOUNTED.items():
            for n in GROUPS:
                aux = jax.tree.map(lambda x, n=n: x[n // GROUPS_PER_BATCH - 1], states[name])
                w = np.asarray(
                    annotator.annotate(aux, None, batch.rollout, None)["decision_weight"]
                )
                credits[name if n == GROUPS[-1] else f"{name} {n}"] = credits["l1"] * w
                if name == "pooled":
                    credits["on p0"] = credits["p0"] * w
        results.append(
            {
                name: metrics.gradient_metrics(
                    metrics.group_gradients(A, batch, logits), batch.exact.gradient, resampled
                )["asnr"]
                for name, A in credits.items()
            }
        )
    return results


def learning(
    family: FamilyCells, *, seeds: int, steps: int, group: int, seed: int
) -> dict[str, np.ndarray]:
    """Mean progress of learners with one prompt in a step, [cells, seeds], by estimator."""
    learners = {
        n: (POOLING[n], ANNOTATORS.get(n, ANNOTATORS["pooled"]))
        if n in POOLING
        else (ONE_GROUP[n], None)
        for n in LEARNERS
    }
    settings = {
        "steps": steps,
        "seeds": seeds,
        "prompts": 1,
        "group": group,
        "rate": family.rate,
        "optimizer": learn.ADAM_ONE_SCALE,
    }
    settings |= {"first_seed": seed * seeds}
    return {
        name: learn.learn(family.tasks, f, signal=signal, **settings).area()
        for name, (f, signal) in learners.items()
    }


def measure(
    family: FamilyCells, *, seeds: int, steps: int, prompts: int, group: int, seed: int
) -> list[CellResult]:
    """Results in all cells of a family."""
    snr = signal_to_noise(family, prompts=prompts, group=2 * group, seed=seed)
    area = (
        learning(family, seeds=seeds, steps=steps, group=group, seed=seed) if family.learns else {}
    )
    return [
        CellResult(family.name, cell, snr[i], {n: x[i] for n, x in area.items()})
        for i, cell in enumerate(family.cells)
    ]


def run(*, fresh: bool = False, **settings) -> list[CellResult]:
    """Results in all families, in parallel threads."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(partial(measure, **settings), worlds(fresh)), [])


def tables(results: Sequence[CellResult]) -> Iterator[Sheet]:
    """Two tables: asnr over that of leave-one-out; learning less that of the better rival."""
    names = [
        "grpo",
        "tempo",
        "l1",
        "p0",
        *(f"pooled {n}" for n in GROUPS[:-1]),
        "pooled",
        "on p0",
        *list(ANNOTATORS)[1:],
    ]
    sheet = Sheet(
        "world",
        "cell",
        *names,
        "pooled / rival",
        title="signal-to-noise at a fixed policy, over leave-one-out's",
        keys=2,
    )
    for f in results:
        e = f.versus("pooled", "snr")
        ratios = [f"{f.ratio(n, 'rloo').value:.2f}" for n in names]
        sheet.add_row(
            f.family, f.cell, *ratios, f"{e.value:.2f} ({e.low:.2f}..{e.high:.2f}) {f.rival('snr')}"
        )
    yield sheet
    names = [n for n in LEARNERS if n not in RIVALS]
    title = "learning: mean progress over the steps, less the rival's"
    sheet = Sheet("world", "cell", "rival", *names, title=title, keys=2)
    for f in results:
        if f.area:
            gains = [f.versus(n, "area") for n in names]
            rival = f.rival("area")
            row = [f"{g.value:+.3f} ({g.low:+.3f}..{g.high:+.3f})" for g in gains]
            sheet.add_row(f.family, f.cell, f"{rival} {f.area[rival].mean():.3f}", *row)
    yield sheet


def verdict(results: Sequence[CellResult], name: str, leg: str) -> str:
    """Numbers of cells in which an estimator beats, ties with or loses to the better rival."""
    cells = [f for f in results if leg == "snr" or name in f.area]
    sides = [sweeps.side(f.versus(name, leg), leg == "snr") for f in cells]
    losses = ", ".join(
        f"{f.family} {f.cell}" for f, side in zip(cells, sides, strict=True) if side < 0
    )
    return (
        f"beats {sides.count(1)}, ties {sides.count(0)}, loses {sides.count(-1)}"
        + f" ({losses})" * bool(losses)
    )


def figure(results: Sequence[CellResult], out: str) -> None:
    """Plot with a row for each cell: asnr over leave-one-out's, learning less the rival's."""
    picture = matplotlib.figure.Figure(figsize=(9, 0.24 * len(results) + 1.2), layout="constrained")
    left, right = picture.subplots(1, 2, sharey=True)
    rows = np.arange(len(results))
    for name, color, marker in zip(
        ("grpo", "tempo", "pooled 16", "pooled"), COLORS, "sv.o", strict=False
    ):
        es = [f.ratio(name, "rloo") for f in results]
        left.plot(
            [e.value for e in es],
            rows,
            marker,
            color=color,
            markersize=4,
            label=LABELS.get(name, name),
        )
        if name == "pooled":
            left.hlines(rows, [e.low for e in es], [e.high for e in es], color=color, linewidth=1)
    learned = [i for i, f in enumerate(results) if f.area]
    for name, color, shift in zip(
        ("p0", "pooled"), (COLORS[4], COLORS[3]), (0.15, -0.15), strict=True
    ):
        es = [results[i].versus(name, "area") for i in learned]
        right.errorbar(
            [e.value for e in es],
            np.array(learned) + shift,
            xerr=[[e.value - e.low for e in es], [e.high - e.value for e in es]],
            fmt="o",
            markersize=3,
            linewidth=1,
            color=color,
            label=name,
        )
    left.set(
        xscale="log",
        xlabel="signal-to-noise over leave-one-out's",
        yticks=rows,
        yticklabels=[f"{f.family} {f.cell}" for f in results],
    )
    right.set(xlabel="learning, less the better rival's")
    left.invert_yaxis()
    for axis, middle in ((left, 1), (right, 0)):
        axis.axvline(middle, color="0.6", linewidth=0.8, linestyle=":")
        axis.tick_params(labelsize=7)
        axis.legend(frameon=False, fontsize=7, loc="lower right", bbox_to_anchor=(1, 0.1))
        axis.spines[["top", "right"]].set_visible(False)
    picture.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("seeds", 16),
        ("steps", 100),
        ("prompts", 256),
        ("group", 8),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--fresh", action="store_true", help="worlds that were not used to design `pooled`"
    )
    parser.add_argument("--out", default="pooled.png")
    args = vars(parser.parse_args())
    out = args.pop("out")
    results = run(**args)
    for each in tables(results):
        wide_console().print(each)
    for name in ("l1", "p0", "on p0", *ANNOTATORS):
        print(
            f"{name:10} against the better rival: signal-to-noise {verdict(results, name, 'snr')}"
        )
    for name in LEARNERS[2:]:
        print(f"{name:10} against the better rival: learning {verdict(results, name, 'area')}")
    figure(results, out)


if __name__ == "__main__":
    main()
