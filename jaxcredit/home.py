"""The folder of a run, on a file system or in a bucket (gs://BUCKET/runs/NAME).

A bucket's files cannot be appended to. So a run there writes its small ones (metrics, samples, logs, pictures, the config) into a folder of
its machine, and sends what changed whenever it saves or evaluates and when it ends. Checkpoints go straight to the bucket, each process
its own shards.
"""

import contextlib
import functools
import os
import shutil
import tempfile
import warnings
import weakref
from pathlib import Path

from jaxcredit import store

CHECKPOINTS = "checkpoints"


class Home:
    """A run folder on a file system."""

    def __init__(self, folder: str | os.PathLike):
        self.address, self.path = os.fspath(folder), Path(folder)
        self.checkpoints = str(self.path / CHECKPOINTS)

    def __enter__(self) -> "Home":
        return self

    def __exit__(self, *_) -> None:
        self.push()

    def pull(self) -> "Home":
        """What others wrote is in `path`."""
        return self

    def push(self) -> None:
        """What was written in `path` is seen by others."""

    def clear(self) -> None:
        """No run was ever here."""
        if self.path.exists():
            shutil.rmtree(self.path)


class Mirror(Home):
    """A run folder in a bucket; `path` is a temporary folder of this process, with all of it but the checkpoints."""

    def __init__(self, address: str):
        self.address, self.files = address, store.filesystem()
        self.checkpoints = f"{address}/{CHECKPOINTS}"
        folder = tempfile.mkdtemp(prefix="jaxcredit-")
        self.path = Path(folder) / address.rsplit("/", 1)[-1]  # whoever reads a run folder calls the run by its name
        self.path.mkdir()
        self._forget = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._sent: dict[str, tuple] = {}

    def pull(self) -> "Mirror":
        if not self._forget.atexit:
            self.push()
            if not self._forget.atexit:
                raise OSError(f"{self.address} lacks what is in {self.path}: nothing is read over it until it can be sent")
        try:
            there = self._there()
            for name in there:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                self.files.get_file(f"{self.address}/{name}", str(self.path / name))
        except Exception as error:
            raise OSError(
                f"{self.address} cannot be read ({_cause(error)}): does the bucket exist, and may this machine use it "
                "(`gcloud auth application-default login`, or a service account that may read and write its objects)?"
            ) from error
        for name in set(self._here()) - set(there):
            (self.path / name).unlink()
        self._sent = self._here()
        return self

    def push(self) -> None:
        """Send what changed. A bucket out of reach is a warning: the files wait here for the next time."""
        try:
            for name, stamp in self._here().items():
                if self._sent.get(name) != stamp:
                    self.files.put_file(str(self.path / name), f"{self.address}/{name}")
                    self._sent[name] = stamp
            self._forget.atexit = True
        except Exception as error:
            self._forget.atexit = False  # what was not sent outlives the process
            warnings.warn(f"{self.address} cannot be written ({_cause(error)}): its newest records are in {self.path}", stacklevel=2)

    def clear(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.rm(self.address, recursive=True)

    def _here(self) -> dict[str, tuple]:
        return {str(p.relative_to(self.path)): (p.stat().st_size, p.stat().st_mtime_ns) for p in self.path.rglob("*") if p.is_file()}

    def _there(self) -> list[str]:
        """Names of the small files, without a look at the many of checkpoints."""
        try:
            top = self.files.ls(self.address, detail=True)
        except FileNotFoundError:
            self.files.ls(self.address.split("/")[2])  # a run that is not there yet is none, a bucket that is not there is an error
            return []
        names = []
        for entry in top:
            if entry["type"] == "directory":
                names += [] if entry["name"].endswith(f"/{CHECKPOINTS}") else self.files.find(entry["name"])
            else:
                names.append(entry["name"])
        return [name.removeprefix(self.address.removeprefix("gs://") + "/") for name in names]


def home(folder: str | os.PathLike) -> Home:
    """The home of the run at this address; a bucket's is one a process."""
    return _mirror(there) if (there := store.bucket(folder)) else Home(folder)


def here(folder: str | os.PathLike) -> Path:
    """The files of a run, checkpoints aside, in a folder of this machine."""
    return home(folder).pull().path


_mirror = functools.cache(Mirror)


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
