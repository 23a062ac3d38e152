"""The metrics of a run as columns of numbers: a run of a million steps fits into memory, and a picture needs a few columns only."""

from array import array
from collections.abc import Collection, Iterable, Mapping

import numpy as np


class History:
    """What the lines of metrics.jsonl hold: all their metrics, or those in `names`; `first` and `last` are whole lines."""

    def __init__(self, lines: Iterable[Mapping], names: Collection[str] | None = None):
        self.first: Mapping = {}
        self.last: Mapping = {}
        self._steps, self._columns = array("d"), {}
        for row, line in enumerate(lines):
            self.first, self.last = self.first or line, line
            self._steps.append(line["step"])
            for name in line if names is None else names:
                if (x := line.get(name)) is None:
                    continue
                column = self._columns.get(name)
                if column is None:
                    column = self._columns[name] = array("d")
                if len(column) < row:
                    column.extend([np.nan] * (row - len(column)))
                column.append(x)

    def __len__(self) -> int:
        return len(self._steps)

    def column(self, name: str) -> np.ndarray:
        """One number a line, NaN where the line has none."""
        said = np.array(self._columns.get(name, ()), float)
        return np.append(said, np.full(len(self) - len(said), np.nan))

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps that have this metric, and its values."""
        y = self.column(name)
        there = ~np.isnan(y)
        return np.array(self._steps, float)[there], y[there]

    def total(self, name: str) -> float:
        """The sum over all lines."""
        return float(np.nansum(self.column(name)))
