"""Tables at narrow widths: uncut numbers and names, and omitted columns. Progress bars."""

import io
import re
import threading

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from jaxcredit import credit
from jaxcredit.arena import claims, matrix, metrics
from jaxcredit.cli import models as listing
from jaxcredit.credit import catalogue, method_pages
from jaxcredit.tasks import statistics as evaluate
from jaxcredit.utils import progress
from jaxcredit.utils.tables import Column, Sheet


def printed(sheet, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(sheet)
    text = console.file.getvalue()
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    return text


def lines(text: str) -> list[list[str]]:
    """Cells of each printed line of a table's body."""
    return [
        [part.strip() for part in line.strip("│").split("│")]
        for line in text.splitlines()
        if line.startswith("│")
    ]


def columns(text: str) -> list[str]:
    """Text of each column; cells that continue in the next line are one text."""
    tables = re.split(r"(?m)^└.*$", text)
    return [
        " ".join(" ".join(column).split())
        for table in tables
        for column in zip(*lines(table), strict=True)
    ]


def whole(sheet: Sheet, text: str, titles=None) -> None:
    """Every cell is printed in some column without a break."""
    printed_columns = columns(text)
    for i, column in enumerate(sheet.columns):
        for row in sheet.rows:
            if titles is None or column.title in titles:
                cell = " ".join(row[i].plain.split())
                assert any(cell in printed_column for printed_column in printed_columns), cell


def numbers(value: float) -> dict[str, metrics.Interval]:
    return {"versus/asnr": metrics.Interval(value, value - 12.3, value + 1.5e6)}


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_arena_cuts_no_number_and_no_name(width):
    families, names = sorted(matrix.QUICK), sorted(credit.estimators())
    rng = np.random.default_rng(0)
    found = [
        matrix.Cell(f, n, numbers(float(rng.normal() * 10.0 ** rng.integers(-3, 4))))
        for f in families
        for n in names
    ]
    hostile = "needs [bold]brackets[/] \x1b[31mred"
    found[5] = found[5]._replace(numbers={}, reason=hostile)
    text = printed(matrix.table(found), width)
    rows = {
        row[0]: {x for other in lines(text) if other[0] == row[0] for x in other}
        for row in lines(text)
    }
    for cell in found:
        e = cell.numbers.get("versus/asnr")
        assert (f"{e.value:.3g} {e.low:.2g}..{e.high:.2g}" if e else "note 1") in rows[
            cell.estimator
        ]
    assert all(re.search(rf"\b{family}\b", text) for family in families)
    assert "needs [bold]brackets[/] \\x1b[31mred" in text.replace("\n", "") and "…" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_an_arena_of_some_families_says_nothing_of_the_others_estimators(width):
    """Partial tables have no empty rows."""
    found = [matrix.Cell(f, n, numbers(1.0)) for f, names in matrix.QUICK.items() for n in names]
    assert all(any(row[1:]) for row in lines(printed(matrix.table(found), width)))


def listed(sheet, width):
    """Titles that are printed or listed as left out."""
    shown, left_out = sheet.split(width)
    return [sheet.columns[i].title for group in shown for i in group], [
        sheet.columns[i].title for i in left_out
    ]


SHEETS = {
    "methods": lambda: method_pages.table(catalogue.methods()),
    "models": lambda: listing.table(listing.rows()),
}


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("name", SHEETS)
def test_a_list_names_the_columns_that_it_leaves_out(name, width):
    sheet = SHEETS[name]()
    text = printed(sheet, width)
    shown, left_out = listed(sheet, width)
    assert len(sheet.split(width)[0]) == 1 and set(shown) | set(left_out) == {
        c.title for c in sheet.columns
    }
    last = " ".join(text.partition("Left out")[2].split())
    assert all(title in last for title in left_out) and ("--json or a terminal of" in last) == bool(
        left_out
    )
    whole(sheet, text, shown)
    if left_out:  # at the width that the line names, nothing is left out
        needed = int(re.search(r"terminal of (\d+) columns", last)[1])
        assert not sheet.split(needed)[1] and sheet.split(needed - 1)[1]


@pytest.mark.parametrize("width", [80, 120])
def test_claims_are_read_whole(width):
    estimates = [metrics.Interval(v, v - 0.5, v + 0.25) for v in (1.23, 0.987)]
    claim = claims.Claim("TEMPO's branch credit beats GRPO [sic]", "tempo", "grpo")
    finding = claims.Finding(
        claim,
        "2509.18314",
        "KeyBranch",
        (1, 0.5),
        estimates,
        estimates,
        "c_pre",
        [(12, 30), (5, np.inf)],
    )
    sheet = claims.table([finding])
    assert [cell.plain for cell in sheet.rows[0]] == list(claims.rows([finding])[0])
    whole(sheet, printed(sheet, width))


@pytest.mark.parametrize("width", [80, 120])
def test_many_runs_beside_each_other_keep_their_numbers(width):
    runs = {
        f"runs/tempo-{i}, step 240": {
            "greedy_accuracy": evaluate.wilson(17 * i + 3, 128),
            "mixed": 0.123 * i,
        }
        for i in range(7)
    }
    text = printed(evaluate.table(runs), width)
    whole(evaluate.table(runs), text)
    for run, found in runs.items():
        e = found["greedy_accuracy"]
        assert f"{e.value:.3f}  [{e.low:.3f}, {e.high:.3f}]" in text and run.split(",")[0] in text
    assert text.count("greedy_accuracy") == len(evaluate.table(runs).split(width)[0])


def test_a_name_longer_than_the_terminal_is_broken_not_cut():
    sheet = Sheet("run", Column("accuracy", right=True))
    sheet.add_row("runs/" + "x" * 100, "0.5")
    text = printed(sheet, 40)
    assert text.count("x") == 100 and "0.5" in text


def test_the_first_columns_stand_in_every_part():
    sheet = Sheet("world", "cell", *(f"estimator{i}" for i in range(9)), keys=2)
    sheet.add_row("KeyBranch", "c_pre = 1", *(f"{i / 7:.5f}" for i in range(9)))
    sheet.add_row("Twin", "d = 0", *[""] * 4, *(Text(f"first {i}\n2nd") for i in range(5)))
    text = printed(sheet, 60)
    parts = len(sheet.split(60)[0])
    assert parts > 2 and text.count("KeyBranch") == text.count("c_pre = 1") == parts
    assert 0 < text.count("Twin") < parts  # not in partial tables without its numbers
    whole(sheet, text)


def test_styles_come_from_text_alone():
    sheet = Sheet("name")
    sheet.add_row("[red]a[/red]")
    sheet.add_row(Text("b", style="red"))
    assert "[red]a[/red]" in printed(sheet, 40)
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        sheet.add_row("a", "b")


def stream(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def test_progress_is_a_line_every_few_seconds_where_there_is_no_terminal():
    console = stream(False)
    said = threading.Event()
    console.print, real = lambda *a, **k: (real(*a, **k), said.set()), console.print
    with progress.shown("arena", console, pace_s=0.01) as tell:
        tell("Key[bold]Branch", 3, 8)
        assert said.wait(20)
        said.clear()
        assert said.wait(20)  # refreshed without calls
    assert re.search(r"^arena: Key\[bold\]Branch 3 of 8 \(\d+ s\)$", console.file.getvalue(), re.M)
    assert not any(t.name.startswith("progress") for t in threading.enumerate())


def test_progress_in_a_terminal_is_a_bar_that_goes_away():
    console = stream(True)
    with progress.shown("arena", console) as tell:
        tell("KeyBranch", 3, 8)
    assert "arena: KeyBranch" in console.file.getvalue() and "3/8" in console.file.getvalue()
    assert console.file.getvalue().endswith("\x1b[2K")  # the line is empty


def test_progress_that_nobody_can_read_is_left_out():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError("no space left")

        flush = write

    for terminal in (False, True):
        with progress.shown(
            "arena", Console(file=Full(), force_terminal=terminal), pace_s=0.001
        ) as tell:
            tell("KeyBranch", 1, 2)


def test_each_tells_of_every_item():
    from concurrent.futures import ThreadPoolExecutor

    heard = []
    with ThreadPoolExecutor(4) as pool:
        squares = progress.parallel_map(
            pool, lambda x: x * x, range(20), lambda *said: heard.append(said), str
        )
    assert squares == [x * x for x in range(20)] and heard[0] == ("", 0, 20)
    assert sorted(done for _, done, _ in heard) == list(range(21)) and {
        what for what, *_ in heard[1:]
    } == set(map(str, range(20)))
