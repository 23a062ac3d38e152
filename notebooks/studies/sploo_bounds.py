"""Bounds of SPLOO on a grid of worlds: p0 and safe against leave-one-out, l1 against TEMPO.

    python notebooks/studies/sploo_bounds.py [--prompts 256] [--group 16] [--seed 0]

A bound is a smallest ratio of the gradient's signal-to-noise (asnr of `jaxcredit.arena.metrics`).
The command prints a table with a row for each family of worlds: whether each bound holds by the
95 % intervals, and the worst and the best cell.
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

# Estimator, rival and smallest ratio. TEMPO is taken without its division by the group's
# deviation, as l1 is.
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


class GridCell(NamedTuple):
    """Family, knobs in words, and the ratio of asnr for each estimator of `BOUNDS`."""

    family: str
    knobs: str
    ratios: dict[str, Interval]


def trees(T: int = 8, seeds: Sequence[int] = range(6)) -> Iterator[tuple[str, str, TokenTree]]:
    """Token trees with diffuse credit: random logits of prefixes, random 0/1 rewards of answers."""
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
    """Lists of (family, knobs in words, task). Tasks of one list share their compiled programs."""
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
    named_tasks: list[tuple[str, str, Any]], *, prompts: int, group: int, seed: int
) -> list[GridCell]:
    """Paired ratios of `BOUNDS` for each task."""
    programs = {
        "rloo": matrix.compile_estimator(credit.rloo),
        "tempo": matrix.compile_estimator(credit.tempo),
    }
    # With traced knobs, all presets are one program.
    sploo = jax.jit(
        lambda rollout, knobs: credit.sploo(rollout, **knobs), compiler_options=matrix.RUN_ONCE
    )
    for name, preset in (("p0", p0), ("safe", safe), ("l1", l1)):
        programs[name] = partial(sploo, knobs=preset.keywords)
    weights, results = metrics.resampling(prompts, seed=seed), []
    for family, knobs, task in named_tasks:
        batch, logits, _ = jax.block_until_ready(
            matrix.sample_family(task, seed, prompts=prompts, group=group)
        )
        credits = {name: np.asarray(program(batch.rollout)) for name, program in programs.items()}
        credits["tempo"] = credits["tempo"] * (
            np.asarray(outcome(batch.rollout)).std(1)[:, None, None] + 1e-6
        )
        gradients = {name: metrics.group_gradients(A, batch, logits) for name, A in credits.items()}
        draws = {
            name: metrics.gradient_metrics(g, batch.exact.gradient, weights)["asnr"]
            for name, g in gradients.items()
        }
        results.append(
            GridCell(family, knobs, {a: metrics.ratio(draws[a], draws[b]) for a, b, _ in BOUNDS})
        )
    return results


def run(*, prompts: int = 256, group: int = 16, seed: int = 0) -> list[GridCell]:
    """Measure all tasks, in parallel threads."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(partial(measure, prompts=prompts, group=group, seed=seed), tasks()), [])


def worst(cells: Sequence[GridCell], name: str) -> GridCell:
    """Cell with the smallest ratio of an estimator."""
    return min(
        (cell for cell in cells if np.isfinite(cell.ratios[name].value)),
        key=lambda cell: cell.ratios[name].value,
    )


def verdict(cells: Sequence[GridCell], name: str, bound: float) -> str:
    """Whether a bound holds in all cells, by their intervals, in words."""
    known = [cell.ratios[name] for cell in cells if np.isfinite(cell.ratios[name].value)]
    broken, sure = sum(e.high < bound for e in known), sum(e.low >= bound for e in known)
    if broken:
        return f"broken in {broken} of {len(known)}"
    return "holds" if sure == len(known) else f"not broken; sure in {sure} of {len(known)}"


def table(cells: Sequence[GridCell]) -> Sheet:
    """Table of the worst and the best cell for each family and bound."""
    sheet = Sheet(
        "family",
        Column("cells", right=True),
        *(Column(f"{a} / {b}, at least {x:g}", wraps=True) for a, b, x in BOUNDS),
    )
    groups = {"all": list(cells)} | {
        f: [cell for cell in cells if cell.family == f]
        for f in dict.fromkeys(cell.family for cell in cells)
    }
    for family, members in groups.items():
        row = []
        for name, _, bound in BOUNDS:
            least = worst(members, name)
            best = max(
                cell.ratios[name].value for cell in members if np.isfinite(cell.ratios[name].value)
            )
            e = least.ratios[name]
            numbers = (
                f"worst {e.value:.3f} ({e.low:.3f}..{e.high:.3f}) {least.knobs}; best {best:.2f}"
            )
            row.append(Text(f"{verdict(members, name, bound)}\n{numbers}"))
        sheet.add_row(family, str(len(members)), *row)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("prompts", 256), ("group", 16), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    Console().print(table(run(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
