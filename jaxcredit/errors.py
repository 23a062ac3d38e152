"""Errors as the command line shows them: the kind, the text, and where they came from if the text does not say."""

import contextlib
import linecache
import os
import select
import shlex
import site
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxcredit.extras import MissingExtra
from jaxcredit.plain_text import visible

OURS = str(Path(__file__).parent) + os.sep
PYTHON = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
INSTALLED = tuple({folder + os.sep for folder in (*PYTHON, *site.getsitepackages(), site.getusersitepackages())})


def show(error: BaseException, typed: Sequence[str] = ()) -> None:
    """Print `explain` to stderr, the first word in red where that is a terminal."""
    kind, text = type(error).__name__, explain(error, typed)
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[1;31m{kind}\x1b[0m{text.removeprefix(kind)}" if colour else text, file=sys.stderr)


def explain(error: BaseException, typed: Sequence[str] = ()) -> str:
    """The kind and text of an error; then the statement of the person's own file that raised it, or, if neither the text nor a file of
    theirs tells where it came from, the command that was `typed`."""
    kind, text, frames = type(error).__name__, _text(error), traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if _own(f.filename)]
    lines = [f"{kind}: {text}" if text else kind]
    if isinstance(error, SyntaxError) and error.filename:
        source = (error.text or linecache.getline(error.filename, error.lineno or 0)).strip()
        lines.append(f"at {error.filename}:{error.lineno}" + (f": {source}" if source else ""))
    elif theirs:
        lines.append(f"at {_place(theirs[-1])}")
    elif not isinstance(error, MissingExtra) and not any(word in text for word in ("--", *(word for word in typed[1:] if len(word) > 2))):
        where = f"at {_place(frames[-1])}, " if frames and not text else ""
        lines.append(f"{where}in jaxcredit {shlex.join(typed)}; JAXCREDIT_TRACE=1 shows the trace")
    return visible("\n".join([*lines, *getattr(error, "__notes__", ())]), "  ")


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Within this block a warning is shown as its kind and text, like an error; with JAXCREDIT_TRACE, with its place too."""
    before = warnings.formatwarning

    def plain(message, category, filename, lineno, line=None) -> str:
        place = f" ({filename}:{lineno})" if traced() else ""
        return f"{category.__name__}: {visible(message, '  ')}{place}\n"

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


def traced() -> bool:
    """Whether the person wants to see the trace of an error (JAXCREDIT_TRACE=1)."""
    return os.environ.get("JAXCREDIT_TRACE", "0") not in ("", "0")


def readable(*streams) -> None:
    """Let the streams write what their encoding cannot say as escapes, instead of failing."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def hung_up(stream) -> bool:
    """Whether nobody reads the stream any more, as after `| head`."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call on this system, no such file behind the stream
        return False


def _text(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return error.msg or ""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    try:
        return str(error).strip()
    except Exception:  # an error of the person's own whose text cannot be made
        return ""


def _own(file: str) -> bool:
    """Whether a file is neither this library's, nor Python's, nor installed."""
    return not file.startswith(("<", OURS, *INSTALLED)) and Path(file).is_file()


def _place(frame: traceback.FrameSummary) -> str:
    file = Path(frame.filename)
    file = file.relative_to(here) if file.is_relative_to(here := Path.cwd()) else file
    return f"{file}:{frame.lineno}" + (f": {frame.line}" if frame.line else "")
