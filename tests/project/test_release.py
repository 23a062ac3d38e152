"""The release check: build, install into a clean environment, run the README's examples outside the checkout, train two steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1500)  # most of it is pip's
def test_the_release_check_passes(tmp_path):
    """A package that was only ever imported from its checkout lacks files, dependencies or entry points that nobody misses there."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_NUM", "JAX_COMPILATION", "XLA_", "HF_"))
    }
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        [ROOT / ".ci/release", tmp_path / "kept"],
        env=env,
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert len(kept) == 2 and kept[0].endswith(".whl") and kept[1].endswith(".tar.gz"), kept
    assert done.stdout.splitlines()[-1].startswith("== passed in "), done.stdout
