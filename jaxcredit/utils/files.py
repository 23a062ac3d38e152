"""Atomic writes of files, and checks of relative paths."""

import os
from pathlib import Path

PART = ".part"  # suffix of files that are being written


def write_atomic(path: str | os.PathLike, data: str | bytes) -> None:
    """Write a file atomically and durably: after a crash it has its old or its new content.

    A symbolic link or a device is written in place, not atomically.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        with open(part, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def inside(name: str) -> str:
    """Check that a relative path stays below the folder to which it is joined.

    Args:
        name: the path, with "/" between its parts.

    Returns:
        The path, unchanged.

    Raises:
        ValueError: the path is absolute or empty, or has empty parts, "." or "..".

    >>> inside("hosts/00000.log")
    'hosts/00000.log'
    """
    if not name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(
            f"{name!r} is not a path inside the folder: "
            "it must be relative, without '.', '..' or empty parts"
        )
    return name
