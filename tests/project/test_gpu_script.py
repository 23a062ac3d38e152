"""`.ci/gpu`: the dry run, and the results that it keeps of a stage that hangs, dies or reaches its
time limit.
"""

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

PATH = ROOT / ".ci" / "gpu"


def script():
    loader = importlib.machinery.SourceFileLoader("gpu_script", str(PATH))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_script", loader))
    loader.exec_module(module)
    return module


HANGS = """
import signal, sys, time
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
print('{"label": "first", "result": "1 | 2", "ok": true}', flush=True)
if sys.argv[1] == "dies":
    sys.exit("out of memory")
time.sleep(100)
"""


@pytest.mark.parametrize(
    "how, verdict", [("hangs", "cut short"), ("deaf", "cut short"), ("dies", "failed (exit 1)")]
)
def test_a_stage_that_does_not_end_well_keeps_its_results(tmp_path, monkeypatch, how, verdict):
    gpu = script()
    monkeypatch.setattr(gpu, "GRACE", 1)
    report = gpu.Report(tmp_path, True, ".ci/gpu --dry")
    limit = 100 if how == "dies" else 2
    report.stage(
        "speed", [sys.executable, "-c", HANGS, how], dict(os.environ), limit, gpu.lines_of_json
    )
    report.stage(
        "next",
        [sys.executable, "-c", HANGS.replace("time.sleep(100)", ""), "fine"],
        dict(os.environ),
        100,
        gpu.lines_of_json,
    )
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert [result["label"] for result in stages["speed"]["results"]] == ["first"] and not stages[
        "speed"
    ]["ok"]
    assert stages["next"]["ok"] and ("out of memory" in stages["speed"]["tail"]) == (how == "dies")
    text = (tmp_path / "gpu.md").read_text()
    assert verdict in text and "| | first | 1 \\| 2 |  |" in text


def test_outcomes_of_tests_are_read_from_one_process_and_from_many(tmp_path):
    tests: dict = {}
    read, end = script().outcomes(tests)
    lines = (
        "tests/test_a.py::test_x PASSED                [ 50%]",
        "tests/test_a.py::test_x[a b] FAILED           [ 60%]",
        "[gw3] [ 70%] PASSED tests/test_b.py::test_y[1-2] ",
        "[gw0] [ 80%] FAILED tests/test_b.py::test_z ",
        "[gw0] [ 90%] SKIPPED tests/test_b.py::test_w ",
        "FAILED tests/test_b.py::test_z - AssertionError",  # in the summary, already counted
        "0.98s call     tests/test_a.py::test_x",
    )
    failed = [result["label"] for line in lines for result in read(line + "\n")]
    assert failed == ["tests/test_a.py::test_x[a b]", "tests/test_b.py::test_z"]
    assert next(end())["result"] == "2 failed, 2 passed, 1 skipped"


def test_a_test_file_that_does_not_exist_is_an_error():
    gpu = script()
    files = gpu.test_files(gpu.TESTS)
    assert len(files) >= len(gpu.TESTS) and "tests/policy/test_sampler.py" in files
    with pytest.raises(SystemExit, match=r"test_no_such\.py: correct `no_such` in TESTS"):
        gpu.test_files(["kernels", "no_such"])


def test_a_quickstart_that_was_cut_short_is_read(tmp_path):
    gpu = script()
    assert not next(gpu.learned(tmp_path, tmp_path))["ok"]
    (tmp_path / "run").mkdir()
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text('{"step": 0, "time/total')
    assert "warm-up" in next(gpu.learned(tmp_path / "run", tmp_path))["result"]
    step = '{"step": %d, "time/step_s": 0.5, "time/total_s": 9%s}\n'
    metrics.write_text(
        step % (0, ', "eval/greedy_accuracy": 0.2') + step % (1, "") + '{"step": 2, "time/tot'
    )
    result = next(gpu.learned(tmp_path / "run", tmp_path))
    assert (
        result["ok"]
        and result["result"] == "0.200 at step 0, 0.200 at step 0"
        and "0.500 s a step" in result["details"]
    )


def test_only_wheels_of_what_is_lacking_are_installed(tmp_path):
    for name in (
        "numpy-9.9-py3-none-any",
        "No_Such.Thing-1.0-py3-none-any",
        "jaxtyping-9-py3-none-any",
    ):
        (tmp_path / f"{name}.whl").touch()
    assert [path.name for path in script().lacking(tmp_path)] == [
        "No_Such.Thing-1.0-py3-none-any.whl"
    ]


def test_every_file_of_tests_is_there():
    assert all(len([*ROOT.glob(f"tests/*/test_{name}.py")]) == 1 for name in script().TESTS)


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_the_dry_run_passes_every_stage(tmp_path):
    done = subprocess.run(
        [sys.executable, PATH, "--dry", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=1250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert (
        list(facts["stages"]) == ["devices", "attention", "scale", "quickstart", "tests"]
        and facts["dry"]
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "gpu.json",
        "gpu.md",
        "gpu.log",
        "quickstart.jsonl",
    }
    text = (tmp_path / "gpu.md").read_text()
    for stage in facts["stages"].values():
        assert (
            stage["ok"]
            and stage["results"]
            and all(result["label"] in text for result in stage["results"])
        )
    scale = {
        result["label"].split(",")[0].split(" of ")[0]: result
        for result in facts["stages"]["scale"]["results"]
    }
    assert (
        scale["train step"]["of_matmul"] > 0
        and scale["sampling"]["of_bandwidth"] > 0
        and scale["TEMPO"]["copy_s"] > 0
    )
    errors = [result["errors"] for result in facts["stages"]["attention"]["results"]]
    assert len(errors) == 4 and all(
        0 < errors[i][name] < 0.01 for i in range(3) for name in ("out", "dq", "dk", "dv")
    )
