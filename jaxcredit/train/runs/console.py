"""What a run shows while it works and when it ends: a progress bar with one line of numbers, and a table of first, best and last."""

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


def wide_console() -> Console:
    """For tables of many columns: the terminal, and where a file or a pipe has no width, enough of one that no number is cut off."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200)


class Summary:
    """First, best and last values of the shown metrics, and the newest accuracies: in constant memory."""

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
        """Name and (first, best, last) of what is shown, in its order. Rewards of 0 and 1 are the accuracy: one line for both."""
        there = [(name, self.values[name]) for name in CONSOLE if name in self.values]
        return [
            (name, x)
            for name, x in there
            if name != HELD_OUT_REWARD or x != self.values.get(ACCURACY)
        ]


class Display:
    """A progress bar and one line of numbers in a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, console: Console, steps: int, start: int, title: str, pace_s: float):
        self.console, self.steps, self.pace_s, self._told = console, steps, pace_s, 0.0
        self._live = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(
                *columns, TextColumn("left"), TimeRemainingColumn(), console=console
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
        elif (
            time.monotonic() - self._told > self.pace_s
            or line["step"] >= self.steps
            or line.get(ACCURACY) is not None
        ):
            self._told = time.monotonic()
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
            trend = (
                sparkline(summary.trend) + " "
                if name == ACCURACY and self.console.encoding.startswith("utf")
                else ""
            )
            parts.append(f"{label(name)} {trend}{_short(last)}")
        return "  ".join(parts)


def final_table(summary: Summary, title: str, folder: str) -> Table:
    """First, best (accuracy and reward) and last values of what matters."""
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
    """The last `width` values as eight heights between 0 and the largest of them and 1."""
    values = list(values)
    top = max(1.0, *values) if values else 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, max(0, int(8 * v / top)))] for v in values[-width:])


def _short(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def _clock(line: Mapping) -> str:
    seconds = int(line.get("time/total_s", 0))
    return (
        f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        if seconds >= 3600
        else f"{seconds // 60}:{seconds % 60:02d}"
    )
