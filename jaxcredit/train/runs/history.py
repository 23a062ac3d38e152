"""Metrics of a run as numeric columns, compact enough for runs of a million steps."""

from array import array
from collections.abc import Collection, Iterable, Mapping

import numpy as np


class History:
    """Columns of metrics.jsonl, one for each metric.

    Args:
        lines: mappings with "step" and metrics, in order.
        names: metrics to keep; None: all.

    Attributes:
        first: first line, as a mapping.
        last: last line, as a mapping.
    """

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
        """Values of a metric, one per line; NaN for lines without it."""
        values = np.array(self._columns.get(name, ()), float)
        return np.append(values, np.full(len(self) - len(values), np.nan))

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps that have a value of a metric, and those values."""
        y = self.column(name)
        present = ~np.isnan(y)
        return np.array(self._steps, float)[present], y[present]

    def total(self, name: str) -> float:
        """Sum of a metric over all lines."""
        return float(np.nansum(self.column(name)))
