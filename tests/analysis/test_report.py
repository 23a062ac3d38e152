"""Reports of small runs: every point has an answer or a question, and the numbers are the run's."""

import dataclasses
import io
import json
import re
import unicodedata

import numpy as np
import pytest
from micro_experiment import ITEMS, build, experiment
from paths import MICRO
from rich.console import Console

from jaxcredit.analysis import report
from jaxcredit.cli import main as cli
from jaxcredit.policy.tokenizer import Chars
from jaxcredit.tasks import Task
from jaxcredit.train.runs.history import History
from jaxcredit.train.runs.json_lines import read_metrics
from jaxcredit.train.runs.metrics import MetricsWriter

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcredit.train.run.build", build)
        cli.main(["train", MICRO, "--runs", str(folder)])
        for seed in (1, 2):
            cli.main(
                ["train", MICRO, "--runs", str(folder), "--run", f"seed{seed}", f"--seed={seed}"]
            )
        cli.main(["train", MICRO, "--runs", str(folder), "--run", "rival", "--credit", "grpo"])
        cli.main(
            [
                "report",
                str(folder / "micro"),
                "--prompts",
                "16",
                "--compare-to",
                *(str(folder / n) for n in ("seed1", "seed2", "rival")),
            ]
        )
        alone = folder / "seed1"
        cli.main(["report", str(alone), "--prompts", "0"])
    return folder


def points(path):
    text = (path / "report.md").read_text()
    return {
        int(n): (mark == "x", rest)
        for mark, n, rest in re.findall(
            r"- \[(.)\] \*\*(\d+)\.(.*?)(?=\n- \[|\n## |\Z)", text, re.S
        )
    }


@slow
def test_every_point_is_filled_or_asked(runs):
    for run in ("micro", "seed1"):
        told = points(runs / run)
        assert sorted(told) == list(range(1, 26))
        assert all(done != ("Question:" in text) for done, text in told.values())
        first = (runs / run / "report.md").read_text().splitlines()[2]
        assert first.startswith(f"{sum(done for done, _ in told.values())} of 25")
    full, bare = points(runs / "micro"), points(runs / "seed1")
    for n in (10, 11, 14, 18, 23):
        assert full[n][0], n
    for n in (10, 11, 14, 23):
        assert not bare[n][0], n
    for n in (6, 12, 13, 19):  # no run answers these
        assert not full[n][0], n


@slow
def test_numbers_are_the_runs_own(runs):
    told, lines = points(runs / "micro"), read_metrics(runs / "micro")
    assert "4,256 parameters" in told[7][1] and "seed 0" in told[7][1]
    assert report.data_hash(ITEMS[:48]) in told[8][1] and report.data_hash(ITEMS[48:]) in told[8][1]
    spent = sum(line.get("tokens", 0) for line in lines)
    assert f"{spent:,} tokens sampled" in told[11][1] and f"{spent:,} tokens sampled" in told[21][1]
    assert "| rival | grpo | 0 |" in told[11][1] and "rival (grpo)" in told[10][1]
    accuracy = [
        [
            x["eval/greedy_accuracy"]
            for x in read_metrics(runs / run)
            if "eval/greedy_accuracy" in x
        ][-1]
        for run in ("micro", "seed1", "seed2")
    ]
    assert f"seeds 0, 1, 2: accuracy {np.mean(accuracy):.3f}" in told[14][1]
    assert f"RMS {lines[-1]['credit_rms']:.3g}" in told[17][1]
    assert "16 fresh groups of step 4" in told[18][1]
    answers = [int(n) for n in re.findall(r"\| tokens, \w+ \| (\d+)", told[23][1])]
    assert sum(answers) == 16 * 4
    shown = re.findall(r"reward ([\d.]+) of ([\d.]+) in the group", told[24][1])
    assert len(shown) == 3 and all(float(a) < float(b) for a, b in shown)


@pytest.mark.parametrize(
    "lines, told",
    [
        (
            [{"time/sample_s": 3, "time/update_s": 2, "time/reward_s": 1}] * 2,
            "sampling 6, waiting for the update 4, judging 2",
        ),
        (
            [{"time/sample_s": 3, "time/reward_s": 1}] * 2,
            "sampling and waiting for the update 6, judging 2",
        ),  # made before update_s was measured
        (
            [{"time/sample_s": 3}, {"time/sample_s": 3, "time/update_s": 2}],
            "sampling and waiting for the update 8, judging 0",
        ),
    ],
)
def test_sampling_is_told_from_waiting_only_where_both_were_measured(lines, told):
    history = History([{"step": i, **line} for i, line in enumerate(lines)])
    assert report._seconds(history).startswith(told)


def test_a_report_shows_hostile_text_as_text(tmp_path):
    hostile = "\x1b]52;c;x\x07<script>alert(1)</script>`**b** | [x](y)\n- [x] **99. Forged.**"
    item = {"prompt": hostile[:20] + "ab>", "meta": "ba"}
    exp = dataclasses.replace(
        experiment(),
        name=hostile,
        task=Task(hostile, [item] * 4, [item] * 4, lambda meta, text, ids: 0.0),
        tokenizer=Chars(hostile + "abc>"),
    )
    folder = tmp_path / "r|`[x](y)\x1b[2J"
    with MetricsWriter(
        folder, steps=1, console=Console(file=io.StringIO()), config={"credit": "x|y", "seed": 0}
    ) as records:
        for step in (0, 1):
            records.log(step, {"reward": 0.5})
    text = report.markdown(exp, build(exp), folder)
    assert not [c for c in text if unicodedata.category(c) == "Cc" and c != "\n"]
    assert len(re.findall(r"^- \[", text, re.M)) == 25  # the hostile text adds no point
    code = re.sub(r"(?<!\\)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    assert not re.search(r"(?<!\\)(<script|\[x\]\(y)", code)


def test_a_hash_is_of_the_problems():
    assert report.data_hash(ITEMS) == report.data_hash(json.loads(json.dumps(ITEMS)))
    assert (
        len(
            {
                report.data_hash(x)
                for x in (ITEMS, ITEMS[::-1], ITEMS[1:], [{**ITEMS[0], "meta": "x"}, *ITEMS[1:]])
            }
        )
        == 4
    )
