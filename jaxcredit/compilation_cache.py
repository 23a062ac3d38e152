"""Compiled programs kept from one command to the next, in the user's cache folder.

jax reads and writes the entries, and removes those that were not used for longest when the folder is full. JAXCREDIT_CACHE=off turns it
off, JAXCREDIT_CACHE=FOLDER takes another folder. A cache that the user has told jax of (JAX_COMPILATION_CACHE_DIR) is used instead.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

BYTES = 2 * 2**30  # the size of the folder, JAX_COMPILATION_CACHE_MAX_SIZE replaces it
ROOM = 100 * 2**20  # bytes that must be free
SECONDS = 0.3  # programs that took less to compile are not kept, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS replaces it
ENTRY, USED = "-cache", "-atime"  # jax writes a program, and once it is whole the time of its last use beside it


def begin() -> Path | None:
    """Let jax keep compiled programs in the user's cache folder. Returns the folder, or None where no cache of ours is used."""
    import jax

    config: Any = jax.config
    off = os.environ.get("JAXCREDIT_CACHE", "").lower() in ("off", "0", "no") or not config.jax_enable_compilation_cache
    if off or config.jax_compilation_cache_dir is not None:
        return None
    if importlib.util.find_spec("filelock") is None:  # what jax bounds a cache with; the base install lacks it
        return None
    try:
        where = folder()
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        clean(where)
        if (free := shutil.disk_usage(where).free) < ROOM:
            raise OSError(f"{where} has {free >> 20} MiB left")
    except (OSError, RuntimeError) as error:
        print(f"compiled programs are not kept: {error} (JAXCREDIT_CACHE=FOLDER takes another folder, =off none)", file=sys.stderr)
        return None
    defaults = {"JAX_COMPILATION_CACHE_MAX_SIZE": BYTES, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": SECONDS}
    for name, value in defaults.items():
        if name not in os.environ:
            config.update(name.lower(), value)
    config.update("jax_compilation_cache_dir", str(where))
    return where


def folder() -> Path:
    """Where programs for this kind of CPU are kept: one that was compiled on another could stop at an instruction that this one lacks."""
    own = os.environ.get("JAXCREDIT_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxcredit" / "programs"
    try:
        told = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        told = [line for line in told if line.startswith(("model name", "flags", "Features", "CPU part"))]
    except OSError:
        told = [platform.processor()]
    return base / hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()[:12]


def clean(where: Path) -> None:
    """Remove what a killed process left: programs without the time of their last use are not whole. Waits for a process that is writing."""
    from filelock import FileLock

    with FileLock(where / ".lockfile", timeout=10):  # jax's own lock of this folder
        for file in where.glob(f"*{ENTRY}"):
            used = file.with_name(file.name.removesuffix(ENTRY) + USED)
            if not used.exists() or used.stat().st_size != 8 or not file.stat().st_size:
                file.unlink(missing_ok=True)
                used.unlink(missing_ok=True)
