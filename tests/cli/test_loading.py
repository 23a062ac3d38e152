"""Loading of config files: unique module names, imports from their folder, and other processes."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcredit.cli import loading
from jaxcredit.cli import main as cli

RETURNS = "from pathlib import Path\ndef experiment():\n    return Path\n"
TAKEN = [
    "numpy",
    "typing",
    "random",
    "json",
    "jax",
    "re",
    "dataclasses",
    "types",
    "tests",
    "micro",
    "jaxcredit",
]


@pytest.mark.parametrize("stem", TAKEN)
def test_a_config_takes_no_modules_place(stem, tmp_path):
    before = sys.modules.get(stem)
    (tmp_path / f"{stem}.py").write_text(RETURNS)
    mod = loading.module(str(tmp_path / f"{stem}.py"))
    assert (
        sys.modules.get(stem) is before
        and sys.modules[mod.__name__] is mod
        and mod.__name__ != stem
    )
    assert mod.__file__ == str(tmp_path / f"{stem}.py") and mod.experiment() is Path


def test_files_beside_a_config_shadow_nothing_that_is_installed(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import colorsys, helper_of_mine\nfound = colorsys.rgb_to_hsv, helper_of_mine.x\n"
    )
    (tmp_path / "colorsys.py").write_text(
        "raise SystemExit('the neighbour took the place of the standard library')\n"
    )
    (tmp_path / "helper_of_mine.py").write_text("x = 1\n")
    sys.modules.pop("colorsys", None)
    assert loading.module(str(tmp_path / "mine.py")).found[1] == 1


def test_two_configs_each_import_their_own_neighbour(tmp_path):
    for which in ("a", "b"):
        (tmp_path / which / "pack").mkdir(parents=True)
        (tmp_path / which / "mine.py").write_text(
            "import same_name_beside, pack.inner\nx = same_name_beside.x, pack.inner.x\n"
        )
        (tmp_path / which / "same_name_beside.py").write_text(f"x = {which!r}\n")
        (tmp_path / which / "pack" / "inner.py").write_text(f"x = {which!r}\n")
    for which in ("a", "b", "a"):
        assert loading.module(str(tmp_path / which / "mine.py")).x == (which, which)


def test_dataclasses_and_pickles_of_a_config_work_here_and_in_another_process(tmp_path):
    file = tmp_path / "random.py"
    file.write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass Item:\n    x: 'int' = 3\n"
        "def reward(item):\n    return item.x + 4\n"
    )
    mod = loading.module(str(file))
    sent = pickle.dumps((mod.reward, mod.Item(5)))
    function, item = pickle.loads(sent)
    assert function is mod.reward and item == mod.Item(5)
    load = f"from jaxcredit.cli import loading; loading.module(*{loading.FILES[mod.__name__]!r})"
    child = f"{load}; import pickle; f, x = pickle.loads({sent!r}); print(f(x))"
    said = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
    assert said.stdout == "9\n", said.stderr


def test_a_copy_of_a_config_is_another_module_and_sees_the_place_of_the_first(tmp_path):
    (tmp_path / "first.py").write_text("import pathlib\nsaw = pathlib.Path(__file__).name\n")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "config.py").write_text((tmp_path / "first.py").read_text())
    first = loading.module(str(tmp_path / "first.py"))
    copy = loading.module(str(tmp_path / "copy" / "config.py"), str(tmp_path / "first.py"))
    assert (first.saw, copy.saw) == ("first.py", "first.py") and first.__name__ != copy.__name__
    assert not list(tmp_path.rglob("__pycache__"))


def test_what_a_run_records_of_a_config_names_its_file_and_not_its_place(tmp_path):
    from jaxcredit.train.runs.json_values import to_json

    (tmp_path / "mine.py").write_text("def reward(meta, text, ids):\n    return 1.0\n")
    assert to_json(loading.module(str(tmp_path / "mine.py")).reward) == "mine.reward"


@pytest.fixture
def run(tmp_path):
    """Run folder whose config creates the file `executed` when it is executed."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'executed')!r}).touch()\n"
        "def experiment():\n    pass\n"
    )
    (folder / "source.json").write_text(
        json.dumps({"config": str(folder / "config.py"), "args": [], "credit": None})
    )
    (folder / "config.json").write_text(json.dumps({"config": {"seed": 7, "name": "a\x1b[31m"}}))
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": k, "eval/greedy_accuracy": k / 8, "time/total_s": 3.0}) + "\n"
            for k in range(3)
        )
    )
    return folder


def test_numbers_of_a_run_are_read_without_executing_it(run, tmp_path, capsys):
    before = sorted(path.name for path in run.iterdir())
    cli.main(["report", str(run), "--numbers-only"])
    said = capsys.readouterr().out
    assert "0.25" in said and '"seed": 7' in said and "\x1b" not in said
    cli.main(["compare", str(run), "--out", str(tmp_path / "plot.png")])
    assert (
        not (tmp_path / "executed").exists()
        and sorted(path.name for path in run.iterdir()) == before
    )
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path), "--numbers-only"])
    assert "holds no metrics.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "sample", "report", "advise", "export"])
def test_opening_somebody_elses_run_is_said_and_so_is_that_it_executes(
    command, run, tmp_path, capsys, monkeypatch
):
    argv = [command, str(run), *([str(tmp_path / "out")] if command == "export" else [])]
    for uid in (os.getuid(), os.getuid() + 1):
        monkeypatch.setattr("os.getuid", lambda uid=uid: uid)
        with pytest.raises(SystemExit):
            cli.main(argv)
        said = capsys.readouterr().err
        assert (tmp_path / "executed").exists() and "returned None" in said
        assert ("belongs to another user: its config.py is executed" in said) == (
            uid != (run / "config.py").stat().st_uid
        )
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert "executes its config.py" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '{"config": 3}',
        '{"config": null, "args": 3, "environment": []}',
        "\\xff",
    ],
)
@pytest.mark.parametrize("name", ["config.json", "source.json"])
def test_a_damaged_description_of_a_run_costs_compare_only_what_it_said(
    text, name, run, tmp_path, capsys, recwarn
):
    (run / name).write_text(text)
    cli.main(["compare", str(run), "--out", str(tmp_path / "plot.png")])
    cli.main(["report", str(run), "--numbers-only"])
    assert "mine" in capsys.readouterr().out and (tmp_path / "plot.png").exists()
    told = [str(w.message) for w in recwarn]
    assert (
        told == []
        if text.startswith('{"')
        else all(f"{run / name} is damaged" in t and "--resume auto" in t for t in told) and told
    )


def test_help_joins_continuation_lines_and_keeps_lists(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "a.py").write_text('''
def experiment(steps: int = 3, size: str = "b"):
    """An experiment.

    Args:
      steps: optimizer steps
         after the warm-up
      size: one of
         - a, small
         - b, large
    """
''')
    with pytest.raises(SystemExit):
        loading.experiment(str(tmp_path / "a.py"), ["--help"])
    said = capsys.readouterr().out
    assert "optimizer steps after the warm-up (default: 3)" in said
    lines = [line.strip("│ ") for line in said.splitlines()]
    assert lines[lines.index("- a, small") + 1] == "- b, large (default: b)"
