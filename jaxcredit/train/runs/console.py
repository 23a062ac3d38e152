"""Console output of a training run: a progress bar with the newest metrics, and a final table."""

import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from jaxcredit.train.runs.metric_table import ACCURACY, CONSOLE, HELD_OUT_REWARD, METRICS, label
from jaxcredit.utils.plain_text import cell, one_line, visible

TREND = 16  # accuracies in the sparkline
WIDE = 200  # columns of a console without a terminal


def wide_console() -> Console:
    """Console for tables with many columns: 200 columns wide unless it is a terminal."""
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if has_width else WIDE)


class Summary:
    """First, best and last values of the metrics that the console shows, in constant memory.

    Args:
        lines: lines of metrics.jsonl, in order.

    Attributes:
        last: the newest line.
        values: (first, best, last) value by metric; `metric_table.METRICS` says which value is
            best.
        trend: the newest accuracies.
    """

    def __init__(self, lines: Iterable[Mapping] = ()):
        self.last: Mapping = {}
        self.values: dict[str, tuple[float, float, float]] = {}
        self.trend: deque[float] = deque(maxlen=TREND)
        for line in lines:
            self.add(line)

    def add(self, line: Mapping) -> None:
        """Update with the metrics of the next step."""
        self.last = line
        for name in CONSOLE:
            if (x := line.get(name)) is not None:
                first, best, _ = self.values.get(name, (x, x, x))
                better = min if METRICS[name].better == "down" else max
                self.values[name] = first, better(best, x), x
        if line.get(ACCURACY) is not None:
            self.trend.append(line[ACCURACY])

    def shown(self) -> list[tuple[str, tuple[float, float, float]]]:
        """Name and (first, best, last) of the metrics that the console shows, in order.

        The held-out reward is left out if it equals the accuracy, as it does for rewards of 0 and
        1.
        """
        is_binary = self.values.get(HELD_OUT_REWARD) == self.values.get(ACCURACY)
        return [
            (name, self.values[name])
            for name in CONSOLE
            if name in self.values and not (name == HELD_OUT_REWARD and is_binary)
        ]


class Display:
    """Progress bar with a line of metrics in a terminal; otherwise one line every few seconds.

    Args:
        console: where to print.
        steps: number of steps of the run.
        start: step from which the run continues.
        title: the first words of the bar.
        pace_s: seconds between lines, if there is no terminal.
    """

    def __init__(self, console: Console, steps: int, start: int, title: str, pace_s: float):
        self.console, self.steps, self.pace_s = console, steps, pace_s
        self._last_print = 0.0
        self._live = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(
                one_line(title) or "training", total=steps, completed=start
            )
            self._live = Live(self._bar, console=console, refresh_per_second=4)
            self._live.start()

    def step(self, summary: Summary) -> None:
        """Show the newest step."""
        line = summary.last
        if self._live:
            self._bar.update(self._task, completed=line["step"])
            self._live.update(Group(self._bar, Text(self._line(summary), style="cyan")))
            return
        is_due = time.monotonic() - self._last_print > self.pace_s
        if is_due or line["step"] >= self.steps or line.get(ACCURACY) is not None:
            self._last_print = time.monotonic()
            self.note(f"step {line['step']}/{self.steps}  {self._line(summary)}  {_clock(line)}")

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(Text(visible(text, "  ")), soft_wrap=True)

    def table(self, summary: Summary, title: str, folder: str) -> None:
        """Print the final table."""
        self.console.print(final_table(summary, title, folder))

    def close(self) -> None:
        """Remove the bar."""
        if self._live:
            self._live.stop()

    def _line(self, summary: Summary) -> str:
        parts = []
        for name, (_, _, last) in summary.shown():
            has_trend = name == ACCURACY and self.console.encoding.startswith("utf")
            trend = sparkline(summary.trend) + " " if has_trend else ""
            parts.append(f"{label(name)} {trend}{_short(last)}")
        return "  ".join(parts)


def final_table(summary: Summary, title: str, folder: str) -> Table:
    """Table of the first, best and last values of the metrics that the console shows.

    Args:
        summary: the values.
        title: heading.
        folder: run folder, for the caption.
    """
    table = Table(
        "",
        "first",
        "best",
        "last",
        title=cell(title, "table.title") if title else None,
        caption_justify="left",
    )
    table.caption = cell(f"{_clock(summary.last)}   {folder}", "table.caption")
    for name, (first, best, last) in summary.shown():
        has_best = METRICS[name].better and not name.startswith("time/")  # speeds have outliers
        table.add_row(name, _short(first), _short(best) if has_best else "", _short(last))
    return table


def sparkline(values: Sequence[float], width: int = TREND) -> str:
    """The last `width` values as bars of eight heights, from 0 to 1 or to a larger maximum.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    values = list(values)
    top = max(1.0, *values) if values else 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, max(0, int(8 * v / top)))] for v in values[-width:])


def _short(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def _clock(line: Mapping) -> str:
    minutes, seconds = divmod(int(line.get("time/total_s", 0)), 60)
    if minutes < 60:
        return f"{minutes}:{seconds:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
