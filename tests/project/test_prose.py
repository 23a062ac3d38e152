"""Docstrings begin with what is computed, and names and prose are in American English."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

FILES = sorted((ROOT / "jaxcredit").rglob("*.py"))
OLD_NAMES = "jaxcredit/train/runs/old_names.py"  # holds the old spellings
# A docstring's first line is a noun phrase or a verb phrase, never a clause with one of these.
QUESTION = re.compile(r"(What|Where|Which|How|Who|Whose|When)\b")
BRITISH = re.compile(
    r"\b\w*(colour|behaviour|favour|neighbour|labell|modell(?!o)|judgement|centre"
    r"|(?:normal|standard|optim|token|initial|serial|recogn|quant|general|summar|util|real|organ)is"
    r"(?:e|ed|es|er|ing|ation)\b)\w*",
    re.I,
)


def documented(path: Path) -> Iterator[tuple[str, str]]:
    """Name and docstring of a module and of its functions and classes."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            if text := ast.get_docstring(node):
                yield getattr(node, "name", "module"), text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_docstring_begins_with_what_is_computed(path):
    wrong = [
        f"{name}: {text.splitlines()[0]}" for name, text in documented(path) if QUESTION.match(text)
    ]
    assert not wrong, "begin with a noun or a verb: the rule for writers in CONTRIBUTING.md"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_american_spelling(path):
    found = [match[0] for match in BRITISH.finditer(path.read_text())]
    assert found == [] or str(path.relative_to(ROOT)) == OLD_NAMES


def test_the_patterns_find_what_they_are_meant_to_find():
    for word in ("normalise", "standardised", "colours", "behaviour", "tokenisation", "centre"):
        assert BRITISH.search(word)
    for word in ("normalize", "promise", "precise", "center", "model", "exercise", "raised"):
        assert not BRITISH.search(word)
    assert QUESTION.match("What a layer asks") and not QUESTION.match("Whole rows")
