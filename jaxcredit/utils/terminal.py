"""Standard output and standard error whose failures do not end a training run.

Closed, full, unread or non-UTF-8 streams lose text instead.
"""

import contextlib
import io
import os
import select
import sys
import warnings
from collections.abc import Iterator

# Longest wait for a stopped terminal or a paused pager, after which text is dropped.
PATIENCE_S = 10.0
CHUNK = 512  # bytes that POSIX lets a ready pipe take without blocking (PIPE_BUF)


def open_closed_streams() -> None:
    """Open the null device in place of closed standard streams.

    Otherwise a file that is opened later would get their descriptors and their text.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(
                sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False)
            )  # noqa: SIM115


@contextlib.contextmanager
def lossy() -> Iterator[None]:
    """Context in which standard output and standard error neither fail nor block for long.

    Text that cannot be written is dropped, with one warning. Characters outside the stream's
    encoding are written as escapes.
    """
    before = sys.stdout, sys.stderr
    after = [
        _lossy(stream, name)
        for stream, name in zip(before, ("standard output", "standard error"), strict=True)
    ]
    sys.stdout, sys.stderr = after
    try:
        yield
    finally:
        for old, new, name in zip(before, after, ("stdout", "stderr"), strict=True):
            if new is not old:
                new.flush()
                if getattr(sys, name) is new:
                    setattr(sys, name, old)
                discard_unwritable(old)


def discard_unwritable(stream) -> None:
    """Flush a stream, or discard its buffer if that fails.

    Otherwise Python would flush it at exit and change the exit code.
    """
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _lossy(stream, name: str):
    try:
        number = stream.fileno()
        with contextlib.suppress(OSError):
            stream.flush()
    except (AttributeError, OSError, ValueError):  # no stream, or one without a file (a notebook)
        return stream
    return io.TextIOWrapper(
        _Lossy(number, name),  # pyright: ignore[reportArgumentType] (raw and written through, as `python -u` does it)
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,
        write_through=True,
    )


class _Lossy(io.FileIO):
    """File descriptor whose writes never raise; text that cannot be written is dropped."""

    def __init__(self, number: int, name: str):
        super().__init__(number, "w", closefd=False)
        self._name, self._lost, self._said = name, False, False

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(data):
                if not self._ready():
                    raise TimeoutError(f"not read for {PATIENCE_S:g} s")
                done += super().write(data[done : done + CHUNK]) or 0
            self._lost = False
        except OSError as error:
            self._lost = True
            self._say(error)
        return len(data)

    def _ready(self) -> bool:
        if not hasattr(select, "poll"):  # Windows
            return True
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        return bool(poll.poll(0 if self._lost else PATIENCE_S * 1000))

    def _say(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            with contextlib.suppress(Warning):  # raised as an error under -W error
                warnings.warn(
                    f"{self._name} failed ({type(error).__name__}: {error}): "
                    "text is lost, the training goes on",
                    stacklevel=2,
                )
