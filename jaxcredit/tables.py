"""Tables for terminals of any width: no number or name is cut; what does not fit is split off into further tables, or named."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text

from jaxcredit.plain_text import cell


class Column(NamedTuple):
    """A column. `wraps`: its cells are prose, which may go on in the next line, in at least `least` characters where they are longer.
    `spare`: left out where the width does not suffice, the largest number first; 0: never."""

    title: str
    right: bool = False
    wraps: bool = False
    least: int = 24
    spare: int = 0


class Sheet(JupyterMixin):
    """Rows under columns, for `Console.print`. Text is shown as it is, without markup; only `Text` has a style.

    Where the columns do not fit side by side, spare ones are left out, and a line below the table says which, and `how` to see them. Where
    the rest does not fit either, it is split into tables of some columns each, all with the first `keys` columns. `notes` stand below.
    """

    def __init__(
        self, *columns: Column | str, title: str = "", how: str = "", notes: Sequence[Text] = (), keys: int = 1, lines: bool = False
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
        """The cells without their styles."""
        return [[text.plain for text in row] for row in self.rows]

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """One cell a column."""
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
            needed = sum(self._least(i, 10_000) for i in range(len(self.columns))) + _frame(len(self.columns))
            ways = " or ".join(filter(None, [self.how, f"a terminal of {needed} columns"]))
            yield Text(f"Left out at {width} columns: {names}. To see them: {ways}.")
        yield from self.notes

    def split(self, width: int) -> tuple[list[list[int]], list[int]]:
        """Which columns stand in each table at this width, and which are left out."""
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
        """Characters that a column must have: its longest number or name, its longest word, or the least of its prose. A name longer than
        half of the terminal is broken."""
        column = self.columns[i]
        words = [cell_len(word) for row in self.rows if _prose(row[i], column) for word in row[i].plain.split()]
        whole = [_longest(row[i].plain) for row in self.rows if not _prose(row[i], column)]
        prose = min(self._most(i), column.least) if column.wraps else 0
        title = max(map(cell_len, column.title.split()), default=0)
        return min(max([1, title, prose, *words, *whole]), max(width // 2, 8))

    def _most(self, i: int) -> int:
        return max(_longest(text) for text in [self.columns[i].title, *(row[i].plain for row in self.rows)])

    def _table(self, group: Sequence[int], width: int, title: str) -> Table:
        widths = {i: self._least(i, width) for i in group}
        spare = width - self._needs(group, width)
        growing = sorted((i for i in group if self._most(i) > widths[i]), key=lambda i: self._most(i) - widths[i])
        for n, i in enumerate(growing):  # those that lack least first: what they do not take is for the others
            more = max(0, min(self._most(i) - widths[i], spare // (len(growing) - n)))
            widths[i] += more
            spare -= more
        table = Table(title=cell(title, "table.title") if title else None, title_justify="left", show_lines=self.lines)
        for i in group:
            column = self.columns[i]
            table.add_column(cell(column.title), justify="right" if column.right else "left", width=widths[i], overflow="fold")
        for row, style in zip(self.rows, self.styles, strict=True):
            if len(group) in (len(self.columns), self.keys) or any(row[i].plain for i in group[self.keys :]):
                table.add_row(*(row[i] for i in group), style=style)
        return table


def _prose(text: Text, column: Column) -> bool:
    return column.wraps and not text.no_wrap


def _longest(text: str) -> int:
    """Characters of the longest line."""
    return max(map(cell_len, text.split("\n")))


def _frame(columns: int) -> int:
    """Characters of a table's lines and margins."""
    return 3 * columns + 1
