"""The command line from end to end on a micro policy, and its messages for wrong calls."""

import json
from pathlib import Path

import pytest
from micro_experiment import build
from paths import CONFIGS, MICRO, ROOT

from jaxcredit import credit
from jaxcredit.cli import loading
from jaxcredit.cli import main as cli
from jaxcredit.credit import method_of


@pytest.fixture(autouse=True)
def one_compile(monkeypatch):
    monkeypatch.setattr("jaxcredit.train.run.build", build)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with two runs of four steps, one with tempo and one with grpo."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcredit.train.run.build", build)
        cli.main(["train", MICRO, "--runs", str(folder), "--steps", "4"])
        cli.main(
            [
                "train",
                MICRO,
                "--runs",
                str(folder),
                "--run",
                "other",
                "--credit",
                "grpo",
                "--seed=1",
            ]
        )
    return folder


def refused(argv, capsys) -> str:
    """Message of a command that must fail without a traceback, on one line."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in argv])
    assert stop.value.code not in (0, None)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return " ".join((said.err + said.out).split())


def test_train_keeps_what_made_it(runs):
    made = json.loads((runs / "other/source.json").read_text())
    given = made.pop("options")
    assert made == {"config": MICRO, "args": ["--seed=1"], "credit": "grpo"}
    assert (given["seed"], given["steps"], given["beta"], len(given)) == (1, 4, 0.0, 7)
    assert (runs / "other/config.py").read_text() == Path(MICRO).read_text()
    config = [
        json.loads((runs / run / "config.json").read_text())["config"] for run in ("micro", "other")
    ]
    assert (
        "tempo" in str(config[0]["credit"])
        and "grpo" in str(config[1]["credit"])
        and config[1]["seed"] == 1
    )


def test_resume_auto_goes_on(runs, capsys):
    cli.main(["train", MICRO, "--runs", str(runs), "--run", "longer", "--steps", "2"])
    cli.main(
        ["train", MICRO, "--runs", str(runs), "--run", "longer", "--steps", "3", "--resume", "auto"]
    )
    assert [
        json.loads(line)["step"]
        for line in (runs / "longer/metrics.jsonl").read_text().splitlines()
    ] == [0, 1, 2, 3]
    assert "holds a run already: go on with --resume auto" in refused(
        ["train", MICRO, "--runs", runs, "--run", "longer"], capsys
    )
    cli.main(
        ["train", MICRO, "--runs", str(runs), "--run", "longer", "--steps", "1", "--overwrite"]
    )
    assert [
        json.loads(line)["step"]
        for line in (runs / "longer/metrics.jsonl").read_text().splitlines()
    ] == [0, 1]


def test_eval(runs, capsys):
    # The numbers of answers and problems are those of training: nothing new is compiled.
    cli.main(["eval", str(runs / "micro"), "--k", "4", "--prompts", "6", "--json"])
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["step"] == 4 and {
        "greedy_accuracy",
        "mean@4",
        "pass@1",
        "pass@2",
        "pass@4",
    } <= set(numbers)
    low, value, high = (numbers["greedy_accuracy"][k] for k in ("low", "value", "high"))
    assert 0 <= low <= value <= high <= 1
    cli.main(["eval", str(runs / "micro"), "--k", "4", "--prompts", "6", "--step", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["step"] == 2
    cli.main(["eval", str(runs / "micro"), "--k", "4", "--prompts", "6"])
    assert "pass@4" in capsys.readouterr().out


@pytest.mark.slow
def test_eval_and_sample_of_a_config_are_of_what_it_begins_with(runs, capsys):
    cli.main(["eval", str(runs / "micro" / "config.py"), "--k", "4", "--prompts", "6", "--json"])
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["step"] == 0 and 0 <= numbers["mean@4"]["value"] <= 1
    cli.main(["sample", str(runs / "micro" / "config.py"), "--n", "1", "--k", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 3
    with pytest.raises(SystemExit):
        cli.main(["eval", str(runs / "micro" / "config.py"), "--step", "2"])
    assert "give a run folder" in capsys.readouterr().err


def test_sample(runs, capsys):
    cli.main(["sample", str(runs / "micro"), "--n", "2", "--k", "4"])
    said = capsys.readouterr().out.splitlines()
    assert [line.endswith(">") and not line.startswith(" ") for line in said] == [
        True,
        False,
        False,
        False,
        False,
    ] * 2
    cli.main(["sample", str(runs / "micro"), "--prompt", "abc>", "--k", "4", "--temperature", "0"])
    prompt, *answers = capsys.readouterr().out.splitlines()
    assert prompt == "abc>" and len(answers) == 4 and len(set(answers)) == 1
    with pytest.raises(SystemExit):
        cli.main(["sample", str(runs / "micro"), "--prompt", "xyz>"])
    assert "character 'x'" in capsys.readouterr().err


def test_export_is_a_folder_that_transformers_loads(runs, tmp_path, capsys):
    cli.main(["export", str(runs / "micro"), str(tmp_path / "out")])
    assert "step 4" in capsys.readouterr().out
    from transformers import AutoConfig, AutoTokenizer

    config, tokenizer = (
        AutoConfig.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (16, 1, 7)
    assert tokenizer("abc>")["input_ids"] == [2, 3, 4, 6] and tokenizer.decode([4, 3, 2]) == "cba"


@pytest.mark.slow
def test_transformers_answers_as_the_run_does(runs, tmp_path, capsys):
    torch = pytest.importorskip(
        "torch",
        reason="torch is not installed: the exported run was NOT compared with transformers' model",
    )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cli.main(["export", str(runs / "micro"), str(tmp_path / "out")])
    capsys.readouterr()
    cli.main(["sample", str(runs / "micro"), "--prompt", "abc>", "--k", "1", "--temperature", "0"])
    ours = capsys.readouterr().out.splitlines()[1].strip()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = torch.tensor([tokenizer("abc>")["input_ids"]])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generate(
        ids, max_new_tokens=4, do_sample=False
    )
    assert tokenizer.decode(theirs[0, 4:], skip_special_tokens=True) == ours


def test_compare(runs, tmp_path, capsys):
    cli.main(
        ["compare", str(runs / "micro"), str(runs / "other"), "--out", str(tmp_path / "both.png")]
    )
    said = capsys.readouterr().out
    assert (
        "micro" in said
        and "other" in said
        and (tmp_path / "both.png").read_bytes()[:4] == b"\x89PNG"
    )


BROKEN = '''
import jax.numpy as jnp
from jaxcredit.credit import per_batch
@per_batch
def leaky(batch):
    """The mean over the batch includes padding, which breaks laws."""
    return batch.logp - batch.logp.mean() + jnp.zeros(batch.action_mask.shape)
'''


@pytest.mark.slow
def test_check_holds_a_file_against_the_laws(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", str(CONFIGS / "my_estimator.py")])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "holds" in said and "broken" not in said
    (tmp_path / "leaky.py").write_text(BROKEN)
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", str(tmp_path / "leaky.py:leaky")])
    assert stop.value.code == 1 and "broken" in capsys.readouterr().out


def test_the_example_estimator_is_short_and_is_what_its_config_trains_with(capsys):
    lines = (CONFIGS / "my_estimator.py").read_text().splitlines()
    exp, _ = loading.experiment(str(CONFIGS / "my_estimator.py"), ["--power", "0.5"])
    assert (
        len(lines) < 30
        and method_of(exp.check().credit).name == "surprise"
        and exp.credit.keywords == {"power": 0.5}
    )


def test_own_data_reads_its_file_wherever_it_is_asked_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exp, _ = loading.experiment(str(CONFIGS / "own_data.py"))
    assert len(exp.check().task.train) + len(exp.task.test) == 500
    item = exp.task.test[0]
    assert (
        exp.task.reward(item["meta"], "".join(sorted(item["prompt"][:-1])), ())
        == 1
        != exp.task.reward(item["meta"], "", ())
    )
    (tmp_path / "config.py").write_text(
        (CONFIGS / "own_data.py").read_text()
    )  # as the run folder keeps it
    again, _ = loading.experiment("config.py", origin=str(CONFIGS / "own_data.py"))
    assert again.task.train == exp.task.train
    (tmp_path / "mine.jsonl").write_text(
        "".join(
            json.dumps(item["meta"]) + "\n" for item in [*exp.task.train[:40], *exp.task.test[:10]]
        )
    )
    mine, _ = loading.experiment(str(CONFIGS / "own_data.py"), ["--data", "mine.jsonl"])
    assert len(mine.task.train) + len(mine.task.test) == 50


@pytest.mark.slow
def test_own_data_learns(tmp_path, monkeypatch):
    from jaxcredit.train import programs
    from jaxcredit.train.runs.json_lines import read_metrics

    monkeypatch.setattr("jaxcredit.train.run.build", programs.build)
    cli.main(["train", str(CONFIGS / "own_data.py"), "--runs", str(tmp_path)])
    accuracy = [
        line["eval/greedy_accuracy"]
        for line in read_metrics(tmp_path / "own_data")
        if "eval/greedy_accuracy" in line
    ]
    assert accuracy[-1] > accuracy[0] + 0.1


MISUSES = {
    "no such config": (
        ["train", "configs/nowhere.py"],
        "no config file configs/nowhere.py; there are:",
    ),
    "no such estimator": (
        ["train", MICRO, "--credit", "temp"],
        "unknown estimator 'temp'; did you mean tempo?",
    ),
    "no such function": (
        ["train", MICRO, "--credit", f"{CONFIGS / 'my_estimator.py'}:surpris"],
        "has no function surpris; those in it: surprise",
    ),
    "a missing signal": (["train", MICRO, "--credit", "san"], "san needs the signal stratum"),
    "a group of one": (["train", MICRO, "--group", "1"], "group_size = 1: sample at least 2"),
    "a misspelt option of a config": (["train", MICRO, "--stepps", "3"], "Perhaps you meant"),
    "a misspelt option of ours": (
        ["train", MICRO, "--credti", "grpo"],
        "unknown option --credti; did you mean --credit?",
    ),
    "an abbreviation": (["train", MICRO, "--over"], "--over"),
    "a value of another type": (["train", MICRO, "--steps", "many"], "steps"),
    "an option of no command": (
        ["eval", "somewhere", "--top", "3"],
        "unknown option --top: jaxcredit eval has the options --help, --k,",
    ),
    "no such command": (["trian", MICRO], "invalid choice: 'trian'"),
    "no run folder": (["eval", "nowhere"], "nowhere is not a run folder (it has no source.json)"),
    "a run without metrics": (["compare", "nowhere"], "nowhere holds no metrics.jsonl"),
    "a profile that ends before it begins": (
        ["train", MICRO, "--profile", "13:10"],
        "--profile 13:10: give the steps to trace as FIRST:LAST",
    ),
    "a config that is no Python": (
        ["train", str(ROOT / "README.md")],
        "README.md is not a Python file: its name must end in .py",
    ),
    "a config without a function": (
        ["train", str(ROOT / "tests/conftest.py")],
        "has no function `experiment(...)`",
    ),
}


@pytest.mark.parametrize("what", MISUSES)
def test_a_misuse_is_named_before_any_device_work(what, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("jaxcredit.train.run.build", lambda exp: pytest.fail("programs were built"))
    argv, message = MISUSES[what]
    argv = [*argv, "--runs", tmp_path] if argv[0] == "train" else argv
    assert message in refused(argv, capsys)
    assert not list(tmp_path.iterdir())


def test_an_error_in_device_work_is_shown_without_a_trace(capsys, monkeypatch, tmp_path):
    import jax

    def full(exp):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr("jaxcredit.train.run.build", full)
    assert "RESOURCE_EXHAUSTED" in refused(["train", MICRO, "--runs", tmp_path], capsys)
    monkeypatch.setenv("JAXCREDIT_TRACE", "1")
    with pytest.raises(jax.errors.JaxRuntimeError):
        cli.main(["train", MICRO, "--runs", str(tmp_path / "b")])


def test_help_teaches(capsys):
    cli.main([])
    assert "jaxcredit train configs/quickstart.py" in capsys.readouterr().out
    for argv in (["train"], ["train", "--help"]):
        cli.main(argv)
        assert "--resume" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", MICRO, "--help"])
    said = capsys.readouterr().out
    assert (
        stop.value.code == 0
        and "--resume" in said
        and "--steps INT" in said
        and "three letters backward" in said
    )


def test_every_estimator_is_found_by_its_name():
    assert [loading.estimator(name) for name in credit.__all__] == [
        getattr(credit, name) for name in credit.__all__
    ]
