"""The catalogue agrees with the code, and lists the literature."""

import dataclasses
import inspect
import json

import pytest
from paths import CONFIGS

from jaxcredit import SIGNALS, credit, signals
from jaxcredit.cli import loading as find
from jaxcredit.cli import main as cli
from jaxcredit.credit import catalogue, method_of, method_pages
from jaxcredit.credit.other_methods import INVENTORY_NAMES, OTHER_METHODS
from jaxcredit.policy.tokenizer import Chars
from jaxcredit.tasks import Task

KEYS = {
    "name",
    "title",
    "paper",
    "granularity",
    "family",
    "signals",
    "fidelity",
    "cost",
    "reductions",
    "implemented",
    "regime",
    "code",
}


@pytest.fixture(scope="module")
def rows():
    return catalogue.methods()


def test_every_estimator_is_in_it_as_its_own_metadata_has_it(rows):
    ours = {r["name"]: r for r in rows if r["implemented"].startswith("jaxcredit.credit.")}
    assert set(ours) == set(credit.__all__)
    for name, row in ours.items():
        method = method_of(getattr(credit, name))
        assert catalogue.resolve(row["implemented"]) is getattr(credit, name)
        assert (row["paper"], row["granularity"], row["fidelity"]) == (
            method.paper,
            method.granularity,
            method.fidelity,
        )
        assert (
            row["signals"] == list(method.needs)
            and row["cost"] == method.cost
            and row["reductions"] == method.reduces_to
        )
    assert all(set(r) == KEYS for r in rows)


def test_what_lives_elsewhere_is_there(rows):
    for other in OTHER_METHODS:
        assert callable(catalogue.resolve(f"jaxcredit.{other.location}")), other.location


def test_the_field_is_in_it_once_and_what_is_not_here_is_marked(rows):
    facts = {m["name"] for m in catalogue.inventory()}
    outside = [r["name"] for r in rows if not r["implemented"]]
    assert len(outside) == len(set(outside)) and set(outside) < facts and len(facts) > 150
    for paper in ("2509.18314", "2505.10978", "2602.16165", "2510.06214", "2412.01928"):
        here = [r for r in rows if r["paper"] == paper]
        assert here and all(r["implemented"] for r in here), paper
    for name in INVENTORY_NAMES.values():
        assert name in facts and name not in outside, name


def test_a_reader_chooses(rows):
    free = catalogue.select(rows, needs="none", implemented=True)
    assert {"grpo", "tempo", "sploo"} <= {r["name"] for r in free} and not any(
        r["signals"] for r in free
    )
    turns = catalogue.select(rows, granularity="turn")
    assert {"gigpo", "hae"} <= {r["name"] for r in turns} and "grpo" not in {
        r["name"] for r in turns
    }
    assert [r["name"] for r in catalogue.select(rows, needs="stratum", implemented=True)] == ["san"]
    with pytest.raises(
        ValueError, match="no method has granularity 'turns'; implemented methods have: agent"
    ):
        catalogue.select(rows, granularity="turns")


def test_the_command_prints_json_and_a_table(capsys, monkeypatch):
    cli.main(["methods", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert (
        isinstance(rows, list)
        and {"name", "paper", "signals"} <= rows[0].keys()
        and len(rows) > 200
    )
    monkeypatch.setenv("COLUMNS", "170")
    cli.main(["methods", "--implemented", "--granularity", "agent"])
    table = capsys.readouterr().out
    assert "shapley" in table and "grpo with one agent" in table


def test_one_method_in_full(capsys):
    cli.main(["methods", "tempo"])
    output = capsys.readouterr().out
    assert (
        output.startswith("tempo\n")
        and "A_it = [(R_i - mean R) + V_i,t+1 - V_it]" in output
        and "https://arxiv.org/abs/2509.18314" in output
    )
    assert "grpo with gate=2" in output and "needs: nothing but the answers" in output
    assert "jaxcredit train configs/quickstart.py --credit tempo" in output
    cli.main(["methods", "PPO"])
    assert 'signals={"critic": signals.critic()}' in capsys.readouterr().out
    cli.main(["methods", "2502.01456"])
    output = capsys.readouterr().out
    assert (
        output.startswith("prime\n")
        and "from an annotator of your own" in output
        and "signals.reference()" in output
    )
    with pytest.raises(SystemExit):
        cli.main(["methods", "temp"])
    assert "unknown method 'temp'; did you mean tempo" in capsys.readouterr().err


def test_every_method_has_a_page(rows):
    for row in rows:
        page = method_pages.page(row)
        assert (
            page.startswith(row["name"]) and (row["paper"] in page) and row["implemented"] in page
        ), row["name"]


MAKERS = {name: signal.maker for name, signal in SIGNALS.items() if signal.maker}


@pytest.mark.parametrize("name", MAKERS)
def test_the_line_that_provides_a_signal_provides_it(name):
    names = {
        "signals": signals,
        "task": Task("t", [{"prompt": "a", "meta": 0}], [], lambda meta, text, ids: 0.0),
    }
    made = eval(f"{{{MAKERS[name]}}}", names | {"tokenizer": Chars("a"), "max_new_tokens": 4})
    assert [name in make.provides for make in made.values()] == [True]


def test_every_annotator_of_the_library_is_named_by_its_signal():
    text = " ".join(MAKERS.values())
    made = {
        name
        for name in signals.__all__
        if "provides = (" in inspect.getsource(getattr(signals, name))
    }
    assert made and all(f"signals.{name}(" in text for name in made)


def test_how_many_estimators_run_in_the_quickstart():
    """The README says it: as they are, and with one more line."""
    exp, _ = find.experiment(str(CONFIGS / "quickstart.py"))
    ready, one_line = [], []
    for name in credit.__all__:
        needs = set(method_of(getattr(credit, name)).needs)
        other = dataclasses.replace(exp, credit=getattr(credit, name))
        if needs <= exp.provided():
            ready.append(other.check().credit)
            continue
        with pytest.raises(ValueError, match=f"^{name} needs the signal") as error:
            other.check()
        for signal in needs - exp.provided():
            output = MAKERS.get(signal, f"{signal} ({SIGNALS[signal].meaning})")
            assert output in str(error.value), (name, signal)
        if needs <= exp.provided() | set(MAKERS):
            assert "no annotator" not in str(error.value)
            one_line.append(name)
    assert (len(ready), len(one_line), len(credit.__all__)) == (14, 8, 71)
