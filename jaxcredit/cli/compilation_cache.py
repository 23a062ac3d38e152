"""Persistent compilation cache in the user's cache folder.

jax reads, writes and evicts the entries (least recently used first). JAXCREDIT_CACHE=off disables the cache, JAXCREDIT_CACHE=FOLDER moves
it. A cache set by JAX_COMPILATION_CACHE_DIR takes precedence.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

BYTES = 2 * 2**30  # largest size of the folder; JAX_COMPILATION_CACHE_MAX_SIZE takes precedence
ROOM = 100 * 2**20  # bytes that must be free on the disk
SECONDS = 0.3  # least compile time of an entry; JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS takes precedence
ENTRY, USED = (
    "-cache",
    "-atime",
)  # suffixes of a program and of the time of its last use, which jax writes after it


def begin() -> Path | None:
    """Enable the persistent compilation cache. Returns its folder, or None if it is off, unusable or already set by the user."""
    import jax

    config: Any = jax.config
    off = (
        os.environ.get("JAXCREDIT_CACHE", "").lower() in ("off", "0", "no")
        or not config.jax_enable_compilation_cache
    )
    if off or config.jax_compilation_cache_dir is not None:
        return None
    if (
        importlib.util.find_spec("filelock") is None
    ):  # needed by jax to limit the size; not in the base install
        return None
    try:
        where = folder()
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        clean(where)
        if (free := shutil.disk_usage(where).free) < ROOM:
            raise OSError(f"{where} has only {free >> 20} MiB free")
    except (OSError, RuntimeError) as error:
        print(
            f"compiled programs are not cached: {error} (set JAXCREDIT_CACHE=FOLDER for another folder, or =off)",
            file=sys.stderr,
        )
        return None
    defaults = {
        "JAX_COMPILATION_CACHE_MAX_SIZE": BYTES,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": SECONDS,
    }
    for name, value in defaults.items():
        if name not in os.environ:
            config.update(name.lower(), value)
    config.update("jax_compilation_cache_dir", str(where))
    return where


def folder() -> Path:
    """Cache folder for this kind of CPU. Programs compiled for another CPU may use instructions that this one lacks."""
    own = os.environ.get("JAXCREDIT_CACHE")
    base = (
        Path(own)
        if own
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "jaxcredit"
        / "programs"
    )
    try:
        cpu = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        cpu = [
            line for line in cpu if line.startswith(("model name", "flags", "Features", "CPU part"))
        ]
    except OSError:
        cpu = [platform.processor()]
    return base / hashlib.sha256("\n".join([platform.machine(), *cpu]).encode()).hexdigest()[:12]


def clean(where: Path) -> None:
    """Remove incomplete entries of a killed process: programs without a time of last use. Waits for processes that are writing."""
    from filelock import FileLock

    with FileLock(where / ".lockfile", timeout=10):  # jax's own lock file
        for file in where.glob(f"*{ENTRY}"):
            used = file.with_name(file.name.removesuffix(ENTRY) + USED)
            if not used.exists() or used.stat().st_size != 8 or not file.stat().st_size:
                file.unlink(missing_ok=True)
                used.unlink(missing_ok=True)
