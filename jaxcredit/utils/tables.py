"""Tables for terminals of any width.

Numbers and names are never cut. Columns that do not fit are left out or moved to further tables.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text

from jaxcredit.utils.plain_text import cell


class Column(NamedTuple):
    """Column of a `Sheet`.

    Attributes:
        title: heading.
        right: align to the right.
        wraps: cells are prose and may be wrapped.
        least: smallest width in characters of longer prose.
        spare: columns with the largest number are left out first if the width does not suffice;
            0: never left out.
    """

    title: str
    right: bool = False
    wraps: bool = False
    least: int = 24
    spare: int = 0


class Sheet(JupyterMixin):
    """Table for `Console.print`. Strings are literal; only cells of type `Text` have a style.

    If the columns do not fit side by side, those with `spare` are left out and listed in a line
    below. If the others do not fit either, they are split into several tables.

    Args:
        columns: columns, or just their titles.
        title: heading of the table.
        how: way to see columns that are left out, such as a command.
        notes: lines printed below.
        keys: number of leading columns that every partial table repeats.
        lines: draw lines between rows.
    """

    def __init__(
        self,
        *columns: Column | str,
        title: str = "",
        how: str = "",
        notes: Sequence[Text] = (),
        keys: int = 1,
        lines: bool = False,
    ):
        self.columns = [c if isinstance(c, Column) else Column(c) for c in columns]
        self.title, self.how, self.notes, self.keys, self.lines = title, how, notes, keys, lines
        self.rows: list[list[Text]] = []
        self.styles: list[str] = []

    @property
    def row_count(self) -> int:
        return len(self.rows)

    @property
    def texts(self) -> list[list[str]]:
        """Cells as strings, without their styles."""
        return [[text.plain for text in row] for row in self.rows]

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """Append a row, with one cell for each column."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns: give one each")
        self.rows.append([x if isinstance(x, Text) else cell(x) for x in cells])
        self.styles.append(style)

    def __rich_console__(self, console, options):
        width = options.max_width
        groups, left_out = self.split(width)
        for i, group in enumerate(groups):
            if i:
                yield Text()
            part = f" ({i + 1} of {len(groups)})" if len(groups) > 1 else ""
            yield self._table(group, width, self.title + part if self.title else "")
        if left_out:
            names = ", ".join(self.columns[i].title for i in left_out)
            needed = sum(self._least(i, 10_000) for i in range(len(self.columns))) + _frame(
                len(self.columns)
            )
            ways = " or ".join(filter(None, [self.how, f"a terminal of {needed} columns"]))
            yield Text(f"Left out at {width} columns: {names}. To see them: {ways}.")
        yield from self.notes

    def split(self, width: int) -> tuple[list[list[int]], list[int]]:
        """Column indices of each partial table at a terminal width, and of columns left out."""
        shown = list(range(len(self.columns)))
        left_out: list[int] = []
        for i in sorted(shown, key=lambda i: -self.columns[i].spare):
            if self.columns[i].spare and self._needs(shown, width) > width:
                shown.remove(i)
                left_out.append(i)
        groups: list[list[int]] = []
        for i in shown[self.keys :]:
            if groups and self._needs([*groups[-1], i], width) <= width:
                groups[-1].append(i)
            else:
                groups.append([*shown[: self.keys], i])
        return groups or [shown], sorted(left_out)

    def _needs(self, group: Sequence[int], width: int) -> int:
        return sum(self._least(i, width) for i in group) + _frame(len(group))

    def _least(self, i: int, width: int) -> int:
        """Minimal width of a column in characters.

        It is the width of the longest number, name or word, and `least` for prose. Names longer
        than half of the terminal are broken.
        """
        column = self.columns[i]
        words = [
            cell_len(word)
            for row in self.rows
            if _prose(row[i], column)
            for word in row[i].plain.split()
        ]
        whole = [_longest(row[i].plain) for row in self.rows if not _prose(row[i], column)]
        prose = min(self._most(i), column.least) if column.wraps else 0
        title = max(map(cell_len, column.title.split()), default=0)
        return min(max([1, title, prose, *words, *whole]), max(width // 2, 8))

    def _most(self, i: int) -> int:
        return max(
            _longest(text) for text in [self.columns[i].title, *(row[i].plain for row in self.rows)]
        )

    def _table(self, group: Sequence[int], width: int, title: str) -> Table:
        widths = {i: self._least(i, width) for i in group}
        spare = width - self._needs(group, width)
        growing = sorted(
            (i for i in group if self._most(i) > widths[i]), key=lambda i: self._most(i) - widths[i]
        )
        for n, i in enumerate(growing):  # smallest need first; the others share what it leaves
            more = max(0, min(self._most(i) - widths[i], spare // (len(growing) - n)))
            widths[i] += more
            spare -= more
        table = Table(
            title=cell(title, "table.title") if title else None,
            title_justify="left",
            show_lines=self.lines,
        )
        for i in group:
            column = self.columns[i]
            table.add_column(
                cell(column.title),
                justify="right" if column.right else "left",
                width=widths[i],
                overflow="fold",
            )
        for row, style in zip(self.rows, self.styles, strict=True):
            if len(group) in (len(self.columns), self.keys) or any(
                row[i].plain for i in group[self.keys :]
            ):
                table.add_row(*(row[i] for i in group), style=style)
        return table


def _prose(text: Text, column: Column) -> bool:
    return column.wraps and not text.no_wrap


def _longest(text: str) -> int:
    """Width of the longest line in characters."""
    return max(map(cell_len, text.split("\n")))


def _frame(columns: int) -> int:
    """Width of a table's lines and margins in characters."""
    return 3 * columns + 1
