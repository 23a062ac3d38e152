"""Text of `jaxcredit methods`: the catalogue as a table, and a page for each method."""

import inspect
import re
from collections.abc import Iterable
from typing import Any

from jaxcredit.credit import method_of
from jaxcredit.credit.catalogue import resolve
from jaxcredit.rollout import SIGNALS

FIDELITY = {
    "paper": "the paper",
    "code": "its authors' code",
    "ours": "our own design where sources are silent",
}


def page(row: dict[str, Any]) -> str:
    """Full description of a method: docstring, metadata, signals with their annotators, command.

    Args:
        row: a row of `catalogue.methods`.
    """
    implementation = resolve(row["implemented"]) if row["implemented"] else None
    is_estimator = row["implemented"].startswith("jaxcredit.credit.")
    method = method_of(implementation) if implementation and is_estimator else None
    text = "not implemented here"
    if implementation:
        text = inspect.getdoc(implementation) or row["title"]
    paper = row["paper"]
    if re.fullmatch(r"\d{4}\.\d{4,5}", paper):
        paper = f"https://arxiv.org/abs/{paper}"
    facts = {
        "paper": paper,
        "formula from": FIDELITY.get(row["fidelity"], ""),
        "credit for each": row["granularity"],
        "family": row["family"],
        "smallest group": str(method.min_group_size) if method else "",
        "signals cost": row["cost"],
        "reduces to": row["reductions"],
        "regime": row["regime"],
        "authors' code": row["code"],
        "implemented as": row["implemented"],
    }
    lines = [row["name"], "", text, ""]
    lines += [f"{name:<18}{value}" for name, value in facts.items() if value]
    if method:
        config = "YOUR_CONFIG.py" if method.needs else "configs/quickstart.py"
        command = f"jaxcredit train {config} --credit {row['name']}"
        lines += ["", *_signals(method), "", command]
    elif row["signals"]:
        lines += ["", f"needs: {', '.join(row['signals'])}"]
    return "\n".join(lines).rstrip()


def table(rows: Iterable[dict[str, Any]]):
    """The catalogue as a `jaxcredit.utils.tables.Sheet`; a narrow terminal gets fewer columns.

    Args:
        rows: rows of `catalogue.methods`. Those that are not implemented are dim.
    """
    from jaxcredit.utils.tables import Column, Sheet

    rows = list(rows)
    implemented = sum(bool(row["implemented"]) for row in rows)
    columns = {
        Column("name", wraps=True, least=18): lambda row: row["name"],
        Column("paper", wraps=True, least=10): lambda row: row["paper"].replace(":", ": "),
        Column("granularity", wraps=True, least=11): lambda row: row["granularity"].replace(
            "/", " / "
        ),
        Column("family", wraps=True, least=12, spare=2): lambda row: row["family"],
        Column("needs", wraps=True, least=16): lambda row: ", ".join(row["signals"]) or "-",
        Column("fidelity", spare=1): lambda row: row["fidelity"],
        Column("cost", wraps=True, spare=3): lambda row: row["cost"],
        Column("reduces to", wraps=True, spare=4): lambda row: row["reductions"],
    }
    title = f"{implemented} methods implemented"
    if implemented < len(rows):
        title += f", {len(rows) - implemented} of the literature not implemented"
    sheet = Sheet(*columns, title=title, how="--json")
    for row in rows:
        cells = (text(row) for text in columns.values())
        sheet.add_row(*cells, style="" if row["implemented"] else "dim")
    return sheet


def _signals(method) -> list[str]:
    """Lines that list the signals of an estimator, each with its annotator."""
    if not method.needs:
        return ["needs: nothing but the answers of a group and their rewards"]
    lines = ["needs:"]
    for name, axes in method.needs.items():
        signal = SIGNALS[name]
        source = (
            f"signals={{{signal.maker}}} in the config"
            if signal.maker
            else "an annotator of your own (jaxcredit.signals has none)"
        )
        shape = ", ".join(["N", *axes.split()])
        lines += [f"  {name} [{shape}]: {signal.meaning}", f"    from {source}"]
    return lines
