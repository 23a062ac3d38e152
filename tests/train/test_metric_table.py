"""METRICS has a row for every metric that runs write, and its readers know no other names.

`python tests/train/test_metric_table.py` rewrites docs/metrics.md.
"""

import ast
import dataclasses
import io
import json
import struct
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest
from rich.console import Console

from jaxcredit import signals
from jaxcredit.analysis import report
from jaxcredit.signals import Learned
from jaxcredit.tasks import Task
from jaxcredit.train.experiment import Warmup
from jaxcredit.train.run import run
from jaxcredit.train.runs import console, old_names, plots
from jaxcredit.train.runs.console import Summary, final_table
from jaxcredit.train.runs.json_lines import read_metrics
from jaxcredit.train.runs.metric_table import (
    ANNOTATOR,
    CONSOLE,
    METRICS,
    description,
    lookup,
    panels,
    to_markdown,
)
from jaxcredit.train.runs.tensorboard import Events

pytestmark = pytest.mark.filterwarnings("ignore:after the warm-up no held-out problem is solved")
PAGE = Path(__file__).parents[2] / "docs/metrics.md"


def states(cfg, logprob) -> Learned:
    """Annotator that puts all segments of a group into one state."""
    return Learned(
        init=lambda key, params: {},
        annotate=lambda aux, state, rollout, metas: rollout.with_signals(
            state=jnp.zeros(rollout.segment_mask.shape, jnp.int32)
        ),
    )


states.provides = ("state",)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Metrics of the smallest run, and of a run with every feature that adds metrics."""
    from micro_experiment import ITEMS, experiment, score

    plain, several = experiment(steps=1), experiment(steps=2, beta=0.1, critic=True)
    demos = [{"prompt": item["prompt"], "answer": item["meta"]} for item in ITEMS[:8]]
    several = dataclasses.replace(
        several,
        task=Task("micro", ITEMS[:48], ITEMS[48:], score, demos=demos),
        signals={**several.signals, "strata": signals.strata(), "states": states},
        max_sampling_rounds=2,
        minibatch=2,
        warmup=Warmup(steps=1, batch=4, every=1, until=1.0, optimizer=optax.adam(1e-3)),
    )
    folder = tmp_path_factory.mktemp("metrics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcredit.train.runs.timing.peak_flops", lambda kind: 1e12)
        for name, exp in (("plain", plain), ("several", several)):
            run(exp, folder / name)
    return {
        name: {key for line in read_metrics(folder / name) for key in line} - {"step"}
        for name in ("plain", "several")
    }


def test_every_metric_that_a_run_writes_has_a_row(written):
    assert sorted(name for names in written.values() for name in names if not lookup(name)) == []


def test_every_row_is_written_by_some_run(written):
    names = {
        name if name in METRICS else ANNOTATOR + name.rpartition("/")[2]
        for names in written.values()
        for name in names
    }
    assert sorted(METRICS.keys() - names) == []


def test_rows_are_complete():
    for name, metric in METRICS.items():
        assert metric.unit and metric.meaning and metric.better in ("up", "down", ""), name
        assert metric.meaning[0].isupper() or metric.meaning.startswith(("1 -", "time/")), name
        assert not metric.meaning.endswith("."), name
    assert [name for names in panels().values() for name in names] != []


def test_the_page_is_the_table():
    assert PAGE.read_text() == to_markdown(), "python tests/train/test_metric_table.py rewrites it"


@pytest.mark.parametrize("module", [console, plots, report], ids=lambda module: module.__name__)
def test_readers_name_only_metrics_of_the_table(module):
    """Checked are arguments of look-ups, and strings that begin with "time/" or "eval/"."""
    tree = ast.parse(Path(module.__file__).read_text())
    calls = {"series", "column", "total", "_mean", "_last"}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in calls:
                names |= {a.value for a in node.args if isinstance(a, ast.Constant)}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if (
                node.value.partition("/")[0] in ("time", "eval", "warmup")
                and "/" in node.value[:-1]
            ):
                names.add(node.value)
    assert {name for name in names if isinstance(name, str)} - METRICS.keys() == set()


def test_the_console_shows_the_best_value_in_the_direction_of_the_table(monkeypatch):
    monkeypatch.setitem(METRICS, "length", METRICS["length"]._replace(better="down"))
    summary = Summary(
        {"step": i, "length": length, "reward": -length} for i, length in enumerate((3, 1, 2))
    )
    assert summary.values == {"length": (3, 1, 2), "reward": (-3, -1, -2)}
    table = Console(file=io.StringIO(), width=100)
    table.print(final_table(summary, "", ""))
    assert {"length", "reward"} <= set(CONSOLE) and "kl" not in table.file.getvalue()


def test_tensorboard_has_each_description_once(tmp_path):
    events = Events(tmp_path)
    for step in (1, 2):
        events.step(step, {"kl": 0.5, "my_own": 1.0})
    events.close()
    (file,) = tmp_path.iterdir()
    data, records = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        records.append(data[12 : 12 + size])
        data = data[16 + size :]
    assert [description("kl").encode() in record for record in records] == [False, True, False]


# A line of a run of version 0.1.
OLD = {
    "active": 1.0,
    "clip_share": 0.5,
    "groups_mixed": 0.25,
    "groups_unmixed": 1,
    "partings_alone": 0.1,
    "sampler_gap": 2e-7,
    "sampler_gap_max": 3e-6,
}


def test_metrics_of_old_runs_have_the_new_names(tmp_path):
    lines = [{"step": i, "reward": float(i), **OLD} for i in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = read_metrics(tmp_path)
    assert (
        old_names.METRICS.keys() == OLD.keys() and set(old_names.METRICS.values()) <= METRICS.keys()
    )
    assert [line["clip_fraction"] for line in read] == [0.5] * 3
    assert all(line.keys() - {"step"} <= METRICS.keys() for line in read)
    assert Summary(read).values["clip_fraction"] == (0.5, 0.5, 0.5)
    assert plots.curves(tmp_path).is_file()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "clip_share" in text, "the file itself stays as it is"


if __name__ == "__main__":
    PAGE.write_text(to_markdown())
