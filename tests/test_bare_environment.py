"""The README's commands in processes without the tests' environment: no flags of XLA, no settings of jax."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = re.compile(r"(XLA|JAX|TF|TPU|CUDA|MPL|PYTEST|HF|LIBTPU)_?")  # whatever conftest.py, or a caller, could have set


def bare(tmp_path: Path) -> dict[str, str]:
    """This process's environment without what changes how jax runs; caches go to a folder of the test's own."""
    kept = {name: value for name, value in os.environ.items() if not OURS.match(name)}
    return kept | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}


def typed(words: str | list[str], tmp_path: Path, code: int = 0) -> str:
    """What a command line prints, in the project's folder."""
    words = shlex.split(words) if isinstance(words, str) else words
    assert words[0] == "jaxcredit", words
    main = [sys.executable, "-c", "import sys; from jaxcredit.cli import main; main(sys.argv[1:])", *words[1:]]
    done = subprocess.run(main, env=bare(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == code, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("options", ["", "--critic --beta 0.1 --fsdp 1"])
def test_plan_on_this_machine(options, tmp_path):
    """Compiler options of a CPU are set here: a jit that has some may not be traced inside another."""
    said = typed(f"jaxcredit plan tests/micro.py {options}", tmp_path)
    programs = ["sample", "evaluate", *(["signals"] if options else []), "credit", "update"]
    assert [line.split()[0] for line in said.splitlines() if " fits: " in line] == programs
