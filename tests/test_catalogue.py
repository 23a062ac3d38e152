"""The catalogue says what the code says, and knows the field."""

import json

import pytest

from jaxcredit import catalogue, cli, credit
from jaxcredit.credit import method_of

KEYS = {"name", "title", "paper", "granularity", "family", "signals", "fidelity", "cost", "reductions", "implemented", "regime", "code"}


@pytest.fixture(scope="module")
def rows():
    return catalogue.methods()


def test_every_estimator_is_in_it_as_its_own_metadata_has_it(rows):
    ours = {r["name"]: r for r in rows if r["implemented"].startswith("jaxcredit.credit.")}
    assert set(ours) == set(credit.__all__)
    for name, row in ours.items():
        method = method_of(getattr(credit, name))
        assert catalogue.find(row["implemented"]) is getattr(credit, name)
        assert (row["paper"], row["granularity"], row["fidelity"]) == (method.paper, method.granularity, method.fidelity)
        assert row["signals"] == list(method.needs) and row["cost"] == method.cost and row["reductions"] == method.reduces
    assert all(set(r) == KEYS for r in rows)


def test_what_lives_elsewhere_is_there(rows):
    for other in catalogue.ELSEWHERE:
        assert callable(catalogue.find(f"jaxcredit.{other.where}")), other.where


def test_the_field_is_in_it_once_and_what_is_not_here_is_marked(rows):
    facts = {m["name"] for m in catalogue.inventory()}
    outside = [r["name"] for r in rows if not r["implemented"]]
    assert len(outside) == len(set(outside)) and set(outside) < facts and len(facts) > 150
    for paper in ("2509.18314", "2505.10978", "2602.16165", "2510.06214", "2412.01928"):
        here = [r for r in rows if r["paper"] == paper]
        assert here and all(r["implemented"] for r in here), paper
    for name in catalogue.NAMES.values():
        assert name in facts and name not in outside, name


def test_a_reader_chooses(rows):
    free = catalogue.choose(rows, needs="none", only=True)
    assert {"grpo", "tempo", "sploo"} <= {r["name"] for r in free} and not any(r["signals"] for r in free)
    turns = catalogue.choose(rows, granularity="turn")
    assert {"gigpo", "hae"} <= {r["name"] for r in turns} and "grpo" not in {r["name"] for r in turns}
    assert [r["name"] for r in catalogue.choose(rows, needs="stratum", only=True)] == ["san"]
    with pytest.raises(ValueError, match="no method has granularity 'turns'; those that are here have: agent"):
        catalogue.choose(rows, granularity="turns")


def test_the_command_prints_json_and_a_table(capsys, monkeypatch):
    cli.main(["methods", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert isinstance(rows, list) and {"name", "paper", "signals"} <= rows[0].keys() and len(rows) > 200
    monkeypatch.setenv("COLUMNS", "170")
    cli.main(["methods", "--here", "--granularity", "agent"])
    table = capsys.readouterr().out
    assert "shapley" in table and "grpo with one agent" in table
