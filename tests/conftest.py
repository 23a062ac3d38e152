"""Eight CPU devices, one cache of compiled programs, and shapes checked at run time in the layers
that declare them.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Before jax is imported: subprocesses of the tests inherit the same settings.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir(), f"jaxcredit-cache-{os.getuid()}"))
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def survives(flags: str) -> bool:
    """Whether a process with these flags lives: XLA ends one at a flag that its parser does not
    know, and only trying tells.
    """
    child = [sys.executable, "-c", "import jax; jax.devices()"]
    return not subprocess.run(
        child, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True
    ).returncode


# Most of the suite is compiling: without optimisation it takes a third to a half less, without the
# newer emitters half of the rest. Asked once a session: workers and subprocesses inherit the
# answer.
if "XLA_FLAGS" not in os.environ:
    wished = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
    flags = (
        [" ".join(wished)]
        if survives(" ".join(wished))
        else [flag for flag in wished if survives(flag)]
    )
    os.environ["XLA_FLAGS"] = " ".join(flags)
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what the hub would give, tests make themselves

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

CHECKED = ["jaxcredit.rollout", "jaxcredit.kernels", "jaxcredit.credit", "jaxcredit.losses"]
if jax.__version_info__ >= (0, 8):
    # Kept for the whole session: every later import of these modules checks each call's shapes
    # against its annotations.
    hook = install_import_hook(CHECKED, "beartype.beartype")
else:  # jax 0.7 fills dataclasses with blanks, which the checks refuse; and it has this name elsewhere
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64
