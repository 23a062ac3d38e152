"""Where checkpoints lie: a folder that every process sees, or a bucket. Either holds folders, and they hold files, whole or not there."""

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
    """`address` as gs://BUCKET/..., no matter how many slashes (a Path eats one); "" for a folder of the file system."""
    address = re.sub("/+", "/", os.fspath(address)).rstrip("/")
    scheme, rest = re.fullmatch(r"(?:(\w{2,}):/)?(.*)", address, re.S).groups()  # pyright: ignore[reportOptionalMemberAccess] (matches all)
    if scheme not in (None, "gs"):
        raise ValueError(
            f"{scheme}://{rest}: run folders lie on a file system or in a bucket, gs://BUCKET/...; mount what is elsewhere"
        )
    return f"gs://{rest}" if scheme else ""


def open_storage(address: str | os.PathLike) -> "Disk | Bucket":
    """The store at this address."""
    return Bucket(there) if (there := bucket_address(address)) else Disk(address)


class Disk:
    """Folders under `root`."""

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root).absolute()

    def path(self, name: str) -> Path:
        """As Orbax takes it."""
        return self.root / name

    def folders(self) -> list[str]:
        return [p.name for p in self.root.iterdir()] if self.root.exists() else []

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> str:
        """Raises FileNotFoundError."""
        return (self.root / name).read_text()

    def write(self, name: str, text: str) -> None:
        """A file that is there whole or not at all, also after a power cut."""
        files.write_atomic(self.root / name, text)

    def create(self, name: str, text: str) -> bool:
        """Create a file; False if it exists."""
        try:
            with open(self.root / name, "x") as f:
                f.write(text)
        except FileExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        """Remove a file, if it exists."""
        (self.root / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def exclusive(self):
        """Context that excludes other processes of this machine, on file systems with folder locks."""
        folder = os.open(self.root, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def checksums(self, folder: str) -> dict[str, list]:
        """Size and checksum of each file in `folder`, read to its last byte."""
        top = self.root / folder
        return {
            str(p.relative_to(top)): [p.stat().st_size, _crc(p)]
            for p in sorted(top.rglob("*"))
            if p.is_file()
        }

    def reserve(self, folder: str, size: int) -> None:
        """Make the folder; raises OSError where `size` bytes are not free."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if free < size:
            raise OSError(errno.ENOSPC, f"only {free:,} bytes are free")
        (self.root / folder).mkdir()

    def remove(self, folder: str, first: str) -> None:
        """Delete `folder`, the file `first` before all others: a deletion that is killed halfway leaves nothing that looks whole."""
        (self.root / folder / first).unlink(missing_ok=True)
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def delete_all(self) -> None:
        """Delete the folder or bucket path with all its content."""
        shutil.rmtree(self.root, ignore_errors=True)


class Bucket:
    """Folders under `root`, gs://BUCKET/... . Objects appear whole, and the bucket keeps their checksums: none is read to be checked."""

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
        """Create an object; False if it exists. The bucket decides between concurrent writers."""
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
        """Remove an object, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(f"{self.root}/{name}")

    def exclusive(self):
        """No-op: `create` is atomic in the bucket."""
        return contextlib.nullcontext()

    def checksums(self, folder: str) -> dict[str, list]:
        top = f"{self.root}/{folder}/".removeprefix("gs://")
        found: dict = self.files.find(f"{self.root}/{folder}", detail=True)  # pyright: ignore[reportAssignmentType] (no list)
        return {
            name.removeprefix(top): [info["size"], info["crc32c"]]
            for name, info in sorted(found.items())
        }

    def reserve(self, folder: str, size: int) -> None:
        """A bucket has room, and no folders to make."""

    def remove(self, folder: str, first: str) -> None:
        for name in (f"{folder}/{first}", folder):
            with contextlib.suppress(FileNotFoundError):
                self.files.rm(f"{self.root}/{name}", recursive=name == folder)

    def delete_all(self) -> None:
        """Delete the folder or bucket path with all its content."""
        with contextlib.suppress(FileNotFoundError):
            self.files.rm(self.root, recursive=True)


def gcs_filesystem():
    """Google's buckets through fsspec, nothing remembered of what others may change."""
    import gcsfs

    return gcsfs.GCSFileSystem(use_listings_cache=False)


def _crc(path: Path) -> int:
    """CRC-32 of a file: 2-3 GB a second and core, and no flipped bit or short burst escapes it."""
    crc = 0
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
