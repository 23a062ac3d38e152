"""Plots of the metrics of one run, and comparison of several runs. No display is needed."""

import functools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
from matplotlib.ticker import MaxNLocator

from jaxcredit.train.runs import file_names
from jaxcredit.train.runs.folder import local_path
from jaxcredit.train.runs.history import History
from jaxcredit.train.runs.json_files import read_config, read_json, typed_value
from jaxcredit.train.runs.json_lines import iterate_metrics
from jaxcredit.train.runs.metric_table import ACCURACY, METRICS, label, panels
from jaxcredit.utils.colors import COLORS
from jaxcredit.utils.plain_text import literal_figures, one_line
from jaxcredit.utils.tables import Column, Sheet

DRAWN = 2000  # largest number of points of a plotted curve


@literal_figures()
def curves(folder: str | Path, out: str | Path | None = None) -> Path:
    """Plot the metrics of a run, in the panels of `metric_table.METRICS`.

    Args:
        folder: local run folder.
        out: path of the picture; None: `curves.png` in the run folder.

    Returns:
        Path of the picture.
    """
    folder = Path(folder)
    history = History(iterate_metrics(folder), METRICS)
    present = {
        title: [name for name in names if history.series(name)[0].size]
        for title, names in panels().items()
    }
    present = {title: names for title, names in present.items() if names}
    figure, axes = _grid(list(present), folder.name)
    for axis, names in zip(axes, present.values(), strict=True):
        drawn = [
            (_draw(axis, *history.series(name), color), label(name))
            for name, color in zip(names, COLORS, strict=False)
        ]
        if len(names) > 1:
            _legend(axis, drawn, fontsize=7)
    return _save(figure, out or folder / file_names.CURVES)


@literal_figures()
def compare(
    folders: Sequence[str | Path], out: str | Path | None = None, *, threshold: float = 0.9
) -> tuple[Sheet, Path]:
    """Compare the held-out accuracy of several runs.

    Runs that differ only in the seed share a row and a curve: mean ± standard deviation over seeds.

    Args:
        folders: paths or gs:// addresses of run folders.
        out: path of the picture; None: `compare.png`.
        threshold: accuracy for the column "steps to".

    Returns:
        Table of the runs, and path of the picture with accuracy and reward over steps.

    Raises:
        FileNotFoundError: a folder has no metrics of a finished step.
    """
    groups = _grouped([local_path(f) for f in folders])
    numbers = ("seeds", "accuracy", "best", f"steps to {threshold:g}", "tokens", "minutes")
    table = Sheet(
        "run", *(Column(name, right=True) for name in numbers), title="held-out greedy accuracy"
    )
    figure, (left, right) = _grid(["held-out accuracy (greedy)", "reward"], "")
    drawn = []
    for i, (name, runs) in enumerate(groups.items()):
        color = COLORS[i % len(COLORS)]
        bands = [
            _band(axis, [run.series(key) for run in runs], color)
            for axis, key in ((left, ACCURACY), (right, "reward"))
        ]
        drawn += [(band, name) for band in bands if band][:1]
        table.add_row(name, str(len(runs)), *_numbers(runs, threshold))
    left.axhline(threshold, color="0.75", linewidth=0.8, linestyle=":")
    _legend(left, drawn, fontsize=8, loc="lower right")
    return table, _save(figure, out or Path("compare.png"))


def _numbers(runs: list[History], threshold: float) -> list[str]:
    accuracy = [run.series(ACCURACY) for run in runs]
    scored = [(x, y) for x, y in accuracy if len(y)]
    reached = [
        x[np.argmax(y >= threshold)] if (y >= threshold).any() else np.inf for x, y in scored
    ]
    steps = (
        f"{np.median(reached):.0f}"
        if reached and np.isfinite(np.median(reached))
        else "not reached"
    )
    tokens = [run.total("tokens") for run in runs]
    minutes = [run.last.get("time/total_s", 0) / 60 for run in runs]
    spent = f"{np.mean(tokens):,.0f}" if any(tokens) else "-"
    return [
        _spread([y[-1] for _, y in scored]),
        _spread([y.max() for _, y in scored]),
        steps,
        spent,
        _spread(minutes),
    ]


def _spread(values: Sequence[float]) -> str:
    if not len(values):
        return "-"
    return f"{np.mean(values):.3g}" + (
        f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    )


def _grouped(folders: list[Path]) -> dict[str, list[History]]:
    """Histories by label. Runs that differ only in seed and name share the label of the first."""
    groups: dict[str, list[History]] = {}
    labels: dict[str, str] = {}
    for folder in folders:
        history = History(iterate_metrics(folder), (ACCURACY, "reward", "tokens"))
        if not len(history):
            raise FileNotFoundError(
                f"{folder} holds no {file_names.METRICS} with a finished step: "
                "name folders of runs, such as runs/quickstart"
            )
        identity = _identity(folder) or str(folder)
        label = labels.setdefault(
            identity, folder.name if folder.name not in labels.values() else str(folder)
        )
        groups.setdefault(label, []).append(history)
    return groups


def _identity(folder: Path) -> str:
    """Config, options and config file of a run, without seed and name; "" without a config.json."""
    config = {k: v for k, v in read_config(folder).items() if k not in ("seed", "name")}
    options = re.sub(
        r"--seed[ =]\S+",
        "",
        " ".join(map(str, typed_value(read_json(folder / file_names.SOURCE), "args", list))),
    )
    copy = folder / file_names.CONFIG_COPY
    source = copy.read_text() if copy.exists() else ""
    return json.dumps([config, options.split(), source], sort_keys=True) if config else ""


def _smooth(y: np.ndarray) -> np.ndarray:
    """Running mean over 1/40 of the series, with shorter windows at the ends."""
    half = len(y) // 80
    total = np.cumsum(np.insert(y, 0, 0.0))
    low, high = (
        np.maximum(np.arange(len(y)) - half, 0),
        np.minimum(np.arange(len(y)) + half + 1, len(y)),
    )
    return (total[high] - total[low]) / (high - low)


def _thinned(*series: np.ndarray) -> list[np.ndarray]:
    """At most DRAWN points of each series, with the first and the last one."""
    chosen = np.unique(np.linspace(0, len(series[0]) - 1, min(DRAWN, len(series[0]))).astype(int))
    return [x[chosen] for x in series]


def _spans(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum of each of DRAWN / 2 intervals, which look like all points when drawn."""
    if len(y) <= DRAWN:
        return x, y
    begin = np.linspace(0, len(y), DRAWN // 2, endpoint=False).astype(int)
    return np.repeat(x[begin], 2), np.stack(
        [np.minimum.reduceat(y, begin), np.maximum.reduceat(y, begin)], 1
    ).ravel()


def _draw(axis, x, y, color):
    if len(y) >= 100:
        axis.plot(*_spans(x, y), color=color, alpha=0.2, linewidth=0.8)
    return axis.plot(
        *_thinned(x, _smooth(y)),
        color=color,
        linewidth=1.6,
        marker="o" if len(y) < 40 else "",
        markersize=2.5,
    )[0]


def _band(axis, series, color):
    """Draw the mean over seeds, and the range from the lowest to the highest seed.

    Only steps that all seeds have are drawn. Returns the line, or None without data.
    """
    series = [(x, _smooth(y)) for x, y in series if len(x)]
    if not series:
        return None
    steps = functools.reduce(np.intersect1d, (x for x, _ in series))
    steps, *values = _thinned(steps, *(y[np.isin(x, steps)] for x, y in series))
    line = axis.plot(steps, np.mean(values, 0), color=color, linewidth=1.8)[0]
    if len(values) > 1:
        axis.fill_between(
            steps, np.min(values, 0), np.max(values, 0), color=color, alpha=0.15, linewidth=0
        )
    return line


def _legend(axis, drawn, **options) -> None:
    """Draw a legend of (line, name) pairs.

    The names are set afterwards, because matplotlib leaves out labels that begin with an
    underscore.
    """
    legend = axis.legend([line for line, _ in drawn], ["-"] * len(drawn), frameon=False, **options)
    for text, (_, name) in zip(legend.get_texts(), drawn, strict=True):
        text.set_text(one_line(name, most=60))


def _grid(titles: list[str], heading: str):
    columns = min(4, max(1, len(titles)))
    rows = -(-max(1, len(titles)) // columns)
    figure = matplotlib.figure.Figure(
        figsize=(3.4 * columns, 2.5 * rows + 0.3), dpi=120, layout="constrained"
    )
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
        figure.suptitle(one_line(heading, most=120), fontsize=10, x=0.01, ha="left")
    return figure, axes[: len(titles)]


def _save(figure, out: str | Path) -> Path:
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")  # so that a full disk leaves no incomplete plot
    try:
        figure.savefig(part, format=out.suffix[1:] or "png")
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return out
