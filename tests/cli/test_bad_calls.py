"""Bad calls of every command: exit code 1 or 2, no traceback, and a message with cause and fix."""

import dataclasses
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from micro_experiment import build, experiment
from paths import MICRO

from jaxcredit.cli import errors, models
from jaxcredit.cli import main as cli
from jaxcredit.train.experiment import NUMBERS, OR_NONE, POLICY, WARMUP, Warmup


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcredit.train.run.build", build)
        cli.main(["train", MICRO, "--runs", str(folder), "--steps", "1"])
    return folder / "micro"


@pytest.fixture
def refused(capsys, monkeypatch):
    """Function that runs a command, expects an error, and returns its message on one line."""

    def ask(*argv):
        monkeypatch.setattr("jaxcredit.train.run.build", build)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in argv])
        assert stop.value.code in (1, 2), stop.value.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return " ".join((said.err + said.out).split())

    return ask


def words(action) -> list[str]:
    """Invalid values of an option, by its argparse type."""
    kind = getattr(action.type, "__qualname__", "").partition(".")[0]
    return {
        "number": ["-1", "nan", "inf", "x", "", "1e99", "-0.5", "99999999999999999999x"],
        "nonblank": ["", "  "],
        "output_file": ["", ".", "gs://bucket/x.png", "nowhere/at/all.png", "x.xyz"],
        "new_folder": ["", "gs://bucket/x", "tests", "pyproject.toml"],
        "address": ["", "host", "host:", ":80", "host:0", "host:99999", "host:x"],
    }[kind]


OPTIONS = [
    (name, action)
    for name, parser in cli.build_parser()[1].items()
    for action in parser._actions
    if action.nargs != 0 and not action.choices and action.dest != "help"
]


@pytest.mark.parametrize(
    ("command", "action"), OPTIONS, ids=lambda x: x if isinstance(x, str) else x.dest
)
def test_every_value_of_every_option_is_checked(command, action, refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "x").touch()
    (tmp_path / "pyproject.toml").touch()
    for value in words(action):
        if action.option_strings:
            argv = [f"{action.option_strings[0]}={value}", "a", "b"]
        else:
            argv = ["a", value] if action.dest == "folder" else [value, "b"]
        said = refused(command, *argv)
        assert (action.option_strings or [action.metavar or action.dest])[0] in said, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pyproject.toml", "tests"]


FILES = {
    "syntax": ("def experiment(:\n", "syntax.py:1: def experiment(:"),
    "unclosed": ("x = (\n", "unclosed.py:1"),
    "bytes": ("x = '\0'\n", "bytes.py"),
    "undefined": ("foo\n", "undefined.py:1: foo"),
    "assertion": ("assert not\\\n True\n", "AssertionError at"),
    "stop": ("next(iter(()))\n", "stop.py:1: next(iter(()))"),
    "zero": ("def experiment():\n    return 1 / 0\n", "zero.py:2: return 1 / 0"),
    "deep": ("def experiment():\n    return experiment()\n", "RecursionError"),
    "leaves": ("import sys\nsys.exit(0)\n", "leaves.py called sys.exit while it was loaded"),
    "absent": ("import a_module_that_nobody_has\n", "absent.py:1: import a_module_that_nobody_has"),
    "own": (
        "class Mine(Exception):\n    def __str__(self): return 1 / 0\nraise Mine\n",
        "own.py:3: raise Mine",
    ),
    "none": (
        "def experiment():\n    return None\n",
        "none.py returned None: it must return a jaxcredit.train.Experiment",
    ),
    "number": ("experiment = 3\n", "number.py has no function `experiment(...)`"),
    "escape": ("raise ValueError('\\x1b[31mred')\n", "ValueError: \\x1b[31mred"),
}


@pytest.mark.parametrize("what", FILES)
def test_what_is_wrong_in_a_config_is_named_with_its_line(what, refused, tmp_path):
    text, said = FILES[what]
    (tmp_path / f"{what}.py").write_text(text)
    assert said in refused("train", tmp_path / f"{what}.py", "--runs", tmp_path / "runs")
    assert f"{what}.py" in refused("check", f"{tmp_path / what}.py")
    assert not (tmp_path / "runs").exists()


FIELDS = {**NUMBERS, **OR_NONE}
WRONG = {
    "name": None,
    "task": None,
    "tokenizer": None,
    "policy": None,
    "warmup": 3,
    "optimizer": None,
    "credit": None,
    "objective": None,
}
WRONG |= {
    "aggregate": 1,
    "kl": "k3",
    "load_params": 0.5,
    "signals": {"a": None},
    "buckets": (),
    "mesh": {"fsdp": 0},
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_number_of_an_experiment_has_a_range(name):
    allowed = FIELDS[name]
    for value in (
        allowed.least - 1,
        float("nan"),
        float("inf"),
        "1",
        True,
        *([1.5] if allowed.whole else []),
    ):
        with pytest.raises(ValueError, match=f"^{name} = .*: it must be a (whole|finite) number"):
            dataclasses.replace(experiment(), **{name: value}).check()


@pytest.mark.parametrize("name", WARMUP)
def test_every_number_of_a_warmup_has_a_range(name):
    exp = dataclasses.replace(experiment(), warmup=dataclasses.replace(Warmup(), **{name: -1}))
    with pytest.raises(ValueError, match=f"^warmup.{name} = -1: it must be"):
        exp.check()


@pytest.mark.parametrize("name", POLICY)
def test_every_number_of_a_policy_has_a_range(name):
    exp = experiment()
    with pytest.raises(ValueError, match=f"^policy.{name} = -1: it must be"):
        dataclasses.replace(exp, policy=dataclasses.replace(exp.policy, **{name: -1})).check()


@pytest.mark.parametrize("name", WRONG)
def test_a_field_of_another_kind_is_named(name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}"):
        dataclasses.replace(experiment(), **{name: WRONG[name]}).check()


def test_no_number_of_an_experiment_is_left_out():
    kinds = {f.name: f.type for f in dataclasses.fields(experiment())}
    assert {name for name, kind in kinds.items() if kind in (int, float)} == set(NUMBERS)
    assert {name for name, kind in kinds.items() if kind == int | None} == set(OR_NONE)
    assert {f.name for f in dataclasses.fields(Warmup) if f.type in (int, float)} == set(WARMUP)


def test_a_task_without_held_out_problems_is_named():
    exp = experiment()
    with pytest.raises(ValueError, match="task 'micro' has no held-out problems"):
        dataclasses.replace(exp, task=dataclasses.replace(exp.task, test=[])).check()


CALLS = {
    "a seed": (
        ["train", MICRO, "--seed", "-1"],
        "seed = -1: it must be a whole number from 0 to 4294967295",
    ),
    "a large seed": (
        ["train", MICRO, "--seed", "9223372036854775808"],
        "seed = 9223372036854775808: it must be",
    ),
    "steps": (
        ["train", MICRO, "--steps", "-5"],
        "steps = -5: it must be a whole number, 0 or more",
    ),
    "no command": (["--nothing"], "unknown option --nothing: a command comes first"),
    "an option before the command": (["--json", "methods"], "unknown option --json"),
    "a word too many": (["eval", "a", "b"], "unknown argument b: jaxcredit eval has the options"),
    "a process and no job": (
        ["train", MICRO, "--process", "1"],
        "--processes is the number of processes",
    ),
    "a process too far": (
        ["train", MICRO, "--processes", "2", "--process", "2"],
        "--process is the index of this one, from 0",
    ),
    "a family": (["arena", "--family", "Key"], "unknown family 'Key'; known: KeyBranch"),
    "a claim": (["claims", "--family", "nothing"], "--family nothing: no claim about this family"),
    "a model": (["models", "gpt5"], "unknown model gpt5"),
    "a topology": (["plan", MICRO, "--topology", "v9:1"], "v9:1"),
    "a word of the catalogue": (
        ["methods", "--granularity", "tokens"],
        "no method has granularity 'tokens'",
    ),
    "a run that is not there": (["report", "nowhere"], "nowhere is not a run folder"),
    "nothing to sample": (["sample", "nowhere"], "nowhere is not a run folder"),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_bad_call_is_named(what, refused, tmp_path):
    argv, said = CALLS[what]
    assert said in refused(*argv, *(["--runs", tmp_path / "runs"] if argv[0] == "train" else []))
    assert not (tmp_path / "runs").exists()


DAMAGED = [
    "",
    "{}",
    "null",
    "[]",
    "[1]",
    "3",
    "{",
    '{"config": 1, "args": [], "credit": null}',
    '{"config": "a", "args": "b", "credit": null}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_source_is_named(text, run, refused):
    source, before = run / "source.json", (run / "source.json").read_text()
    try:
        source.write_text(text)
        for command in ("eval", "sample", "report", "advise", "export"):
            said = refused(command, run, *(["there"] if command == "export" else []))
            assert f"{source} is damaged" in said and "write {" in said
    finally:
        source.write_text(before)


@pytest.mark.parametrize("command", ["eval", "sample", "report", "advise", "export"])
def test_a_step_that_is_not_there_is_named(command, run, refused, tmp_path):
    said = refused(
        command, run, *([tmp_path / "there"] if command == "export" else []), "--step", "77"
    )
    assert "77" in said and "[0, 1]" in said and not (tmp_path / "there").exists()


def npz(folder, **change):
    """Write x.npz, a file of rollouts with changed arrays."""
    N, R, T = 2, 3, 4
    good = {
        "tokens": np.ones((N, R, T), int),
        "action_mask": np.ones((N, R, T), bool),
        "reward": np.zeros((N, R)),
    }
    np.savez(folder / "x.npz", **{**good, **change})
    return folder / "x.npz"


ROLLOUTS = {
    "empty": b"",
    "text": b"hello\n",
    "half": b"PK\x03\x04" + bytes(40),
    "pickle": b"\x80\x04N.",
}
ARRAYS = {
    "words": {"action_mask": np.full((2, 3, 4), "a")},
    "objects": {"tokens": np.array([None] * 24, object).reshape(2, 3, 4)},
    "floats": {"tokens": np.full((2, 3, 4), np.nan)},
    "scalar": {"reward": np.zeros(())},
    "shapes": {"action_mask": np.ones((2, 3), bool)},
    "infinite": {"reward": np.full((2, 3), np.inf)},
    "nobody": {
        "tokens": np.ones((0, 3, 4), int),
        "action_mask": np.ones((0, 3, 4), bool),
        "reward": np.zeros((0, 3)),
    },
}


@pytest.mark.parametrize("what", [*ROLLOUTS, *ARRAYS])
def test_rollouts_that_cannot_be_read_are_named(what, refused, tmp_path):
    if what in ROLLOUTS:
        (tmp_path / "x.npz").write_bytes(ROLLOUTS[what])
    else:
        npz(tmp_path, **ARRAYS[what])
    assert f"{tmp_path / 'x.npz'}" in refused("advise", tmp_path / "x.npz")


def test_a_zip_that_holds_something_else_is_named(refused, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("tokens", "hello")
    assert "x.npz" in refused("advise", tmp_path / "x.npz")


def test_an_error_that_names_nothing_is_shown_with_the_command(monkeypatch, refused):
    names = {}
    exec("def fails(*_):\n    raise OverflowError", names)  # code without a file
    monkeypatch.setattr(models, "run", names["fails"])
    assert (
        "OverflowError at <string>:2, in jaxcredit models qwen3; JAXCREDIT_TRACE=1 shows"
        in refused("models", "qwen3")
    )
    monkeypatch.setenv("JAXCREDIT_TRACE", "1")
    with pytest.raises(OverflowError):
        cli.main(["models"])
    monkeypatch.setenv("JAXCREDIT_TRACE", "0")
    assert "OverflowError" in refused("models", "qwen3")


def test_a_closed_pipe_is_no_error_message():
    """The reader of a pipe has closed it, as `| head -1` does."""
    command = "from jaxcredit.cli import main as cli; cli.main(['models', '--json'])"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdout.close()
        assert child.stderr.read() == b"" and child.wait() == 1


@pytest.mark.parametrize("stream", ["/dev/full"])
def test_a_full_disk_behind_stdout_is_said_once(stream):
    if not Path(stream).exists():
        pytest.skip(f"{stream} is not here: output to a full disk was NOT tried")
    with open(stream, "w") as full:
        command = "from jaxcredit.cli import main as cli; cli.main(['models', '--json'])"
        said = subprocess.run(
            [sys.executable, "-c", command], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (
        said.returncode == 1
        and said.stderr.count("No space left") == 1
        and "Exception ignored" not in said.stderr
    )


def test_an_encoding_without_the_characters_gets_escapes():
    command = (
        "from jaxcredit.cli import main as cli, models; "
        "models.run = lambda *_: print('\u2581'); cli.main(['models'])"
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    said = subprocess.run([sys.executable, "-c", command], capture_output=True, env=env, text=True)
    assert (said.stdout, said.stderr) == ("\\u2581\n", "")


def test_notes_are_shown():
    error = ValueError("--a")
    error.add_note("and that is why")
    assert errors.explain(error).endswith("and that is why")
