"""Escaping of untrusted text (of models, data sets, run names, error messages) for terminals, Markdown and plots."""

import contextlib
import unicodedata
from collections.abc import Iterator

# Cc: ESC, BEL, CR, backspace, the C1 set. Cf: bidirectional overrides, invisible tags. Cs: lone surrogates. Zl, Zp: line separators.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_KEPT = {
    "\n",
    "\t",
    "\u200c",
    "\u200d",
}  # the joiners shape letters of Persian and Indic scripts, and emoji


def visible(text: object, margin: str = "") -> str:
    r"""Text with control characters written as escapes (`\x1b`, `\u202e`); newlines and tabs are kept.

    `margin` begins every line but the first, so that no line of the text can be mistaken for a line of the program's own output.
    """
    return "".join(map(_shown, str(text))).replace("\n", "\n" + margin)


def one_line(text: object, most: int | None = None) -> str:
    r"""Text as one line: control characters, newlines and tabs are escaped. The middle of a text of over `most` characters is left out."""
    line = visible(text).replace("\n", "\\n").replace("\t", "\\t")
    if most is None or len(line) <= most:
        return line
    return f"{line[: most - most // 2]} ... {line[len(line) - most // 2 :]}"


def cell(text: object, style: str = ""):
    """One-line rich Text, in which brackets are literal and not markup."""
    from rich.text import Text  # rich is not in the base install

    return Text(one_line(text), style=style)


def markdown(text: object) -> str:
    """Text escaped for one line of Markdown: it forms no emphasis, link, image, HTML or table cell."""
    return "".join("\\" + c if c in "\\`*_[]<>#!|~&$" else c for c in one_line(text))


def code_span(text: object) -> str:
    """Text as a Markdown code span, with a fence longer than any in the text. Not for table cells, which a bar would end."""
    line = one_line(text)
    runs = [len(run) for run in "".join(c if c == "`" else " " for c in line).split()]
    fence = "`" * next(n for n in range(1, len(runs) + 2) if n not in runs)
    space = " " if line.startswith(("`", " ")) or line.endswith(("`", " ")) or not line else ""
    return f"{fence}{space}{line}{space}{fence}"


@contextlib.contextmanager
def literal_figures() -> Iterator[None]:
    """Context or decorator in which matplotlib renders text literally, not as TeX, regardless of the user's settings."""
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
