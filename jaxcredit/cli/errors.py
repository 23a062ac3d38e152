"""Errors and warnings as the command line prints them: type, message and origin, no traceback."""

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

from jaxcredit.utils.extras import MissingExtra
from jaxcredit.utils.plain_text import visible

OURS = str(Path(__file__).parents[1]) + os.sep
PYTHON = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
INSTALLED = tuple(
    {folder + os.sep for folder in (*PYTHON, *site.getsitepackages(), site.getusersitepackages())}
)


def show(error: BaseException, arguments: Sequence[str] = ()) -> None:
    """Print `explain(error, arguments)` to stderr, with the error's type in red in a terminal."""
    kind, text = type(error).__name__, explain(error, arguments)
    color = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[1;31m{kind}\x1b[0m{text.removeprefix(kind)}" if color else text, file=sys.stderr)


def explain(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """Message of an error for the command line: its type and text, then its origin.

    The origin is the statement in the user's own file that raised the error. If no such file is
    involved, and the text has no word of the command, the origin is the command.

    Args:
        error: the exception.
        arguments: the arguments of `jaxcredit`.
    """
    kind, text = type(error).__name__, _text(error)
    frames = traceback.extract_tb(error.__traceback__)
    user_frames = [f for f in frames if _own(f.filename)]
    lines = [f"{kind}: {text}" if text else kind]
    if isinstance(error, SyntaxError) and error.filename:
        source = (error.text or linecache.getline(error.filename, error.lineno or 0)).strip()
        lines.append(f"at {error.filename}:{error.lineno}" + (f": {source}" if source else ""))
    elif user_frames:
        lines.append(f"at {_place(user_frames[-1])}")
    elif not isinstance(error, MissingExtra) and not _names_argument(text, arguments):
        place = f"at {_place(frames[-1])}, " if frames and not text else ""
        typed = f"jaxcredit {shlex.join(arguments)}"
        lines.append(f"{place}in {typed}; JAXCREDIT_TRACE=1 shows the trace")
    return visible("\n".join([*lines, *getattr(error, "__notes__", ())]), "  ")


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Context in which warnings are printed like errors: type and text.

    With JAXCREDIT_TRACE=1 file and line are printed too.
    """
    previous = warnings.formatwarning

    def plain(message, category, filename, lineno, line=None) -> str:
        place = f" ({filename}:{lineno})" if traced() else ""
        return f"{category.__name__}: {visible(message, '  ')}{place}\n"

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = previous


def traced() -> bool:
    """Whether tracebacks of errors are to be shown (JAXCREDIT_TRACE=1)."""
    return os.environ.get("JAXCREDIT_TRACE", "0") not in ("", "0")


def escape_unencodable(*streams) -> None:
    """Set the streams to write characters outside their encoding as escapes, instead of raising."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def reader_gone(stream) -> bool:
    """Whether the reader of a stream has closed it, as `| head` does."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(
            event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poll.poll(0)
        )
    except (AttributeError, OSError, ValueError):  # no poll here, or no file behind the stream
        return False


def _names_argument(text: str, arguments: Sequence[str]) -> bool:
    """Whether a message names an option or an argument of the command."""
    return "--" in text or any(word in text for word in arguments[1:] if len(word) > 2)


def _text(error: BaseException) -> str:
    """Text of an error without its type."""
    if isinstance(error, SyntaxError):
        return error.msg or ""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    try:
        return str(error).strip()
    except Exception:  # an exception class of the user's whose __str__ raises
        return ""


def _own(file: str) -> bool:
    """Whether a file is the user's: not of this library, of Python or of an installed package."""
    return not file.startswith(("<", OURS, *INSTALLED)) and Path(file).is_file()


def _place(frame: traceback.FrameSummary) -> str:
    """File, line and statement of a frame."""
    file = Path(frame.filename)
    if file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    return f"{file}:{frame.lineno}" + (f": {frame.line}" if frame.line else "")
