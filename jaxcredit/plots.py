"""Pictures of runs: what one run did, and how several compare. Drawn without a display."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from jaxcredit.display import ACCURACY
from jaxcredit.home import here
from jaxcredit.records import read

# Panels in reading order; names that belong into one panel stand together, and a panel without data is left out.
PANELS = (
    ("held-out accuracy (greedy)", (ACCURACY,)),
    ("reward", ("reward",)),
    ("entropy (nats a token)", ("entropy",)),
    ("answer length (tokens)", ("length",)),
    ("shares", ("clip_share", "groups_mixed", "truncated", "prefix_collisions", "modal_share")),
    ("KL to the reference", ("kl",)),
    ("log-prob gap, sampler to trainer", ("sampler_gap",)),
    ("gradient norm", ("grad_norm",)),
    ("tokens a second", ("time/tokens_per_s",)),
)
COLOURS = ("#2456a6", "#d1495b", "#2e933c", "#edae49", "#7a4f9a", "#4a4e69")


def curves(folder: str | Path, out: str | Path | None = None) -> Path:
    """One small picture a quantity, as `curves.png` in the run folder."""
    folder = Path(folder)
    history = read(folder)
    panels = [(title, [n for n in names if _series(history, n)[0].size]) for title, names in PANELS]
    figure, axes = _grid([title for title, names in panels if names], folder.name)
    for axis, names in zip(axes, [names for _, names in panels if names], strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            _draw(axis, *_series(history, name), colour, name.split("/")[-1].replace("_", " "))
        if len(names) > 1:
            axis.legend(frameon=False, fontsize=7)
    return _save(figure, out or folder / "curves.png")


def compare(folders: Sequence[str | Path], out: str | Path | None = None, *, threshold: float = 0.9) -> tuple[Table, Path]:
    """A table and one picture of several runs. Runs whose configs differ in the seed alone are one line: mean ± spread of the seeds."""
    groups = _grouped([here(f) for f in folders])
    table = Table("run", "seeds", "accuracy", "best", f"steps to {threshold:g}", "tokens", "minutes", title="held-out greedy accuracy")
    figure, (left, right) = _grid(["held-out accuracy (greedy)", "reward"], "")
    for i, (name, runs) in enumerate(groups.items()):
        colour = COLOURS[i % len(COLOURS)]
        for axis, key in ((left, ACCURACY), (right, "reward")):
            _band(axis, [_series(run, key) for run in runs], colour, name)
        table.add_row(name, str(len(runs)), *_numbers(runs, threshold))
    left.axhline(threshold, color="0.75", linewidth=0.8, linestyle=":")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    return table, _save(figure, out or Path("compare.png"))


def _numbers(runs: list[list[dict]], threshold: float) -> list[str]:
    accuracy = [_series(run, ACCURACY) for run in runs]
    scored = [(x, y) for x, y in accuracy if len(y)]
    reached = [x[np.argmax(y >= threshold)] if (y >= threshold).any() else np.inf for x, y in scored]
    steps = f"{np.median(reached):.0f}" if reached and np.isfinite(np.median(reached)) else "not reached"
    tokens = [_series(run, "tokens")[1].sum() for run in runs]
    minutes = [run[-1].get("time/total_s", 0) / 60 for run in runs]
    spent = f"{np.mean(tokens):,.0f}" if any(tokens) else "-"
    return [_spread([y[-1] for _, y in scored]), _spread([y.max() for _, y in scored]), steps, spent, _spread(minutes)]


def _spread(values: Sequence[float]) -> str:
    if not len(values):
        return "-"
    return f"{np.mean(values):.3g}" + (f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else "")


def _grouped(folders: list[Path]) -> dict[str, list[list[dict]]]:
    """Histories by label; folders with the same config, seed and name aside, share the label of the first."""
    groups: dict[str, list[list[dict]]] = {}
    labels: dict[str, str] = {}
    for folder in folders:
        history = read(folder)
        if not history:
            raise FileNotFoundError(f"{folder} holds no metrics.jsonl with a finished step: name folders of runs, such as runs/quickstart")
        same = _same(folder) or str(folder)
        label = labels.setdefault(same, folder.name if folder.name not in labels.values() else str(folder))
        groups.setdefault(label, []).append(history)
    return groups


def _same(folder: Path) -> str:
    """What two runs that differ in the seed alone have in common: config and, where the command line made it, its options and file."""

    def said(name):
        return json.loads((folder / name).read_text()) if (folder / name).exists() else {}

    config = {k: v for k, v in said("config.json").get("config", {}).items() if k not in ("seed", "name")}
    options = re.sub(r"--seed[ =]\S+", "", " ".join(said("source.json").get("args", ())))
    source = (folder / "config.py").read_text() if (folder / "config.py").exists() else ""
    return json.dumps([config, options.split(), source], sort_keys=True) if config else ""


def _series(history: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[name]) for line in history if line.get(name) is not None]
    x, y = np.array(points, float).reshape(-1, 2).T
    return x, y


def _smooth(y: np.ndarray) -> np.ndarray:
    """running mean over a fortieth of the run, shorter at the ends; short series stay as they are."""
    half = len(y) // 80
    total = np.cumsum(np.insert(y, 0, 0.0))
    low, high = np.maximum(np.arange(len(y)) - half, 0), np.minimum(np.arange(len(y)) + half + 1, len(y))
    return (total[high] - total[low]) / (high - low)


def _draw(axis, x, y, colour, label) -> None:
    smooth = _smooth(y)
    if len(y) >= 100:
        axis.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
    axis.plot(x, smooth, color=colour, linewidth=1.6, label=label, marker="o" if len(y) < 40 else "", markersize=2.5)


def _band(axis, series, colour, label) -> None:
    """The mean over seeds at the steps all of them have, between the lowest and the highest."""
    series = [(x, _smooth(y)) for x, y in series if len(x)]
    if not series:
        return
    steps = np.array(sorted(set.intersection(*(set(x) for x, _ in series))))
    values = np.array([y[np.isin(x, steps)] for x, y in series])
    axis.plot(steps, values.mean(0), color=colour, linewidth=1.8, label=label)
    if len(values) > 1:
        axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def _grid(titles: list[str], heading: str):
    columns = min(4, max(1, len(titles)))
    rows = -(-max(1, len(titles)) // columns)
    figure = matplotlib.figure.Figure(figsize=(3.4 * columns, 2.5 * rows + 0.3), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2, linewidth=0.6)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_xlabel("step", fontsize=7)
        if "accuracy" in title:
            axis.set_ylim(-0.02, 1.02)
    for axis in axes[len(titles) :]:
        axis.remove()
    if heading:
        figure.suptitle(heading, fontsize=10, x=0.01, ha="left")
    return figure, axes[: len(titles)]


def _save(figure, out: str | Path) -> Path:
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out
