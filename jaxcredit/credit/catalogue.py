"""Catalogue of credit-assignment methods: those implemented here, and others of the literature.

Rows are dicts with the keys of `jaxcredit methods --json`. They join three sources: metadata of the
estimators, `other_methods.py`, and inventory.json, a list of papers.
"""

import difflib
import importlib
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from jaxcredit import credit
from jaxcredit.credit import method_of
from jaxcredit.credit.other_methods import INVENTORY_NAMES, OTHER_METHODS


def methods() -> list[dict[str, Any]]:
    """All methods, the implemented ones first.

    Returns:
        A dict for each method: name, title (its first line), paper (arXiv number), granularity,
        family, signals (names of those it needs), fidelity, cost, reductions, implemented (dotted
        name of the function, or ""), regime and code (of the authors).
    """
    papers = inventory()
    by_key = {_key(paper): paper for paper in papers} | {paper["name"]: paper for paper in papers}
    covered, rows = set(), []
    for name in credit.__all__:
        method = method_of(getattr(credit, name))
        paper = by_key.get(INVENTORY_NAMES.get(name, method.paper), {})
        covered.add(paper.get("name"))
        rows.append(
            {
                "name": name,
                "title": method.summary,
                "paper": method.paper,
                "granularity": method.granularity,
                "family": method.family,
                "signals": list(method.needs),
                "fidelity": method.fidelity,
                "cost": method.cost,
                "reductions": method.reduces_to,
                "implemented": f"jaxcredit.credit.{name}",
                "regime": paper.get("regime", ""),
                "code": paper.get("code", ""),
            }
        )
    for other in OTHER_METHODS:
        paper = by_key.get(INVENTORY_NAMES.get(other.location, other.paper), {})
        covered.add(paper.get("name"))
        own = {
            **other._asdict(),
            "name": other.location.rpartition(".")[2],
            "implemented": f"jaxcredit.{other.location}",
        }
        del own["location"]
        rows.append(_row(paper | {"name": own["name"], "needs": {}}) | own)
    return rows + [_row(paper) for paper in papers if paper["name"] not in covered]


def inventory() -> list[dict[str, Any]]:
    """Entries of inventory.json: a dict for each method of the literature, implemented or not."""
    return json.loads((files("jaxcredit.credit") / "inventory.json").read_text(encoding="utf-8"))


def select(
    rows: Iterable[dict[str, Any]],
    *,
    granularity: str | None = None,
    needs: str | None = None,
    family: str | None = None,
    fidelity: str | None = None,
    implemented: bool = False,
) -> list[dict[str, Any]]:
    """Rows of the catalogue that match all conditions.

    Args:
        rows: rows of `methods`.
        granularity: a unit of credit, such as "turn"; None for any.
        needs: name of a signal, or "none" for methods without signals; None for any.
        family: a folder of estimators, or a kind of other method; None for any.
        fidelity: "paper", "code" or "ours"; None for any.
        implemented: True leaves out methods that are not implemented.

    Raises:
        ValueError: a condition that no row meets; the message lists the values of that column.
    """
    rows = list(rows)
    if implemented:
        rows = [row for row in rows if row["implemented"]]
    for column, value in (
        ("granularity", granularity),
        ("signals", needs),
        ("family", family),
        ("fidelity", fidelity),
    ):
        if value is None:
            continue
        words = {id(row): _words(row, column) for row in rows}
        matches = [row for row in rows if value.lower() in words[id(row)]]
        if not matches:
            known = sorted({word for row in rows if row["implemented"] for word in words[id(row)]})
            raise ValueError(
                f"no method has {column} {value!r}; implemented methods have: {', '.join(known)}"
            )
        rows = matches
    return rows


def by_name(rows: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Rows of the catalogue with a name or arXiv number.

    Raises:
        ValueError: no row has it; the message suggests similar names.
    """
    rows = list(rows)
    matches = [row for row in rows if name.lower() in (row["name"].lower(), row["paper"].lower())]
    if not matches:
        similar = difflib.get_close_matches(name.lower(), [row["name"].lower() for row in rows], 3)
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise ValueError(f"unknown method {name!r}{hint}; `jaxcredit methods` lists all")
    return matches


def resolve(dotted_name: str) -> Any:
    """The object with a dotted name, as in a row's "implemented"."""
    module, _, name = dotted_name.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _row(paper: dict[str, Any]) -> dict[str, Any]:
    """A row for an entry of inventory.json."""
    return {
        "name": paper["name"],
        "title": "",
        "paper": paper.get("paper", ""),
        "granularity": paper.get("granularity", ""),
        "family": paper.get("family", ""),
        "signals": [
            signal if necessity == "yes" else f"{signal} ({necessity})"
            for signal, necessity in paper.get("needs", {}).items()
        ],
        "fidelity": "",
        "cost": "",
        "reductions": "",
        "implemented": "",
        "regime": paper.get("regime", ""),
        "code": paper.get("code", ""),
    }


def _words(row: dict[str, Any], column: str) -> set[str]:
    """Values of a column that a condition of `select` may name, in lower case."""
    if column == "signals":
        return {signal.lower() for signal in row["signals"]} or {"none"}
    text = row[column].lower()
    return {text, *re.split(r"[/+]|\s*\(.*\)|\s+", text)} - {""}


def _key(paper: dict[str, Any]) -> str:
    return paper["paper"] or paper["name"]
