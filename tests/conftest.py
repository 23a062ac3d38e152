"""Settings of every test session: eight CPU devices, a compilation cache, fast compilation,
run-time shape checks.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Set before jax is imported; subprocesses of the tests inherit these settings.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir(), f"jaxcredit-cache-{os.getuid()}"))
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def accepted(flags: str) -> bool:
    """Whether XLA accepts these flags, found by trying: XLA ends the process at an unknown flag."""
    child = [sys.executable, "-c", "import jax; jax.devices()"]
    return not subprocess.run(
        child, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True
    ).returncode


# Compilation takes most of the time of the tests, and less without optimization and fusion
# emitters. The flags are tried once a session; workers and subprocesses inherit the result.
if "XLA_FLAGS" not in os.environ:
    wanted = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
    flags = (
        [" ".join(wanted)]
        if accepted(" ".join(wanted))
        else [flag for flag in wanted if accepted(flag)]
    )
    os.environ["XLA_FLAGS"] = " ".join(flags)
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests make their own models

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

CHECKED = ["jaxcredit.rollout", "jaxcredit.kernels", "jaxcredit.credit", "jaxcredit.losses"]
if jax.__version_info__ >= (0, 8):
    # Every later import of these modules checks the shapes of each call against its annotations.
    # The hook must stay referenced.
    hook = install_import_hook(CHECKED, "beartype.beartype")
else:  # jax 0.7 builds dataclasses with placeholder leaves, which the checks refuse
    from jax.experimental import enable_x64  # jax.enable_x64 from jax 0.8 on

    jax.enable_x64 = enable_x64
