"""Text that others wrote (models, data sets, run names, error messages), made safe to print: no control sequence, no markup."""

import contextlib
import unicodedata
from collections.abc import Iterator

# Cc: ESC, BEL, CR, backspace, the C1 set. Cf: bidirectional overrides, invisible tags. Cs: lone surrogates. Zl, Zp: line separators.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_KEPT = {"\n", "\t", "\u200c", "\u200d"}  # the joiners shape letters of Persian and Indic scripts, and emoji


def visible(text: object, margin: str = "") -> str:
    r"""The text with control characters written as escapes (`\x1b`, `\u202e`); newlines and tabs stay.

    Every line but the first begins with `margin`, so that a newline inside the text cannot pass for a line of the program's own output.
    """
    return "".join(map(_shown, str(text))).replace("\n", "\n" + margin)


def one_line(text: object, most: int | None = None) -> str:
    r"""Like `visible`, with newlines and tabs as `\n` and `\t` too. Beyond `most` characters the middle is left out."""
    line = visible(text).replace("\n", "\\n").replace("\t", "\\t")
    if most is None or len(line) <= most:
        return line
    return f"{line[: most - most // 2]} ... {line[len(line) - most // 2 :]}"


def cell(text: object, style: str = ""):
    """The text for rich (a table's cell, title or heading, a line of a console): one line, in which brackets are no markup."""
    from rich.text import Text  # the library half runs without rich

    return Text(one_line(text), style=style)


def markdown(text: object) -> str:
    """One line of Markdown that shows the text as it is: no emphasis, link, image, HTML or table cell begins or ends in it."""
    return "".join("\\" + c if c in "\\`*_[]<>#!|~&$" else c for c in one_line(text))


def code_span(text: object) -> str:
    """The text as a Markdown code span, which nothing in it can end; not for cells of tables, where a bar would."""
    line = one_line(text)
    runs = [len(run) for run in "".join(c if c == "`" else " " for c in line).split()]
    fence = "`" * next(n for n in range(1, len(runs) + 2) if n not in runs)
    space = " " if line.startswith(("`", " ")) or line.endswith(("`", " ")) or not line else ""
    return f"{fence}{space}{line}{space}{fence}"


@contextlib.contextmanager
def literal_figures() -> Iterator[None]:
    """Within this block (or a function that it decorates) text in matplotlib's figures is no TeX, whatever the user's settings are."""
    import matplotlib

    with matplotlib.rc_context({"text.usetex": False, "text.parse_math": False}):
        yield


def _shown(c: str) -> str:
    if c.isascii() and c.isprintable() or c in _KEPT or unicodedata.category(c) not in _ESCAPED:
        return c
    code = ord(c)
    return {"\r": "\\r", "\b": "\\b", "\a": "\\a"}.get(c) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )
