"""What there is in the field, and what of it is here: the estimators' own metadata beside the facts of an inventory of papers."""

import importlib
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from jaxcredit import credit
from jaxcredit.credit import method_of

# Methods that are no estimators: a label, a reward, an objective, a schedule. Where they live, the paper, what they speak about.
ELSEWHERE: tuple[tuple[str, str, str], ...] = ()

# An estimator whose paper has another number in the inventory, or none: the name it has there.
ALIASES: dict[str, str] = {}

FIDELITY = {"paper": "the paper's formula", "code": "the authors' code", "ours": "our design where sources are silent"}


def methods() -> list[dict[str, Any]]:
    """Every method, ours first: name, title, paper, granularity, family, signals, fidelity, cost, reductions, implemented, code."""
    facts = inventory()
    known = {_key(m): m for m in facts} | {m["name"]: m for m in facts}
    found, rows = set(), []
    for name in credit.__all__:
        method = method_of(getattr(credit, name))
        fact = known.get(ALIASES.get(name, method.paper), {})
        found.add(fact.get("name"))
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
                "reductions": method.reduces,
                "implemented": f"jaxcredit.credit.{name}",
                "regime": fact.get("regime", ""),
                "code": fact.get("code", ""),
            }
        )
    for where, name, text in ELSEWHERE:
        fact = known.get(name, {})
        found.add(fact.get("name"))
        rows.append(_outside(fact | {"name": fact.get("name", name)}) | {"title": text, "implemented": f"jaxcredit.{where}"})
    return rows + [_outside(m) for m in facts if m["name"] not in found]


def inventory() -> list[dict[str, Any]]:
    """Facts about the papers of the field, whether they are here or not."""
    return json.loads((files("jaxcredit") / "inventory.json").read_text(encoding="utf-8"))


def choose(
    rows: Iterable[dict[str, Any]],
    *,
    granularity: str | None = None,
    needs: str | None = None,
    family: str | None = None,
    fidelity: str | None = None,
    only: bool = False,
) -> list[dict[str, Any]]:
    """The rows a reader asked for. `needs` is a signal, or "none"; `only`: those that are here. An unknown word is an error."""
    rows = list(rows)
    if only:
        rows = [r for r in rows if r["implemented"]]
    for column, asked in (("granularity", granularity), ("signals", needs), ("family", family), ("fidelity", fidelity)):
        if asked is None:
            continue
        words = {id(r): _words(r, column) for r in rows}
        kept = [r for r in rows if asked.lower() in words[id(r)]]
        known = sorted({word for r in rows if r["implemented"] for word in words[id(r)]})
        if not kept:
            raise ValueError(f"no method has {column} {asked!r}; those that are here have: {', '.join(known)}")
        rows = kept
    return rows


def table(rows: Iterable[dict[str, Any]], width: int = 120):
    """The catalogue as a rich table; a narrow terminal gets fewer columns, and `--json` always has all."""
    from rich.table import Table

    rows = list(rows)
    here = sum(bool(r["implemented"]) for r in rows)
    what = Table(title=f"{here} methods here, {len(rows) - here} of the field that are not", title_justify="left")
    columns = {  # how a row shows it, and from which width on
        "name": (lambda r: r["name"], 0),
        "paper": (lambda r: r["paper"], 0),
        "granularity": (lambda r: r["granularity"], 0),
        "family": (lambda r: r["family"], 110),
        "needs": (lambda r: ", ".join(r["signals"]) or "-", 0),
        "fidelity": (lambda r: r["fidelity"], 0),
        "cost": (lambda r: r["cost"], 150),
        "reduces to": (lambda r: r["reductions"], 150),
    }
    columns = {name: show for name, (show, least) in columns.items() if width >= least}
    for name in columns:
        what.add_column(name, overflow="fold", no_wrap=name in ("paper", "fidelity"))
    for r in rows:
        what.add_row(*(show(r) for show in columns.values()), style="" if r["implemented"] else "dim")
    return what


def _outside(fact: dict[str, Any]) -> dict[str, Any]:
    """A paper of the inventory, in the catalogue's columns."""
    return {
        "name": fact["name"],
        "title": "",
        "paper": fact.get("paper", ""),
        "granularity": fact.get("granularity", ""),
        "family": fact.get("family", ""),
        "signals": [need if how == "yes" else f"{need} ({how})" for need, how in fact.get("needs", {}).items()],
        "fidelity": "",
        "cost": "",
        "reductions": "",
        "implemented": "",
        "regime": fact.get("regime", ""),
        "code": fact.get("code", ""),
    }


def _words(row: dict[str, Any], column: str) -> set[str]:
    if column == "signals":
        return {s.lower() for s in row["signals"]} or {"none"}
    text = row[column].lower()
    return {text, *re.split(r"[/+]|\s*\(.*\)|\s+", text)} - {""}


def _key(fact: dict[str, Any]) -> str:
    return fact["paper"] or fact["name"]


def find(where: str) -> Any:
    """The object a row's `implemented` names."""
    module, _, name = where.rpartition(".")
    return getattr(importlib.import_module(module), name)
