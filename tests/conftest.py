"""Eight CPU devices, one cache of compiled programs, and shapes checked at run time in the layers that declare them."""

import os
import tempfile
from pathlib import Path

# Before jax is imported: subprocesses of the tests inherit the same settings.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir(), f"jaxcredit-cache-{os.getuid()}")))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Most of the suite is compiling: without optimisation it takes a third to a half less.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what the hub would give, tests make themselves

from jaxtyping import install_import_hook  # noqa: E402

# Kept for the whole session: every later import of these modules checks each call's shapes against its annotations.
hook = install_import_hook(["jaxcredit.rollout", "jaxcredit.kernels", "jaxcredit.credit", "jaxcredit.losses"], "beartype.beartype")
