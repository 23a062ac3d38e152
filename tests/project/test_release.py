"""The release check: build, install into a clean environment, run README's examples outside the
checkout, train two steps.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1500)  # pip takes most of the time
def test_the_release_check_passes(tmp_path):
    """Files, dependencies or entry points may be missing from the wheel without being missed in the
    checkout.
    """
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
