"""Source of a run: recorded, compared and masked options, and copies of imported files."""

import dataclasses
import functools
import json
import shutil
import sys

import pytest
from micro_experiment import build

from jaxcredit.cli import loading as find
from jaxcredit.cli import main as cli
from jaxcredit.train.runs import config_copies
from jaxcredit.train.runs import source as run_source
from jaxcredit.train.runs.json_values import to_json
from jaxcredit.train.runs.masking import HIDDEN, is_secret, mask_arguments, unmask_arguments

CONFIG = '''
"""The smallest run, with options."""
import dataclasses, functools, os
import optax
import micro_experiment
from jaxcredit import losses

def kl(a, b, *, api_key=None):
    return losses.k3(a, b)

def experiment(steps: int = 2, lr: float = 1e-2, api_key: str = "", seed: int = 0):
    exp = micro_experiment.experiment(steps=steps, seed=seed)
    return dataclasses.replace(exp, optimizer=optax.adam(lr), kl=functools.partial(kl, api_key=api_key or os.environ.get("JUDGE")))
'''


@pytest.fixture(autouse=True)
def one_compile(monkeypatch):
    monkeypatch.setattr("jaxcredit.train.run.build", build)


def train(folder, *words):
    (folder / "secretive.py").write_text(CONFIG)
    cli.main(["train", str(folder / "secretive.py"), "--runs", str(folder), "--run", "r", *words])


def test_options_are_kept_said_when_a_resume_changes_them_and_told_apart_by_compare(
    tmp_path, capsys
):
    train(tmp_path, "--lr", "0.5")
    assert run_source.options(tmp_path / "r") == {"steps": 2, "lr": 0.5, "api_key": "", "seed": 0}
    shutil.copytree(tmp_path / "r", tmp_path / "before")
    capsys.readouterr()
    train(tmp_path, "--steps", "3", "--resume", "auto")
    told = " ".join("".join(capsys.readouterr()).split())
    assert (
        "WARNING: from step 2 on this run has other options: steps: 2 -> 3; lr: 0.5 -> 0.01" in told
    )
    assert "other options" in (tmp_path / "r/hosts/00000.log").read_text()
    made = json.loads((tmp_path / "r/source.json").read_text())
    assert made["changes"] == [{"step": 2, "options": {"steps": [2, 3], "lr": [0.5, 0.01]}}]
    cli.main(
        [
            "compare",
            str(tmp_path / "before"),
            str(tmp_path / "r"),
            "--out",
            str(tmp_path / "both.png"),
        ]
    )
    assert "lr: before 0.5, r 0.01" in capsys.readouterr().out
    train(tmp_path, "--steps", "3", "--resume", "auto")
    assert "WARNING" not in "".join(capsys.readouterr())


def test_options_of_a_run_made_before_their_values_were_kept(tmp_path):
    args = ["--lr", "1e-2", "--seed=3", "--names", "a", "b", "--fast"]
    (tmp_path / "source.json").write_text(
        json.dumps({"config": "c.py", "args": args, "credit": None})
    )
    assert run_source.options(tmp_path) == {
        "lr": "1e-2",
        "seed": "3",
        "names": "a b",
        "fast": "True",
    }
    new = {
        "credit": None,
        "options": {"lr": 0.01, "seed": 4, "names": "a b", "fast": True, "unknown": 5},
    }
    assert run_source.changed_options(tmp_path, new) == {"seed": ("3", 4)}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"args": 3}', '{"options": [], "args": [1]}']
)
def test_a_damaged_source_json_has_no_options(text, tmp_path):
    (tmp_path / "source.json").write_text(text)
    assert run_source.options(tmp_path) == {}


SECRET = [
    "api_key",
    "--api-key",
    "apiKey",
    "OPENAI_API_KEY",
    "token",
    "hf_token",
    "hfToken",
    "password",
    "db.password",
    "client-secret",
]
SECRET += ["credentials", "auth", "Authorization", "key"]
OPEN = [
    "tokenizer",
    "tokens",
    "max_tokens",
    "monkey",
    "keyboard",
    "author",
    "authors",
    "secretary",
    "pad_token",
    "eos-token",
    "lr",
    "monkeys",
]


def test_names_of_credentials():
    assert [name for name in SECRET if not is_secret(name)] == [] and [
        name for name in OPEN if is_secret(name)
    ] == []


def test_credentials_are_masked_in_values():
    def judge(key, text, *, tokenizer="t", limit=3):
        """Only its signature matters."""

    @dataclasses.dataclass
    class Judge:
        name: str
        api_key: str
        headers: dict

    said = json.dumps(
        to_json(
            [
                functools.partial(judge, "S3CRET", "open"),
                Judge("open", "S3CRET", {"Authorization": ["S3CRET"], "n": 1}),
            ]
        )
    )
    assert "S3CRET" not in said and said.count("open") == 2 and said.count(HIDDEN) == 3
    assert to_json({"key": 3, "token": None, "auth": True}) == {
        "key": 3,
        "token": None,
        "auth": True,
    }


def test_credentials_are_masked_in_arguments_and_asked_for_again(monkeypatch):
    words = [
        "--lr",
        "1",
        "--api-key",
        "S3CRET",
        "--token=S3CRET",
        "--keys",
        "S3CRET",
        "S3CRET",
        "--top-key",
        "3",
        "--name",
        "open",
    ]
    hidden = mask_arguments(words)
    assert hidden == [
        HIDDEN if word == "S3CRET" else word.replace("S3CRET", HIDDEN) for word in words
    ]
    with pytest.raises(
        ValueError, match="runs/a was made with --api-key, .* set API_KEY in the environment"
    ):
        unmask_arguments(hidden, "runs/a")
    for name in ("API_KEY", "TOKEN", "KEYS"):
        monkeypatch.setenv(name, "S3CRET")
    assert unmask_arguments(hidden, "runs/a") == words


def test_no_file_of_a_run_holds_a_credential_and_it_opens_when_it_is_given_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("JUDGE", "S3CRET")
    train(tmp_path, "--api-key", "S3CRET", "--steps", "1")
    assert [
        p for p in (tmp_path / "r").rglob("*") if p.is_file() and b"S3CRET" in p.read_bytes()
    ] == []
    with pytest.raises(ValueError, match="set API_KEY in the environment to open the run"):
        find.experiment_of_run(str(tmp_path / "r"))
    monkeypatch.setenv("API_KEY", "S3CRET")
    assert find.experiment_of_run(str(tmp_path / "r")).kl.keywords == {"api_key": "S3CRET"}
    capsys.readouterr()
    train(tmp_path, "--api-key=S3CRET", "--steps", "2", "--resume", "auto")
    assert "S3CRET" not in "".join(capsys.readouterr())


NEIGHBOURS = {
    "main.py": "import helper_n, json, numpy\nfrom pack_n import deep\nimport pack_n.late\ndef experiment(): pass\n",
    "helper_n.py": "def later():\n    import lazy_n\n    return lazy_n.X\nFILE = __file__\n",
    "lazy_n.py": "X = 'old'\n",
    "pack_n/__init__.py": "from . import inner\n",
    "pack_n/inner.py": "from .deep import Y\n",
    "pack_n/deep.py": "Y = 'old'\n",
    "pack_n/late.py": "",
    "pack_n/unused.py": "",
    "json.py": "raise RuntimeError('not this one')\n",
    "unused_n.py": "",
}


@pytest.fixture
def project(tmp_path):
    for name, text in NEIGHBOURS.items():
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(text)
    yield tmp_path / "project"
    for name in [name for name in sys.modules if name.partition(".")[0].endswith("_n")]:
        del sys.modules[name]
    config_copies._finder.copies.clear()


def test_the_files_that_a_config_imports_are_found(project):
    want = {
        "helper_n.py",
        "lazy_n.py",
        "pack_n/__init__.py",
        "pack_n/inner.py",
        "pack_n/deep.py",
        "pack_n/late.py",
    }
    find.module(str(project / "main.py"))
    assert set(config_copies.local_imports(project / "main.py")) == want


@pytest.mark.parametrize("after", ["changed", "gone"])
def test_a_kept_copy_is_imported_in_place_of_a_file_that_is_changed_or_gone(
    after, project, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    find.module(str(project / "main.py"))
    shutil.copy(project / "main.py", run / "config.py")
    config_copies.save_copies(project / "main.py", run)
    if after == "gone":
        shutil.rmtree(project)
        project.mkdir()
    else:
        (project / "lazy_n.py").write_text("X = 'new'\n")
        (project / "pack_n/deep.py").write_text("Y = 'new'\n")
    mod = find.module(str(run / "config.py"), str(project / "main.py"))
    assert (mod.helper_n.later(), mod.pack_n.deep.Y, mod.pack_n.inner.Y) == ("old", "old", "old")
    assert mod.helper_n.FILE == str(project / "helper_n.py")  # data files in its folder are found
    if after == "changed":
        mod = find.module(str(project / "main.py"))
        assert (mod.helper_n.later(), mod.pack_n.deep.Y) == ("new", "new")


ESTIMATOR = '''
from jaxcredit.credit import per_group
from jaxcredit.kernels import center, to_tokens
from jaxcredit.rollout import trajectory_mask, outcome
from scale_n import SCALE

@per_group(granularity="trajectory")
def mine(group, *, scale: float = SCALE):
    """A_i = scale (R_i - mean R)"""
    return scale * to_tokens(center(outcome(group), where=trajectory_mask(group)), group)
'''


def test_the_file_of_an_estimator_is_kept_with_what_it_imports(tmp_path, project, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/estimator.py").write_text(ESTIMATOR)
    (tmp_path / "own/scale_n.py").write_text("SCALE = 2.0\n")
    monkeypatch.chdir(tmp_path)
    train(tmp_path, "--credit", "own/estimator.py:mine", "--steps", "1")
    shutil.rmtree(tmp_path / "own")
    (tmp_path / "secretive.py").unlink()
    monkeypatch.chdir("/")
    exp = find.experiment_of_run(str(tmp_path / "r"))
    assert exp.credit.method.name == "mine"
    assert run_source.options(tmp_path / "r")["--credit"] == "own/estimator.py:mine"
