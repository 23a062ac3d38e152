"""Progress of long commands on standard error: a bar in a terminal, otherwise lines."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jaxcredit.utils.plain_text import one_line

PACE_S = 5.0  # seconds between lines

T = TypeVar("T")
U = TypeVar("U")
# (current work, number of parts done = 0, number of parts = 0: unknown) -> None
ProgressCallback = Callable[..., None]


def no_progress(what: str, done: int = 0, of: int = 0) -> None:
    """Progress callback without effect."""


@contextlib.contextmanager
def shown(
    title: str, console: Console | None = None, pace_s: float = PACE_S
) -> Iterator[ProgressCallback]:
    """Context with a progress callback, which several threads may call.

    Failures of the output are ignored.

        with progress.shown("arena") as tell:
            cells = matrix.run(tell=tell)

    Args:
        title: the first words of the bar or line.
        console: where to print (default: standard error).
        pace_s: seconds between lines, if there is no terminal.
    """
    console = console or Console(stderr=True)
    make = _Bar if console.is_terminal else _Lines
    try:
        teller = make(title, console, pace_s)
    except (OSError, ValueError):  # a closed stream
        yield no_progress
        return
    try:
        yield teller.tell
    finally:
        with contextlib.suppress(OSError, ValueError):
            teller.close()


def parallel_map(
    pool: Executor,
    work: Callable[[T], U],
    items: Sequence[T],
    tell: ProgressCallback,
    name: Callable[[T], str],
) -> list[U]:
    """Parallel map with progress: `[work(item) for item in items]`.

    Args:
        pool: executor of threads.
        work: function of an item.
        items: the items.
        tell: progress callback, called after each item.
        name: name of an item for the callback.

    Returns:
        Results in the order of the items.
    """
    done = itertools.count(1)
    tell("", 0, len(items))

    def one(item):
        result = work(item)
        tell(name(item), next(done), len(items))
        return result

    return list(pool.map(one, items))


class _Bar:
    """Progress bar with its own refresh thread, which also moves during a long compilation."""

    def __init__(self, title: str, console: Console, _: float):
        self._title, begin = one_line(title), "{task.description}"
        columns = (
            TextColumn(begin, markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
        )
        # Standard output belongs to the command, which may be writing into a file or a pipe.
        self._bar = Progress(
            *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._task = self._bar.add_task(self._title, total=None, count="")
        self._bar.start()

    def tell(self, what: str, done: int = 0, of: int = 0) -> None:
        count = f"{done}/{of}" if of else ""
        name = f"{self._title}: {one_line(what, 40)}" if what else self._title
        self._bar.update(
            self._task, description=name, completed=done, total=of or None, count=count
        )

    def close(self) -> None:
        self._bar.stop()


class _Lines:
    """Thread that prints the progress as a line every `pace_s` seconds."""

    def __init__(self, title: str, console: Console, pace_s: float):
        self._title, self._console, self._pace_s = one_line(title), console, pace_s
        self._state, self._begun, self._over = ("", 0, 0), time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def tell(self, what: str, done: int = 0, of: int = 0) -> None:
        self._state = what, done, of

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._pace_s):
            what, done, of = self._state
            name = f"{self._title}: {one_line(what)}" if what else self._title
            parts = [
                name,
                f"{done} of {of}" if of else "",
                f"({time.monotonic() - self._begun:.0f} s)",
            ]
            try:
                line = " ".join(filter(None, parts))
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            except (OSError, ValueError, SystemExit):  # rich raises SystemExit for a broken pipe
                return
