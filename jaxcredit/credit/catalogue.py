"""What there is in the field, and what of it is here: the estimators' own metadata beside the facts of an inventory of papers."""

import difflib
import importlib
import inspect
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any, NamedTuple

from jaxcredit import credit
from jaxcredit.credit import method_of
from jaxcredit.rollout import SIGNALS


class Elsewhere(NamedTuple):
    """A method that is no estimator: a label, a reward, an objective or a schedule."""

    where: str  # below jaxcredit
    paper: str
    granularity: str
    family: str
    fidelity: str
    title: str


ELSEWHERE = (
    Elsewhere(
        "signals.tvm",
        "2407.12863",
        "token",
        "label",
        "paper",
        "TVM: a prefix is worth the share of right answers among those that begin with it.",
    ),
    Elsewhere(
        "signals.ovm",
        "2311.09724",
        "token",
        "label",
        "code",
        "OVM: every token is labelled with its answer's outcome.",
    ),
    Elsewhere(
        "signals.grounded_prm",
        "2510.14942",
        "step",
        "label",
        "code",
        "GroundedPRM: verdicts of a tool and the outcome, backed up a search tree.",
    ),
    Elsewhere(
        "signals.budgets.knapsack",
        "2509.25849",
        "trajectory",
        "schedule",
        "code",
        "Knapsack RL: how many answers each prompt is worth.",
    ),
    Elsewhere(
        "signals.schedules.length_budget",
        "2508.08940",
        "trajectory",
        "schedule",
        "paper",
        "Train long, think short: a budget of tokens that shrinks.",
    ),
    Elsewhere(
        "signals.schedules.noisy_documents",
        "2505.04588",
        "turn",
        "schedule",
        "paper",
        "ZeroSearch: how often a simulated engine answers with noise.",
    ),
    Elsewhere(
        "signals.exposure.controller_loss",
        "2605.11458",
        "token",
        "schedule",
        "ours",
        "ATESD: how much of the reference a teacher may see.",
    ),
    Elsewhere(
        "signals.schedules.retention",
        "2512.15274",
        "token",
        "schedule",
        "paper",
        "PPPO's share of tokens that learn, growing when accuracy stalls.",
    ),
    Elsewhere(
        "rewards.toolrl",
        "2504.13958",
        "trajectory",
        "reward",
        "code",
        "ToolRL: format and how well tool calls match the gold ones.",
    ),
    Elsewhere(
        "rewards.matchtir",
        "2601.10712",
        "turn",
        "reward",
        "paper",
        "MatchTIR: calls assigned to gold calls, turn by turn.",
    ),
    Elsewhere(
        "rewards.kg_path",
        "2601.15160",
        "trajectory",
        "reward",
        "paper",
        "Knowledge-graph paths: how much of the path an answer covers.",
    ),
    Elsewhere(
        "rewards.trust_grpo",
        "2505.17018",
        "trajectory",
        "reward",
        "code",
        "SophiaVL-R1: thinking rewards as far as they can be trusted.",
    ),
    Elsewhere(
        "rewards.trace",
        "2605.07177",
        "trajectory",
        "reward",
        "code",
        "TRACE of HyperEyes: tool costs against the best known way.",
    ),
    Elsewhere(
        "rewards.search_r1",
        "2503.09516",
        "trajectory",
        "reward",
        "code",
        "Search-R1: exact match, format and what was retrieved.",
    ),
    Elsewhere(
        "rewards.reseek",
        "2510.00568",
        "turn",
        "reward",
        "ours",
        "ReSeek: judgements of what was retrieved.",
    ),
    Elsewhere(
        "rewards.re_searcher",
        "2509.26048",
        "turn",
        "reward",
        "ours",
        "RE-Searcher: reflections on each search.",
    ),
    Elsewhere(
        "rewards.adasearch_decision",
        "2512.16883",
        "trajectory",
        "reward",
        "ours",
        "AdaSearch: to search only where one does not know.",
    ),
    Elsewhere(
        "rewards.opagent",
        "2602.13559",
        "step",
        "reward",
        "code",
        "OpAgent: a rule tree over the actions of a browser.",
    ),
    Elsewhere(
        "rewards.adaptive_thinking",
        "2505.20101",
        "trajectory",
        "reward",
        "ours",
        "Adaptive deep reasoning: long or short thinking, by the group's accuracy.",
    ),
    Elsewhere(
        "rewards.overlong",
        "2503.14476",
        "trajectory",
        "reward",
        "code",
        "DAPO's soft punishment of answers that are too long.",
    ),
    Elsewhere(
        "losses.gspo",
        "2507.18071",
        "trajectory",
        "objective",
        "paper",
        "GSPO: one importance ratio a sequence.",
    ),
    Elsewhere(
        "losses.turn_clip",
        "2605.06200",
        "turn",
        "objective",
        "paper",
        "A2TGPO's objective: one ratio a turn, clipped as far as its gain allows.",
    ),
    Elsewhere(
        "losses.scope",
        "2604.10688",
        "trajectory",
        "distillation",
        "paper",
        "SCOPE: right answers by likelihood, wrong ones towards a teacher.",
    ),
    Elsewhere(
        "losses.distill",
        "2605.07177",
        "token",
        "distillation",
        "code",
        "On-policy distillation towards a teacher.",
    ),
    Elsewhere(
        "losses.preferences.dpo",
        "2305.18290",
        "trajectory",
        "objective",
        "paper",
        "DPO: pairs of answers, and their implicit rewards.",
    ),
)
# What an estimator or method is called in the inventory where that knows no number, or another.
NAMES = {
    "lare": "LaRe",
    "siop": "SIOP",
    "slate": "SLATE",
    "treeps_rag": "TreePS-RAG",
    "tp_grpo": "TP-GRPO",
    "mars2": "MARS2",
    "calm": "CALM",
    "signals.grounded_prm": "GroundedPRM",
    "losses.scope": "SCOPE (OPD)",
    "rewards.reseek": "ReSeek",
}


def methods() -> list[dict[str, Any]]:
    """Every method, ours first: name, title, paper, granularity, family, signals, fidelity, cost, reductions, implemented, code."""
    facts = inventory()
    known = {_key(m): m for m in facts} | {m["name"]: m for m in facts}
    found, rows = set(), []
    for name in credit.__all__:
        method = method_of(getattr(credit, name))
        fact = known.get(NAMES.get(name, method.paper), {})
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
                "reductions": method.reduces_to,
                "implemented": f"jaxcredit.credit.{name}",
                "regime": fact.get("regime", ""),
                "code": fact.get("code", ""),
            }
        )
    for other in ELSEWHERE:
        fact = known.get(NAMES.get(other.where, other.paper), {})
        found.add(fact.get("name"))
        said = {
            **other._asdict(),
            "name": other.where.rpartition(".")[2],
            "implemented": f"jaxcredit.{other.where}",
        }
        del said["where"]
        rows.append(_outside(fact | {"name": said["name"], "needs": {}}) | said)
    return rows + [_outside(m) for m in facts if m["name"] not in found]


def inventory() -> list[dict[str, Any]]:
    """Facts about the papers of the field, whether they are here or not."""
    return json.loads((files("jaxcredit.credit") / "inventory.json").read_text(encoding="utf-8"))


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
    for column, asked in (
        ("granularity", granularity),
        ("signals", needs),
        ("family", family),
        ("fidelity", fidelity),
    ):
        if asked is None:
            continue
        words = {id(r): _words(r, column) for r in rows}
        kept = [r for r in rows if asked.lower() in words[id(r)]]
        known = sorted({word for r in rows if r["implemented"] for word in words[id(r)]})
        if not kept:
            raise ValueError(
                f"no method has {column} {asked!r}; those that are here have: {', '.join(known)}"
            )
        rows = kept
    return rows


def named(rows: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Rows of the catalogue with a name or arXiv number."""
    rows = list(rows)
    found = [r for r in rows if name.lower() in (r["name"].lower(), r["paper"].lower())]
    if not found:
        near = difflib.get_close_matches(name.lower(), [r["name"].lower() for r in rows], 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown method {name!r}{hint}; `jaxcredit methods` lists all")
    return found


def page(row: dict[str, Any]) -> str:
    """Full description of a method: formula, signals and how to provide them, paper, command."""
    code = find(row["implemented"]) if row["implemented"] else None
    method = (
        method_of(code) if code and row["implemented"].startswith("jaxcredit.credit.") else None
    )
    lines = (
        [row["name"], "", inspect.getdoc(code) or row["title"]]
        if code
        else [row["name"], "", "not implemented here"]
    )
    facts = {
        "paper": row["paper"]
        and (
            f"https://arxiv.org/abs/{row['paper']}"
            if re.fullmatch(r"\d{4}\.\d{4,5}", row["paper"])
            else row["paper"]
        ),
        "formula from": FIDELITY.get(row["fidelity"], ""),
        "decides for each": row["granularity"],
        "family": row["family"],
        "least group": str(method.min_group_size) if method else "",
        "signals cost": row["cost"],
        "reduces to": row["reductions"],
        "regime": row["regime"],
        "authors' code": row["code"],
        "here": row["implemented"],
    }
    lines += ["", *(f"{name:<18}{text}" for name, text in facts.items() if text), ""]
    if method:
        config = "YOUR_CONFIG.py" if method.needs else "configs/quickstart.py"
        lines += [*_needs(method), "", f"jaxcredit train {config} --credit {row['name']}"]
    elif row["signals"]:
        lines += [f"needs: {', '.join(row['signals'])}"]
    return "\n".join(lines).rstrip()


FIDELITY = {
    "paper": "the paper",
    "code": "its authors' code",
    "ours": "our own design where sources are silent",
}


def _needs(method) -> list[str]:
    """Lines that list the signals of an estimator, each with its annotator."""
    if not method.needs:
        return ["needs: nothing but the answers of a group and their rewards"]
    lines = ["needs:"]
    for name, axes in method.needs.items():
        maker = SIGNALS[name].maker
        how = (
            f"signals={{{maker}}} in the config"
            if maker
            else "an annotator of your own (jaxcredit.signals has none)"
        )
        lines += [
            f"  {name} [N, {axes.replace(' ', ', ')}]: {SIGNALS[name].meaning}",
            f"    from {how}",
        ]
    return lines


def table(rows: Iterable[dict[str, Any]]):
    """The catalogue as a table; a narrow terminal gets fewer columns, and `--json` always has all."""
    from jaxcredit.utils.tables import Column, Sheet

    rows = list(rows)
    here = sum(bool(r["implemented"]) for r in rows)
    columns = {
        Column("name", wraps=True, least=18): lambda r: r["name"],
        Column("paper", wraps=True, least=10): lambda r: r["paper"].replace(":", ": "),
        Column("granularity", wraps=True, least=11): lambda r: r["granularity"].replace("/", " / "),
        Column("family", wraps=True, least=12, spare=2): lambda r: r["family"],
        Column("needs", wraps=True, least=16): lambda r: ", ".join(r["signals"]) or "-",
        Column("fidelity", spare=1): lambda r: r["fidelity"],
        Column("cost", wraps=True, spare=3): lambda r: r["cost"],
        Column("reduces to", wraps=True, spare=4): lambda r: r["reductions"],
    }
    what = Sheet(
        *columns,
        title=f"{here} methods here, {len(rows) - here} of the field that are not",
        how="--json",
    )
    for r in rows:
        what.add_row(
            *(show(r) for show in columns.values()), style="" if r["implemented"] else "dim"
        )
    return what


def _outside(fact: dict[str, Any]) -> dict[str, Any]:
    """A paper of the inventory, in the catalogue's columns."""
    return {
        "name": fact["name"],
        "title": "",
        "paper": fact.get("paper", ""),
        "granularity": fact.get("granularity", ""),
        "family": fact.get("family", ""),
        "signals": [
            need if how == "yes" else f"{need} ({how})"
            for need, how in fact.get("needs", {}).items()
        ],
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
