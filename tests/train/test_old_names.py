"""Run folders of version 0.1: configs with the old import paths and names, options under their old
names.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from paths import ROOT

from jaxcredit.train.runs import old_names

# A config as version 0.1 had it; its estimator uses the old names of kernels and fields.
CONFIG = """
import optax
from jaxcredit import credit, mesh, signals
from jaxcredit.credit import per_group
from jaxcredit.experiment import Experiment, Warmup
from jaxcredit.kernels import masked_mean, spread, standardise
from jaxcredit.plan import Unread
from jaxcredit.policy import presets
from jaxcredit.rollout import alive, outcome
from jaxcredit.signals.decision import decision, unsure
from jaxcredit.tasks import Task
from jaxcredit.tokenize import Chars


@per_group(granularity="token")
def own(group):
    better = standardise(outcome(group), where=alive(group))
    return spread(better, group) * masked_mean(group.logp, group.mask) * group.real.any()


def experiment(steps: int = 2, group: int = 4) -> Experiment:
    items = [{"prompt": f"{i}>", "meta": str(i)} for i in range(8)]
    return Experiment(
        name="old", task=Task("old", items, items[:4], lambda meta, text, ids: float(meta == text)),
        tokenizer=Chars("01234567>"), policy=presets.micro(11, width=16, layers=1, heads=2),
        credit=own, optimizer=optax.adam(1e-2), prompts=4, group=group, buckets=(4,), new=2, micro=2,
        resample=2, skips=3, keep=1, ahead=False, weights=None, rules=mesh.fsdp_tensor, sampling=mesh.settled,
        mesh=mesh.sizes({"fsdp": 1}, 1), steps=steps,
    )
"""


def test_a_run_folder_of_version_0_1_opens(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    source = {
        "config": str(tmp_path / "gone" / "config.py"),
        "args": ["--group", "3"],
        "credit": None,
    }
    (tmp_path / "source.json").write_text(json.dumps(source))
    code = f"""
        import jax
        from jaxcredit.cli import loading
        from jaxcredit.credit import laws
        exp = loading.experiment_of_run({str(tmp_path)!r}).check()
        assert (exp.prompts_per_step, exp.group_size, exp.max_new_tokens, exp.micro_batch) == (4, 3, 2, 2)
        assert (exp.max_sampling_rounds, exp.max_skipped_steps, exp.max_to_keep) == (2, 3, 1)
        print(exp.credit(laws.synthetic(0)).shape)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and done.stdout.startswith("("), done.stderr


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("from jaxcredit.experiment import Experiment", "is now jaxcredit.train.experiment"),
        ("import jaxcredit.tokenize", "is now jaxcredit.policy.tokenizer"),
        ("from jaxcredit.kernels import standardise", "standardise is now standardize"),
        ("from jaxcredit.signals.macro import randomised", "randomised is now randomized"),
    ],
)
def test_a_config_with_an_old_import_is_told_the_new_one(tmp_path, line, hint):
    (tmp_path / "old.py").write_text(line)
    code = f"from jaxcredit.cli.main import main; main(['train', {str(tmp_path / 'old.py')!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.returncode == 1 and f"{tmp_path / 'old.py'}: " in done.stderr and hint in done.stderr
    )


@pytest.mark.parametrize("old", old_names.MODULES)
def test_every_old_module_has_a_new_one(old):
    assert (
        Path(old_names.__file__).parents[2] / f"{old_names.MODULES[old].replace('.', '/')}.py"
    ).is_file()


def test_every_new_name_exists():
    import importlib

    for package, names in old_names.NAMES.items():
        module = importlib.import_module(f"jaxcredit.{package}")
        assert [new for new in names.values() if not hasattr(module, new)] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("jaxcredit.credit.tempo.tempo", "tempo"),
        ("jaxcredit.records.Records.log", "Records.log"),
        ("jaxcredit.signals.reference.reference.<locals>.make", "reference.<locals>.make"),
        ({"jaxcredit.losses.ppo_clip": {"low": 0.1}}, {"ppo_clip": {"low": 0.1}}),
        ("my_estimator.surprise", "my_estimator.surprise"),
    ],
)
def test_functions_of_old_config_files_are_compared_by_name(old, new):
    assert old_names.options({"group": 4, "credit": old}) == {"group_size": 4, "credit": new}


def test_fields_of_the_policy_are_compared_under_their_new_names():
    old = {"policy": {"width": 16, "place": None}}
    assert old_names.options(old) == {"policy": {"width": 16, "layout": None}}
