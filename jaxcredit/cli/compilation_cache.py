"""Persistent compilation cache in the user's cache folder.

jax reads, writes and evicts the entries (least recently used first). JAXCREDIT_CACHE=off disables
the cache, JAXCREDIT_CACHE=FOLDER moves it. A cache set by JAX_COMPILATION_CACHE_DIR takes
precedence.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

# Largest size of the folder; JAX_COMPILATION_CACHE_MAX_SIZE takes precedence.
BYTES = 2 * 2**30
# Bytes that must be free on the disk.
FREE_BYTES = 100 * 2**20
# Least compile time of an entry; JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS takes precedence.
SECONDS = 0.3
# Suffixes of a program, and of the time of its last use, which jax writes after the program.
PROGRAM, LAST_USE = "-cache", "-atime"


def begin() -> Path | None:
    """Enable the persistent compilation cache.

    Returns:
        The cache folder; None if the cache is disabled, unusable, or set by the user.
    """
    import jax

    config: Any = jax.config
    off = (
        os.environ.get("JAXCREDIT_CACHE", "").lower() in ("off", "0", "no")
        or not config.jax_enable_compilation_cache
    )
    if off or config.jax_compilation_cache_dir is not None:
        return None
    # jax needs filelock to limit the size; the base install does not have it.
    if importlib.util.find_spec("filelock") is None:
        return None
    try:
        path = folder()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        clean(path)
        if (free := shutil.disk_usage(path).free) < FREE_BYTES:
            raise OSError(f"{path} has only {free >> 20} MiB free")
    except (OSError, RuntimeError) as error:
        print(
            f"compiled programs are not cached: {error} "
            "(set JAXCREDIT_CACHE=FOLDER for another folder, or =off)",
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
    config.update("jax_compilation_cache_dir", str(path))
    return path


def folder() -> Path:
    """Cache folder for this kind of CPU: programs of another CPU may use instructions it lacks."""
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


def clean(path: Path) -> None:
    """Remove incomplete entries (programs without a time of last use) that a killed process left.

    Waits for processes that are writing.
    """
    from filelock import FileLock

    with FileLock(path / ".lockfile", timeout=10):  # jax's own lock file
        for file in path.glob(f"*{PROGRAM}"):
            used = file.with_name(file.name.removesuffix(PROGRAM) + LAST_USE)
            if not used.exists() or used.stat().st_size != 8 or not file.stat().st_size:
                file.unlink(missing_ok=True)
                used.unlink(missing_ok=True)
