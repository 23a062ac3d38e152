"""Checkpoint storage, on a file system or in a bucket.

`Disk` and `Bucket` have the same methods. Both hold folders of files, and a file is written
atomically: it is complete or absent.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import zlib
from pathlib import Path

from jaxcredit.utils import files


def bucket_address(address: str | os.PathLike) -> str:
    """Normalized gs:// address, or "" for a path of the file system.

    A `Path` merges slashes, so that gs:/BUCKET is read as gs://BUCKET.

    Raises:
        ValueError: the address has another scheme than gs.

    >>> bucket_address("gs:/bucket/runs/"), bucket_address("/runs")
    ('gs://bucket/runs', '')
    """
    address = re.sub("/+", "/", os.fspath(address)).rstrip("/")
    scheme, rest = re.fullmatch(r"(?:(\w{2,}):/)?(.*)", address, re.S).groups()  # pyright: ignore[reportOptionalMemberAccess] (matches all)
    if scheme not in (None, "gs"):
        raise ValueError(
            f"{scheme}://{rest}: run folders lie on a file system or in a bucket, gs://BUCKET/...; "
            "mount other storage"
        )
    return f"gs://{rest}" if scheme else ""


def open_storage(address: str | os.PathLike) -> "Disk | Bucket":
    """Storage at a path or gs:// address."""
    if bucket := bucket_address(address):
        return Bucket(bucket)
    return Disk(address)


class Disk:
    """Folders below `root` on a file system. File names are relative to `root`."""

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root).absolute()

    def path(self, name: str) -> Path:
        """Path of a file or folder, in the type that Orbax takes."""
        return self.root / name

    def folders(self) -> list[str]:
        """Names of the folders in `root`."""
        entries = self.root.iterdir() if self.root.exists() else ()
        return [path.name for path in entries if path.is_dir()]

    def has(self, name: str) -> bool:
        """Whether a file exists."""
        return (self.root / name).is_file()

    def read(self, name: str) -> str:
        """Text of a file. Raises FileNotFoundError if it is absent."""
        return (self.root / name).read_text()

    def write(self, name: str, text: str) -> None:
        """Write a file atomically and durably."""
        files.write_atomic(self.root / name, text)

    def create(self, name: str, text: str) -> bool:
        """Create a file, and return whether this call created it."""
        try:
            with open(self.root / name, "x") as f:
                f.write(text)
        except FileExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        (self.root / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def exclusive(self):
        """Context that excludes other processes of this machine.

        Without effect on file systems that cannot lock folders.
        """
        folder = os.open(self.root, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def checksums(self, folder: str) -> dict[str, list]:
        """[size, checksum] of every file in a folder, by name. Reads all files."""
        top = self.root / folder
        return {
            str(path.relative_to(top)): [path.stat().st_size, _crc32(path)]
            for path in sorted(top.rglob("*"))
            if path.is_file()
        }

    def reserve(self, folder: str, size: int) -> None:
        """Create a folder. Raises OSError if fewer than `size` bytes are free."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if free < size:
            raise OSError(errno.ENOSPC, f"only {free:,} bytes are free")
        (self.root / folder).mkdir()

    def remove(self, folder: str, first: str) -> None:
        """Delete a folder.

        Args:
            folder: the folder.
            first: file to delete before all others, such as the manifest. Without it, a partially
                deleted folder is not taken for a complete one.
        """
        (self.root / folder / first).unlink(missing_ok=True)
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def delete_all(self) -> None:
        """Delete `root` with its content."""
        shutil.rmtree(self.root, ignore_errors=True)


class Bucket:
    """Folders below a gs:// address, with the methods of `Disk`.

    The bucket stores checksums, so that `checksums` reads no object.
    """

    def __init__(self, root: str):
        self.root, self.files = root, gcs_filesystem()

    def path(self, name: str):
        from etils import epath

        return epath.Path(f"{self.root}/{name}")

    def folders(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [
                entry["name"].rsplit("/", 1)[-1]
                for entry in self.files.ls(self.root, detail=True)
                if entry["type"] == "directory"
            ]
        return []

    def has(self, name: str) -> bool:
        return self.files.isfile(f"{self.root}/{name}")

    def read(self, name: str) -> str:
        return self.files.cat_file(f"{self.root}/{name}").decode()  # pyright: ignore[reportAttributeAccessIssue] (bytes)

    def write(self, name: str, text: str) -> None:
        self.files.pipe_file(f"{self.root}/{name}", text.encode())

    def create(self, name: str, text: str) -> bool:
        """Create an object, and return whether this call created it.

        Of several processes that create the same object, the bucket lets one succeed.
        """
        if self.has(name):
            return False
        try:
            self.files.pipe_file(f"{self.root}/{name}", text.encode(), mode="create")
        except TypeError:  # gcsfs before 2025 has no argument mode
            self.write(name, text)
        except Exception:  # gcsfs raises various types for a failed precondition
            if self.has(name):
                return False
            raise
        return True

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(f"{self.root}/{name}")

    def exclusive(self):
        """Context without effect: `create` is atomic in a bucket."""
        return contextlib.nullcontext()

    def checksums(self, folder: str) -> dict[str, list]:
        top = f"{self.root}/{folder}/".removeprefix("gs://")
        objects: dict = self.files.find(f"{self.root}/{folder}", detail=True)  # pyright: ignore[reportAssignmentType] (no list)
        return {
            name.removeprefix(top): [info["size"], info["crc32c"]]
            for name, info in sorted(objects.items())
        }

    def reserve(self, folder: str, size: int) -> None:
        """Nothing: a bucket has no limit of space and no folders to create."""

    def remove(self, folder: str, first: str) -> None:
        for name in (f"{folder}/{first}", folder):
            with contextlib.suppress(FileNotFoundError):
                self.files.rm(f"{self.root}/{name}", recursive=name == folder)

    def delete_all(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.rm(self.root, recursive=True)


def gcs_filesystem():
    """File system of Google Cloud Storage, without a cache of listings that others may change."""
    import gcsfs

    return gcsfs.GCSFileSystem(use_listings_cache=False)


def _crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
