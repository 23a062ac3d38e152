"""Escaping of untrusted text for terminals, Markdown and plots.

Texts of models, data sets, run names and error messages may contain control characters and markup.
"""

import contextlib
import unicodedata
from collections.abc import Iterator

# Cc: ESC, BEL, CR, backspace, the C1 set. Cf: bidirectional overrides, invisible tags.
# Cs: lone surrogates. Zl, Zp: line separators.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# The joiners U+200C and U+200D shape letters of Persian and Indic scripts, and emoji.
_KEPT = {"\n", "\t", "\u200c", "\u200d"}


def visible(text: object, margin: str = "") -> str:
    r"""Text with control characters as escapes (`\x1b`, `\u202e`). Newlines and tabs are kept.

    Args:
        text: the text.
        margin: beginning of every line but the first, which distinguishes the text's lines from the
            program's own output.

    >>> visible("a\x07b")
    'a\\ab'
    """
    return "".join(map(_shown, str(text))).replace("\n", "\n" + margin)


def one_line(text: object, most: int | None = None) -> str:
    r"""Text as one line, with control characters, newlines and tabs as escapes.

    Args:
        text: the text.
        most: largest number of characters; the middle of a longer text is left out.

    >>> one_line("first\nsecond"), one_line("0123456789", most=4)
    ('first\\nsecond', '01 ... 89')
    """
    line = visible(text).replace("\n", "\\n").replace("\t", "\\t")
    if most is None or len(line) <= most:
        return line
    return f"{line[: most - most // 2]} ... {line[len(line) - most // 2 :]}"


def cell(text: object, style: str = ""):
    """One-line rich Text, in which brackets are literal and not markup."""
    from rich.text import Text  # rich is not in the base install

    return Text(one_line(text), style=style)


def markdown(text: object) -> str:
    """Text escaped for one line of Markdown, without links, images, HTML or table cells."""
    return "".join("\\" + c if c in "\\`*_[]<>#!|~&$" else c for c in one_line(text))


def code_span(text: object) -> str:
    """Text as a Markdown code span. Not for table cells, which a bar in the text would end."""
    line = one_line(text)
    runs = [len(run) for run in "".join(c if c == "`" else " " for c in line).split()]
    fence = "`" * next(n for n in range(1, len(runs) + 2) if n not in runs)
    space = " " if line.startswith(("`", " ")) or line.endswith(("`", " ")) or not line else ""
    return f"{fence}{space}{line}{space}{fence}"


@contextlib.contextmanager
def literal_figures() -> Iterator[None]:
    """Context or decorator in which matplotlib renders text literally, not as TeX."""
    import matplotlib

    with matplotlib.rc_context({"text.usetex": False, "text.parse_math": False}):
        yield


def _shown(c: str) -> str:
    if c.isascii() and c.isprintable() or c in _KEPT or unicodedata.category(c) not in _ESCAPED:
        return c
    code = ord(c)
    return {"\r": "\\r", "\b": "\\b", "\a": "\\a"}.get(c) or (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )
