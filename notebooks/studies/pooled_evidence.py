"""The exit that the conservation law leaves: evidence of where decisions sit from other groups, against GRPO and TEMPO in one.

    python -m jaxcredit.arena.pooled [--seeds 16] [--prompts 256] [--seed 0] [--fresh] [--out pooled.png]

Twice in each world: the signal-to-noise of a group's gradient at a fixed policy once evidence of some groups has been pooled, and what
learners earn who pool as they go. Worlds are tabular: a token's place in the answer tells decisions apart as well as anything could.
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
import sploo_bounds as ours
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

GROUPS = (16, 256, 2048)  # pooled before a group is weighed at a fixed policy
EACH = 16  # of them at a time


def ways(**knobs):
    """The signals: by depth with all peers, those of a table of prefixes, those of columns; by what the policy shows of itself."""
    made = {
        "pooled": decision(places=32, **knobs),
        "by prefix": decision(places=32, peers=(same_prefix,), **knobs),
        "by column": decision(places=32, peers=(same_column,), **knobs),
        "by entropy": decision(entropy_bins(), 32, **knobs),
        "by visits": decision(surprisal_bins(), 32, **knobs),
    }
    return {name: make(None, None) for name, make in made.items()}


WAYS, EVER = ways(), ways(decay=1.0)  # at a fixed policy nothing gets old
L1, P0 = (
    partial(l1, normalize=True),
    partial(credit.sploo, normalize=True),
)  # in deviations of the group, as TEMPO and GRPO are
ALONE = {"rloo": credit.rloo, "grpo": credit.grpo, "tempo": credit.tempo, "l1": L1, "p0": P0}
POOLING = {
    "pooled": credit.pooled,
    "on p0": partial(credit.pooled, base=P0),
    "by prefix": credit.pooled,
}
LEARNERS = ("grpo", "tempo", "l1", "p0", *POOLING)
RIVALS = ("tempo", "grpo")
LABELS = {"pooled 16": f"pooled, {GROUPS[0]} groups", "pooled": f"pooled, {GROUPS[-1]} groups"}


class Worlds(NamedTuple):
    """Cells of one family: their knobs in words, and the family with a leading axis of them."""

    name: str
    cells: Sequence[str]
    tasks: Any
    rate: float = 0.3
    learns: bool = True


class Found(NamedTuple):
    """Of each cell: draws of the aligned signal-to-noise by estimator [1 + B], and shares of the way learnt [seeds]."""

    family: str
    cell: str
    snr: dict[str, np.ndarray]
    area: dict[str, np.ndarray]

    def ratio(self, a: str, b: str) -> Interval:
        return metrics.ratio(self.snr[a], self.snr[b])

    def gain(self, a: str, b: str) -> Interval:
        return learn.paired_difference(self.area[a][None], self.area[b][None])[0]

    def rival(self, leg: str) -> str:
        """The better of TEMPO and GRPO here."""
        return max(
            RIVALS, key=lambda name: self.snr[name][0] if leg == "snr" else self.area[name].mean()
        )

    def versus(self, name: str, leg: str) -> Interval:
        """Against the better of them: a ratio of credit, a difference in learning."""
        return (self.ratio if leg == "snr" else self.gain)(name, self.rival(leg))


def worlds(fresh: bool = False) -> list[Worlds]:
    """Those that `pooled` was chosen on; or fresh ones, knobs between theirs and families that were not looked at."""

    def of(make, cells, *, name="", fixed=None, **kw):
        tasks = [make(**{k: np.float32(v) for k, v in c.items()}, **(fixed or {})) for c in cells]
        return Worlds(
            name or make.__name__,
            [" ".join(f"{k}={v:g}" for k, v in c.items()) or "as it is" for c in cells],
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
            for _, knobs, task in ours.trees(seeds=range(6, 12) if fresh else range(6))
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
        Worlds("TokenTree", names, stack(trees)),
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
def watch(task, key, *, batches: int, group: int):
    """What the signals remember after 1, 2, .. batches of one policy."""

    def step(aux, key):
        rollout = arena.sample(task, prompts=EACH, group=group, key=key).rollout
        aux = {name: way.update(aux[name], None, rollout, {})[0] for name, way in EVER.items()}
        return aux, aux

    return jax.lax.scan(
        step,
        {name: way.init(None, None) for name, way in EVER.items()},
        jax.random.split(key, batches),
    )[1]


def signal_to_noise(
    here: Worlds, *, prompts: int, group: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Of each cell, by estimator: `pooled`, and `pooled 16` of fewer groups."""
    programs = {name: matrix.compile_estimator(f) for name, f in ALONE.items()}
    resampled, found = metrics.resampling(prompts, seed=seed), []
    for i in range(len(here.cells)):
        task = jax.tree.map(lambda x, i=i: x[i], here.tasks)
        totals = watch(task, jax.random.key(seed + 1), batches=GROUPS[-1] // EACH, group=group)
        batch, logits, _ = jax.block_until_ready(
            matrix.sample_family(task, seed, prompts=prompts, group=group)
        )
        given = {name: np.asarray(program(batch.rollout)) for name, program in programs.items()}
        for name, way in EVER.items():
            for n in GROUPS:
                aux = jax.tree.map(lambda x, n=n: x[n // EACH - 1], totals[name])
                w = np.asarray(way.annotate(aux, None, batch.rollout, None)["decision_weight"])
                given[name if n == GROUPS[-1] else f"{name} {n}"] = given["l1"] * w
                if name == "pooled":
                    given["on p0"] = given["p0"] * w
        found.append(
            {
                name: metrics.gradient_metrics(
                    metrics.group_gradients(A, batch, logits), batch.exact.gradient, resampled
                )["asnr"]
                for name, A in given.items()
            }
        )
    return found


def learning(
    here: Worlds, *, seeds: int, steps: int, group: int, seed: int
) -> dict[str, np.ndarray]:
    """Area under the learning curve by estimator, [cells, seeds]: one prompt a step."""
    who = {
        n: (POOLING[n], WAYS.get(n, WAYS["pooled"])) if n in POOLING else (ALONE[n], None)
        for n in LEARNERS
    }
    settings = {
        "steps": steps,
        "seeds": seeds,
        "prompts": 1,
        "group": group,
        "rate": here.rate,
        "optimizer": learn.ADAM_ONE_SCALE,
    }
    settings |= {"first_seed": seed * seeds}
    return {
        name: learn.learn(here.tasks, f, signal=signal, **settings).area()
        for name, (f, signal) in who.items()
    }


def measure(
    here: Worlds, *, seeds: int, steps: int, prompts: int, group: int, seed: int
) -> list[Found]:
    snr = signal_to_noise(here, prompts=prompts, group=2 * group, seed=seed)
    area = learning(here, seeds=seeds, steps=steps, group=group, seed=seed) if here.learns else {}
    return [
        Found(here.name, cell, snr[i], {n: x[i] for n, x in area.items()})
        for i, cell in enumerate(here.cells)
    ]


def run(*, fresh: bool = False, **settings) -> list[Found]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(partial(measure, **settings), worlds(fresh)), [])


def tables(found: Sequence[Found]) -> Iterator[Sheet]:
    """Signal-to-noise over leave-one-out's, and what learners earn beyond those of the better of TEMPO and GRPO."""
    names = [
        "grpo",
        "tempo",
        "l1",
        "p0",
        *(f"pooled {n}" for n in GROUPS[:-1]),
        "pooled",
        "on p0",
        *list(WAYS)[1:],
    ]
    answer = Sheet(
        "world",
        "cell",
        *names,
        "pooled / rival",
        title="signal-to-noise at a fixed policy, over leave-one-out's",
        keys=2,
    )
    for f in found:
        e = f.versus("pooled", "snr")
        ratios = [f"{f.ratio(n, 'rloo').value:.2f}" for n in names]
        answer.add_row(
            f.family, f.cell, *ratios, f"{e.value:.2f} ({e.low:.2f}..{e.high:.2f}) {f.rival('snr')}"
        )
    yield answer
    names = [n for n in LEARNERS if n not in RIVALS]
    title = "learning: share of the way by mean over the steps, less the rival's"
    answer = Sheet("world", "cell", "rival", *names, title=title, keys=2)
    for f in found:
        if f.area:
            gains = [f.versus(n, "area") for n in names]
            rival = f.rival("area")
            row = [f"{g.value:+.3f} ({g.low:+.3f}..{g.high:+.3f})" for g in gains]
            answer.add_row(f.family, f.cell, f"{rival} {f.area[rival].mean():.3f}", *row)
    yield answer


def verdict(found: Sequence[Found], name: str, leg: str) -> str:
    """In how many cells it beats, ties with or loses to the better of TEMPO and GRPO, by intervals."""
    cells = [f for f in found if leg == "snr" or name in f.area]
    sides = [sweeps.side(f.versus(name, leg), leg == "snr") for f in cells]
    losses = ", ".join(
        f"{f.family} {f.cell}" for f, side in zip(cells, sides, strict=True) if side < 0
    )
    return (
        f"beats {sides.count(1)}, ties {sides.count(0)}, loses {sides.count(-1)}"
        + f" ({losses})" * bool(losses)
    )


def figure(found: Sequence[Found], out: str) -> None:
    """A row a cell: signal-to-noise over leave-one-out's; learning less the better rival's."""
    picture = matplotlib.figure.Figure(figsize=(9, 0.24 * len(found) + 1.2), layout="constrained")
    left, right = picture.subplots(1, 2, sharey=True)
    rows = np.arange(len(found))
    for name, color, marker in zip(
        ("grpo", "tempo", "pooled 16", "pooled"), COLORS, "sv.o", strict=False
    ):
        es = [f.ratio(name, "rloo") for f in found]
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
    learnt = [i for i, f in enumerate(found) if f.area]
    for name, color, shift in zip(
        ("p0", "pooled"), (COLORS[4], COLORS[3]), (0.15, -0.15), strict=True
    ):
        es = [found[i].versus(name, "area") for i in learnt]
        right.errorbar(
            [e.value for e in es],
            np.array(learnt) + shift,
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
        yticklabels=[f"{f.family} {f.cell}" for f in found],
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
        "--fresh", action="store_true", help="in worlds that `pooled` was not chosen on"
    )
    parser.add_argument("--out", default="pooled.png")
    args = vars(parser.parse_args())
    out = args.pop("out")
    found = run(**args)
    for each in tables(found):
        wide_console().print(each)
    for name in ("l1", "p0", "on p0", *WAYS):
        print(
            f"{name:10} against the better of TEMPO and GRPO: signal-to-noise {verdict(found, name, 'snr')}"
        )
    for name in LEARNERS[2:]:
        print(
            f"{name:10} against the better of TEMPO and GRPO: learning {verdict(found, name, 'area')}"
        )
    figure(found, out)


if __name__ == "__main__":
    main()
