import io
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from run_metrics import metrics_without_times

from jaxcredit.train.runs import plots
from jaxcredit.train.runs.console import sparkline
from jaxcredit.train.runs.json_lines import read_metrics, truncate_after
from jaxcredit.train.runs.json_values import to_json
from jaxcredit.train.runs.metrics import MetricsWriter


def metrics(step):
    return {
        "reward": jnp.float32(np.sin(step)),
        "length": step,
        "solved": jnp.asarray(step % 2 == 0),
    }


def quiet():
    return Console(file=io.StringIO(), width=200)


def play(folder, first, last, start=0, **kwargs):
    with MetricsWriter(
        folder, steps=12, start=start, console=kwargs.pop("console", quiet()), **kwargs
    ) as records:
        for step in range(first, last + 1):
            records.log_samples(step, [{"prompt": "1+1=", "score": float(step)}])
            records.log(step, metrics(step))


def test_one_object_a_step(tmp_path):
    play(tmp_path, 0, 3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]
    assert json.loads(lines[2])["reward"] == float(np.float32(np.sin(2)))
    assert json.loads(lines[2])["solved"] == 1
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 4
    assert {p.name for p in tmp_path.iterdir()} == {
        "metrics.jsonl",
        "samples.jsonl",
        "config.json",
        "tensorboard",
        "curves.png",
    }


@pytest.mark.parametrize(
    "killed_at, restored, tail",
    [(9, 6, ""), (6, 6, ""), (9, 0, ""), (8, 6, '{"step": 9, "rew'), (8, 6, '{"step": 9}')],
)
def test_after_a_kill_the_file_is_that_of_a_run_never_stopped(tmp_path, killed_at, restored, tail):
    play(tmp_path / "whole", 0, 12)
    play(tmp_path / "killed", 0, killed_at)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(tmp_path / "killed" / name, "a") as f:
            f.write(tail)
    play(tmp_path / "killed", restored + 1, 12, start=restored)
    assert metrics_without_times(tmp_path / "killed") == metrics_without_times(tmp_path / "whole")
    assert (tmp_path / "killed/samples.jsonl").read_bytes() == (
        tmp_path / "whole/samples.jsonl"
    ).read_bytes()


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    play(tmp_path / "whole", 0, 12)
    play(tmp_path / "killed", 0, 5)
    play(tmp_path / "killed", 0, 12)
    assert metrics_without_times(tmp_path / "killed") == metrics_without_times(tmp_path / "whole")


def test_metrics_are_fetched_one_step_late_and_at_a_flush(tmp_path):
    with MetricsWriter(tmp_path, steps=3, console=quiet()) as records:
        records.log(1, metrics(1))
        assert read_metrics(tmp_path) == []
        records.log(1, {"eval/greedy_accuracy": 0.5})  # the same step: one line
        records.log(2, metrics(2))
        assert [line["step"] for line in read_metrics(tmp_path)] == [1]
        assert read_metrics(tmp_path)[0]["eval/greedy_accuracy"] == 0.5
        records.flush()
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
        assert records.last["length"] == 2


def test_the_clock_goes_on_and_last_is_known_after_a_resume(tmp_path):
    play(tmp_path, 0, 4)
    before = read_metrics(tmp_path)[-1]["time/total_s"]
    with MetricsWriter(tmp_path, steps=5, start=4, console=quiet()) as records:
        assert records.last["step"] == 4
        records.log(5, metrics(5))
        assert records.last["time/total_s"] >= before


def test_what_json_cannot_say(tmp_path):
    with MetricsWriter(tmp_path, steps=1, console=quiet()) as records:
        records.log(1, {"loss": jnp.nan, "kl": jnp.inf, "fine": 1.5})
        with pytest.raises(ValueError, match=r"one number.*\(3,\)"):
            records.log(2, {"bad": jnp.zeros(3)})
            records.flush()
    assert metrics_without_times(tmp_path)[0] == {"step": 1, "loss": None, "kl": None, "fine": 1.5}


def test_a_failing_run_keeps_what_was_logged(tmp_path):
    with (
        pytest.raises(RuntimeError, match="boom"),
        MetricsWriter(tmp_path, steps=9, console=quiet()) as records,
    ):
        records.log(1, metrics(1))
        raise RuntimeError("boom")
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    assert not (tmp_path / "curves.png").exists()


def test_plain_lines_where_there_is_no_terminal_and_a_table_at_the_end(tmp_path):
    console = quiet()
    with MetricsWriter(tmp_path, steps=30, title="sums", console=console, pace_s=60) as records:
        for step in range(1, 31):
            records.log(
                step,
                {
                    "reward": step / 30,
                    **({"eval/greedy_accuracy": 0.25 * step / 10} if step % 10 == 0 else {}),
                },
            )
    lines = console.file.getvalue().splitlines()
    assert [int(m[1]) for line in lines if (m := re.match(r"step (\d+)/30", line))] == [
        1,
        10,
        20,
        30,
    ]
    assert any("greedy accuracy ▃▅▇ 0.75" in line for line in lines)
    assert any(re.search(r"reward .*0.0333.*1", line) for line in lines)


def test_a_terminal_gets_a_bar(tmp_path):
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    play(tmp_path, 0, 12, console=console, title="sums")
    assert "12/12" in console.file.getvalue()


def test_config_is_readable_and_a_change_is_said(tmp_path):
    import functools

    config = {
        "lr": 1e-3,
        "credit": functools.partial(np.sum, axis=1),
        "array": np.zeros((2, 3)),
        "one": np.float32(2),
        "limit": float("inf"),
    }
    play(tmp_path, 0, 1, config=config)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["config"] == {
        "lr": 1e-3,
        "credit": {"numpy.sum": {"axis": 1}},
        "array": "float64[2, 3]",
        "one": 2.0,
        "limit": "inf",
    }
    assert saved["environment"]["devices"] == 8
    console = quiet()
    play(tmp_path, 2, 3, start=1, config={**config, "lr": 2e-3}, console=console)
    assert "lr: 0.001 -> 0.002" in console.file.getvalue()
    assert to_json({"f": MetricsWriter.log}) == {"f": "MetricsWriter.log"}


def test_cut_leaves_a_missing_file_alone(tmp_path):
    truncate_after(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


def test_sparkline():
    assert sparkline([0, 0.5, 1]) == "▁▅█"
    assert sparkline([0, 5, 10]) == "▁▅█"
    assert len(sparkline(list(range(99)))) == 16


def run_folder(folder, seed, credit, rise):
    with MetricsWriter(
        folder, steps=40, console=quiet(), config={"seed": seed, "credit": credit}
    ) as records:
        for step in range(41):
            records.log(
                step,
                {
                    "reward": step / 40,
                    "tokens": 100,
                    "eval/greedy_accuracy": min(1.0, step * rise + seed / 100),
                },
            )


def test_compare_keeps_other_options_apart(tmp_path):
    for name, args in {
        "a": ["--lr", "1", "--seed", "0"],
        "b": ["--seed=3", "--lr", "1"],
        "c": ["--lr", "2"],
    }.items():
        run_folder(tmp_path / name, 0, "tempo", 0.01)
        (tmp_path / name / "source.json").write_text(json.dumps({"args": args}))
    table, _ = plots.compare([tmp_path / n for n in "abc"], tmp_path / "out.png")
    assert [row[:2] for row in table.texts] == [["a", "2"], ["c", "1"]]


def test_compare_groups_seeds(tmp_path):
    for seed in (0, 1):
        run_folder(tmp_path / f"tempo{seed}", seed, "tempo", 0.045)
        run_folder(tmp_path / f"grpo{seed}", seed, "grpo", 0.02)
    table, picture = plots.compare(sorted(tmp_path.glob("*")), tmp_path / "out" / "compare.png")
    cells = table.texts
    assert [row[:2] for row in cells] == [["grpo0", "2"], ["tempo0", "2"]]
    # tempo: 0.045 s + seed/100 >= 0.9 first at step 20 for both seeds; grpo ends at 0.8 and 0.81
    assert [row[4] for row in cells] == ["not reached", "20"]
    assert cells[0][2] == "0.805 ± 0.0071"
    assert cells[0][5] == "4,100"
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError, match="no metrics.jsonl"):
        plots.compare([tmp_path / "nothing"])
