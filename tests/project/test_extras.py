"""The base install is the library. Other imports are declared by an extra, which the error of a
missing package names.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib

import pytest
from missing_packages import hide_packages, program_with_only
from paths import ROOT

from jaxcredit import tasks
from jaxcredit.policy.formats import gguf
from jaxcredit.train.planning import topology
from jaxcredit.train.runs import storage as store
from jaxcredit.utils import extras

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Requirements of jax and jaxtyping.
BASE = {"jax", "jaxlib", "jaxtyping", "numpy", "ml_dtypes", "opt_einsum", "scipy", "wadler_lindig"}
# Distributions with another name than their package.
DISTRIBUTION = {"orbax": "orbax-checkpoint", "libtpu": "jax[tpu]"}


def imported(folder: str = "jaxcredit") -> dict[str, set[str]]:
    """{package: files that import it} of the third-party packages that a folder imports."""
    found: dict[str, set[str]] = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            )
            for package in {name.partition(".")[0] for name in names} - set(
                sys.stdlib_module_names
            ):
                found.setdefault(package, set()).add(str(file.relative_to(ROOT)))
    return found


def plain(name: str) -> str:
    return re.split(r"[\[<>=; ]", name)[0].lower().replace("_", "-")


def test_every_import_is_of_the_base_or_of_an_extra_that_declares_it():
    found = imported()
    base = {plain(need) for need in PROJECT["dependencies"]}
    assert base == {"jax", "jaxtyping", "numpy"}
    assert found.keys() - base - {"jaxcredit"} == extras.EXTRA.keys() - {"libtpu"}, found
    for package, extra in extras.EXTRA.items():
        wants = DISTRIBUTION.get(package, package)
        declared = PROJECT["optional-dependencies"][extra]
        assert wants in declared or plain(wants) in {plain(need) for need in declared}, (
            f"{package}: not in [{extra}] of pyproject.toml"
        )
    everything = next(
        need for need in PROJECT["optional-dependencies"]["dev"] if need.startswith("jaxcredit[")
    )
    assert {"train", "gcs", "models", "data"} <= set(everything[len("jaxcredit[") : -1].split(","))


def child(code: str, **env) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
    )


def test_the_library_runs_where_only_jax_and_jaxtyping_are_installed():
    code = """
import jax.numpy as jnp
import jaxcredit
from jaxcredit import Rollout, credit, kernels, losses, rewards
from jaxcredit.credit import laws
tokens = jnp.array([[[5, 6, 7], [5, 6, 8], [5, 9, 7], [4, 6, 7]]])
ones = jnp.ones(tokens.shape, bool)
rollout = Rollout(tokens=tokens, action_mask=ones, logp=jnp.zeros(tokens.shape), segment=jnp.zeros(tokens.shape, jnp.int32),
                  reward=jnp.array([[[1.0], [0.0], [0.0], [0.0]]]), segment_mask=jnp.ones((1, 4, 1), bool))
assert credit.tempo(rollout).shape == tokens.shape
assert not [r for r in laws.check(credit.grpo) if r.passed is False]
third = {name.partition(".")[0] for name, module in sys.modules.items() if "site-packages" in (getattr(module, "__file__", None) or "")}
print(sorted(third))
"""
    done = child(program_with_only(BASE, code))
    assert done.returncode == 0, done.stderr
    third = {
        name for name in ast.literal_eval(done.stdout.splitlines()[-1]) if not name.startswith("_")
    }
    assert {"jax", "jaxtyping", "numpy"} <= third <= BASE | {"typing_extensions"}


@pytest.mark.parametrize("words", ["train configs/quickstart.py", "check tempo"])
def test_the_command_line_names_the_extra_of_the_trainer(words):
    done = child(
        program_with_only(
            BASE, f"sys.argv[1:] = {words.split()!r}\nfrom jaxcredit.cli.main import main; main()"
        )
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.match(
        r"MissingExtra: jaxcredit[.\w]+ needs \w+, which is not installed: pip install 'jaxcredit\[train\]'\n$",
        done.stderr,
    )


def test_help_needs_no_extra():
    done = child(
        program_with_only(
            BASE, "sys.argv[1:] = ['train', '--help']\nfrom jaxcredit.cli.main import main; main()"
        )
    )
    assert done.returncode == 0 and "--overwrite" in done.stdout, done.stderr


USES = {
    "gcsfs": lambda folder: store.open_storage("gs://shelf/a"),
    "gguf": lambda folder: gguf.load(folder / "a.gguf"),
    "math_verify": lambda folder: importlib.import_module("jaxcredit.tasks.grade_school").symbolic(
        "1", "1"
    ),
    "tensorflow_datasets": lambda folder: tasks.gsm8k(),
    "reasoning_gym": lambda folder: tasks.gym("number_sorting"),
    "libtpu": lambda folder: topology.tpu_topology("v5e:2x2"),
    "optax": lambda folder: importlib.reload(importlib.import_module("jaxcredit.train.update")),
}


@pytest.mark.parametrize("package", USES)
def test_a_missing_package_is_an_error_that_names_its_extra(package, monkeypatch, tmp_path):
    hide_packages(monkeypatch, package)
    named = (
        rf"{package}, which is not installed: pip install 'jaxcredit\[{extras.EXTRA[package]}\]'"
    )
    with pytest.raises(ModuleNotFoundError, match=named):
        USES[package](tmp_path)


def test_others_imports_are_left_alone(monkeypatch):
    """Optional imports of other libraries fail as they do without jaxcredit."""
    hide_packages(monkeypatch, "gguf", "optax")
    assert importlib.util.find_spec("gguf") is None
    with pytest.raises(ModuleNotFoundError) as told:
        import optax  # noqa: F401
    assert not isinstance(told.value, extras.MissingExtra)
