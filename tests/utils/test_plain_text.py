import re
import unicodedata

import pytest

from jaxcredit.utils.plain_text import code_span, markdown, one_line, visible

RAW = "\x1b]52;c;aGk=\x07\x1b[2Ja\rb\bc\x00\x7f\x9b31m\u202edcba\u2066x\u2069\u061c\u200e\u2028\u2029\ufeff\ud800\U000e0041"


@pytest.mark.parametrize("show", [visible, one_line, markdown, code_span])
@pytest.mark.parametrize("c", RAW)
def test_no_control_character_is_left(show, c):
    said = show(f"before{c}after")
    assert all(unicodedata.category(x) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for x in said)
    said.encode()
    assert "before" in said and "after" in said


def test_ordinary_text_stays():
    text = "naïve – 数学 ▁▂▃ \\frac{1}{2} שלום [bold]{0}$x$ 👩\u200d🔬 می\u200cخواهم\n\tindented"
    assert visible(text) == text
    assert visible(3.5) == "3.5"


def test_a_newline_forges_no_line():
    assert visible("4\n1  forged\nx", margin="   | ") == "4\n   | 1  forged\n   | x"
    assert one_line("a\nb\tc\r\n") == r"a\nb\tc\r\n"


def test_long_text_keeps_both_ends():
    line = one_line("a" * 500 + "z" * 500, most=100)
    assert line.startswith("a" * 50) and line.endswith("z" * 50) and len(line) == 105


HOSTILE = [
    "`", "``", "a`b``c", " ", "", "|", "a|b", "<script>alert(1)</script>", "**b**", "[x](javascript:1)", "![i](http://x)",
    "&lt;", "a_b_c", "# no", "- [x] done", "$x$", "\\`",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_code_span_ends_where_it_was_meant_to(text):
    span = code_span(text)
    fence = re.match("`+", span)[0]
    inside = span[len(fence) : -len(fence)]
    assert span.endswith(fence)
    assert fence not in re.findall("`+", inside)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_holds_no_live_mark(text):
    said = markdown(text)
    assert not re.search(r"[`*_\[\]<>!|&$]", re.sub(r"\\.", "", said))
    assert re.sub(r"\\(.)", r"\1", said) == text
