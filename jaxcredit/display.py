"""What a run shows while it works and when it ends: a progress bar with one line of numbers, and a table of first, best and last."""

import os
import sys
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

ACCURACY = "eval/greedy_accuracy"
SHOWN = (ACCURACY, "reward", "entropy", "length", "kl", "clip_share", "time/tokens_per_s")  # on the display and in the last table


def wide() -> Console:
    """For tables of many columns: the terminal, and where a file or a pipe has no width, enough of one that no number is cut off."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200)


class Display:
    """A progress bar and one line of numbers in a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, console: Console, steps: int, start: int, title: str, pace_s: float):
        self.console, self.steps, self.pace_s, self._told = console, steps, pace_s, 0.0
        self._live = None
        if console.is_terminal:
            eta = TextColumn("left"), TimeRemainingColumn()
            self._bar = Progress(
                TextColumn(title or "training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *eta, console=console
            )
            self._task = self._bar.add_task("", total=steps, completed=start)
            self._live = Live(self._bar, console=console, refresh_per_second=4)
            self._live.start()

    def step(self, history: list[dict]) -> None:
        step = history[-1]["step"]
        if self._live:
            self._bar.update(self._task, completed=step)
            self._live.update(Group(self._bar, Text(_line(history), style="cyan")))
        elif time.monotonic() - self._told > self.pace_s or step >= self.steps or history[-1].get(ACCURACY) is not None:
            self._told = time.monotonic()
            self.console.print(
                f"step {step}/{self.steps}  {_line(history)}  {_clock(history[-1])}", markup=False, highlight=False, soft_wrap=True
            )

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._live:
            self._live.stop()


def final_table(history: list[dict], title: str, folder: str) -> Table:
    """First, best (accuracy and reward) and last values of what matters."""
    table = Table("", "first", "best", "last", title=title or None, caption=f"{_clock(history[-1])}   {folder}", caption_justify="left")
    for name in SHOWN:
        values = [line[name] for line in history if line.get(name) is not None]
        if values:
            best = _short(max(values)) if name in (ACCURACY, "reward") else ""
            table.add_row(name, _short(values[0]), best, _short(values[-1]))
    return table


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """The last `width` values as eight heights between 0 and the largest of them and 1."""
    top = max(1.0, *values) if values else 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, max(0, int(8 * v / top)))] for v in values[-width:])


def _line(history: list[dict]) -> str:
    parts = []
    for name in SHOWN:
        values = [line[name] for line in history if line.get(name) is not None]
        if values:
            trend = sparkline(values) + " " if name == ACCURACY else ""
            parts.append(f"{name.split('/')[-1].replace('_', ' ')} {trend}{_short(values[-1])}")
    return "  ".join(parts)


def _short(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def _clock(line: dict) -> str:
    seconds = int(line.get("time/total_s", 0))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}" if seconds >= 3600 else f"{seconds // 60}:{seconds % 60:02d}"
