"""Our own estimator held to its bounds over a grid of worlds: P0 and safe against leave-one-out, L1 against TEMPO; the worst cell of each.

python -m jaxcredit.arena.ours [--prompts 256] [--seed 0]
"""

import argparse
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.text import Text

from jaxcredit import arena, credit
from jaxcredit.arena import matrix, metrics
from jaxcredit.arena.enumerate import TokenTree
from jaxcredit.arena.metrics import Interval
from jaxcredit.credit.trees.sploo import l1, p0, safe
from jaxcredit.rollout import outcome
from jaxcredit.utils.tables import Column, Sheet

# Who is held to how much of whom. TEMPO stands here without its division by the group's deviation, as L1 does.
BOUNDS = (("p0", "rloo", 0.96), ("safe", "rloo", 0.96), ("l1", "tempo", 0.9))
GRIDS: tuple[tuple[Any, dict[str, Sequence]], ...] = (
    (
        arena.KeyBranch,
        {"c_pre": (1, 0.95, 0.8, 0.5), "at": (2, 8, 16), "p_lo": (0.1, 0.6), "q": (0.1, 0.5)},
    ),
    (
        partial(arena.KeyBranch, **{"keys": 3, "gap": 4}),
        {"c_pre": (1, 0.8, 0.5), "at": (2,), "need": (1, 3)},
    ),
    (arena.HackablePRM, {"good": (0.25, 0.5)}),
    (arena.Strata, {"offset": (0, 0.1, 0.2), "sd": (0.05, 0.5), "coin": (0, 1)}),
    (arena.AnchorHub, {"right": (0.2, 0.35, 0.6)}),
    (arena.PlanLag, {"plan": (0.3, 0.5, 0.8)}),
    (arena.BitSearch, {"eta": (1, 0.3)}),
    (arena.Team, {"p": (0.5, 0.8)}),
    (arena.Recovery, {"repair": (0.2, 0.6)}),
    (arena.Umbrella, {"vary": (0, 0.5), "distraction": (0.02, 0.3)}),
    (arena.Twin, {"sign": (1, -1)}),
    (arena.Lengths, {"long_right": (0.3, 0.7)}),
)


class Place(NamedTuple):
    """A cell of the grid, and the ratio of the two estimators' direction-penalised signal-to-noise there."""

    family: str
    knobs: str
    ratios: dict[str, Interval]  # by challenger


def trees(T: int = 8, seeds: Sequence[int] = range(6)) -> Iterator[tuple[str, str, TokenTree]]:
    """Diffuse credit: every prefix has its own random logits, every answer its own 0/1 reward."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(2**T - 1, 2)).astype(np.float32) * (1.0 if seed % 2 else 2.0)
        yield (
            "TokenTree",
            f"seed {seed}",
            TokenTree(
                **{
                    "logits": logits,
                    "reward": rng.integers(0, 2, 2**T).astype(np.float32),
                    "T": T,
                    "V": 2,
                }
            ),
        )


def tasks() -> list[list[tuple[str, str, Any]]]:
    """Family, knobs in words and task; those of one list share their programs."""
    lists = []
    for make, grid in GRIDS:
        name = getattr(make, "__name__", "") or "KeyBranch of 3"
        cells = [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
        lists.append(
            [
                (
                    name,
                    " ".join(f"{k}={v:g}" for k, v in c.items()),
                    make(**{k: np.float32(v) for k, v in c.items()}),
                )
                for c in cells
            ]
        )
    return [*lists, list(trees())]


def measure(
    cells: list[tuple[str, str, Any]], *, prompts: int, group: int, seed: int
) -> list[Place]:
    """The bounds' ratios in each of the cells, paired."""
    programs = {"rloo": matrix.compile_estimator(credit.rloo), "tempo": matrix.compile_estimator(credit.tempo)}
    # Its knobs are traced: the presets are one program.
    sploo = jax.jit(
        lambda rollout, knobs: credit.sploo(rollout, **knobs), compiler_options=matrix.RUN_ONCE
    )
    for name, preset in (("p0", p0), ("safe", safe), ("l1", l1)):
        programs[name] = partial(sploo, knobs=preset.keywords)
    weights, found = metrics.resampling(prompts, seed=seed), []
    for family, knobs, task in cells:
        batch, logits, _ = jax.block_until_ready(
            matrix.sample_family(task, seed, prompts=prompts, group=group)
        )
        given = {name: np.asarray(program(batch.rollout)) for name, program in programs.items()}
        given["tempo"] = given["tempo"] * (
            np.asarray(outcome(batch.rollout)).std(1)[:, None, None] + 1e-6
        )
        slopes = {name: metrics.group_gradients(A, batch, logits) for name, A in given.items()}
        draws = {
            name: metrics.gradient_metrics(g, batch.exact.gradient, weights)["asnr"]
            for name, g in slopes.items()
        }
        found.append(
            Place(family, knobs, {a: metrics.ratio(draws[a], draws[b]) for a, b, _ in BOUNDS})
        )
    return found


def run(*, prompts: int = 256, group: int = 16, seed: int = 0) -> list[Place]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(partial(measure, prompts=prompts, group=group, seed=seed), tasks()), [])


def worst(places: Sequence[Place], name: str) -> Place:
    """The cell in which a challenger's ratio is least."""
    return min(
        (p for p in places if np.isfinite(p.ratios[name].value)), key=lambda p: p.ratios[name].value
    )


def verdict(places: Sequence[Place], name: str, bound: float) -> str:
    """Whether the bound holds in every cell, as far as the intervals tell."""
    known = [p.ratios[name] for p in places if np.isfinite(p.ratios[name].value)]
    broken, sure = sum(e.high < bound for e in known), sum(e.low >= bound for e in known)
    if broken:
        return f"broken in {broken} of {len(known)}"
    return "holds" if sure == len(known) else f"not broken; sure in {sure} of {len(known)}"


def table(places: Sequence[Place]) -> Sheet:
    """For each family and bound: the worst and the best cell."""
    answer = Sheet(
        "family",
        Column("cells", right=True),
        *(Column(f"{a} / {b}, at least {x:g}", wraps=True) for a, b, x in BOUNDS),
    )
    groups = {"all": list(places)} | {
        f: [p for p in places if p.family == f] for f in dict.fromkeys(p.family for p in places)
    }
    for family, here in groups.items():
        row = []
        for name, _, bound in BOUNDS:
            w = worst(here, name)
            best = max(p.ratios[name].value for p in here if np.isfinite(p.ratios[name].value))
            e = w.ratios[name]
            numbers = f"worst {e.value:.3f} ({e.low:.3f}..{e.high:.3f}) {w.knobs}; best {best:.2f}"
            row.append(Text(f"{verdict(here, name, bound)}\n{numbers}"))
        answer.add_row(family, str(len(here)), *row)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("prompts", 256), ("group", 16), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    Console().print(table(run(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
