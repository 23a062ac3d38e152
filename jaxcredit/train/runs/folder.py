"""Run folders, on a file system or in a bucket (gs://BUCKET/runs/NAME).

Objects in a bucket cannot be appended to. A run in a bucket therefore writes its small files (metrics, samples, logs, plots, config) to a
local folder, and uploads changed ones at each save and evaluation and at its end. Checkpoints are written directly to the bucket, and each
process writes its own shards.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import tempfile
import time
import uuid
import warnings
import weakref
from pathlib import Path

from jaxcredit.train.runs import storage
from jaxcredit.train.runs.lock import LOCK
from jaxcredit.utils import files

CHECKPOINTS = "checkpoints"
MARKER = "run.json"  # written when a run is created; only folders with it, or with the files of an older run, are ever deleted


class RunFolder:
    """A run folder on a file system."""

    def __init__(self, folder: str | os.PathLike):
        self.address, self.path = os.fspath(folder), Path(folder)
        self.checkpoints = str(self.path / CHECKPOINTS)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_) -> None:
        self.push()

    def pull(self) -> "RunFolder":
        """Download the run folder to `path`."""
        return self

    def push(self) -> None:
        """Upload changes in `path`."""

    def kind(self) -> str:
        """Content of the folder: "" (none), "run" (created by jaxcredit) or "other". Only the small files are inspected."""
        if not self.path.is_dir():
            return "other" if self.path.exists() or self.path.is_symlink() else ""
        names = {p.name for p in self.path.iterdir()} - {LOCK}
        described, worked = (
            names & {"source.json", "config.json"},
            names & {"metrics.jsonl", "hosts", CHECKPOINTS},
        )
        if self.run_id() or (described and worked):  # older runs have no marker
            return "run"
        return "other" if {name for name in names if not name.endswith(files.PART)} else ""

    def run_id(self) -> str | None:
        """Unique id of the run, which its checkpoints contain too; None if the marker is missing or damaged."""
        try:
            made = json.loads((self.path / MARKER).read_text())
        except (OSError, ValueError, RecursionError):
            return None
        return (
            made["run"]
            if isinstance(made, dict)
            and made.get("made_by") == "jaxcredit"
            and isinstance(made.get("run"), str)
            else None
        )

    def write_marker(self, run: str | None = None) -> str:
        """Write the marker of a run with unique id `run` (None: a new one). Returns the id."""
        run = run or uuid.uuid4().hex
        if self.run_id() != run:
            self.path.mkdir(parents=True, exist_ok=True)
            made = {
                "made_by": "jaxcredit",
                "run": run,
                "created": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            }
            files.write_atomic(self.path / MARKER, json.dumps(made, indent=2) + "\n")
        return run

    def clear(self) -> None:
        """Delete the run except its lock and marker, so that an interrupted deletion still leaves a folder recognized as a run."""
        self.check_removable()
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.name not in (LOCK, MARKER):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def check_removable(self) -> None:
        """Raise FileExistsError if the folder holds anything but a run, or is a symbolic link."""
        if self.kind() == "other":
            raise FileExistsError(
                f"{self.address} is not a run that jaxcredit created (no {MARKER}, no metrics.jsonl beside source.json or config.json): "
                "--overwrite does not delete it; remove it yourself, or choose another --run name"
            )
        if self.path.is_symlink():
            raise FileExistsError(
                f"{self.address} is a link to {self.path.resolve()}: --overwrite does not follow links; remove it"
            )


class BucketRunFolder(RunFolder):
    """Run folder in a bucket. `path` is a temporary local copy without the checkpoints."""

    def __init__(self, address: str):
        files.inside(address.removeprefix("gs://"))
        self.address, self.files = address, storage.gcs_filesystem()
        self.checkpoints = f"{address}/{CHECKPOINTS}"
        folder = tempfile.mkdtemp(prefix="jaxcredit-")
        self.path = (
            Path(folder) / address.rsplit("/", 1)[-1]
        )  # the folder's name is used as the run's name
        self.path.mkdir()
        self._forget = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._sent: dict[str, tuple] = {}

    def pull(self) -> "BucketRunFolder":
        if not self._forget.atexit:
            self.push()
            if not self._forget.atexit:
                raise OSError(
                    f"{self.address} lacks files that are only in {self.path}: nothing is read over them; make the bucket writable"
                )
        try:
            there = self._there()
        except Exception as error:
            raise OSError(self._unreadable(error)) from error
        for name in there:
            try:
                files.inside(name)
            except ValueError as error:
                raise ValueError(
                    f"{self.address}: an object in the bucket has a name outside the run folder: {error}; delete it"
                ) from None
        try:
            for name in there:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                self.files.get_file(f"{self.address}/{name}", str(self.path / name))
        except Exception as error:
            raise OSError(self._unreadable(error)) from error
        for name in set(self._here()) - set(there):
            (self.path / name).unlink()
        self._sent = self._here()
        return self

    def push(self) -> None:
        """Upload changed files. An unreachable bucket is a warning, and the files are kept for the next upload."""
        try:
            for name, stamp in self._here().items():
                if self._sent.get(name) != stamp:
                    self.files.put_file(str(self.path / name), f"{self.address}/{name}")
                    self._sent[name] = stamp
            self._forget.atexit = True
        except Exception as error:
            self._forget.atexit = False  # files that were not uploaded are kept after the process
            warnings.warn(
                f"{self.address} cannot be written ({_cause(error)}): its newest records are in {self.path}",
                stacklevel=2,
            )

    def clear(self) -> None:
        super().clear()
        kept = {f"{self.address.removeprefix('gs://')}/{name}" for name in (LOCK, MARKER)}
        with contextlib.suppress(FileNotFoundError):
            if names := [name for name in self.files.find(self.address) if name not in kept]:
                self.files.rm(names)
        self._sent = {name: stamp for name, stamp in self._sent.items() if name == MARKER}

    def _unreadable(self, error: Exception) -> str:
        return (
            f"{self.address} cannot be read ({_cause(error)}): does the bucket exist, and may this machine use it "
            "(`gcloud auth application-default login`, or a service account that may read and write its objects)?"
        )

    def _here(self) -> dict[str, tuple]:
        found = [p for p in self.path.rglob("*") if p.is_file() and not p.name.endswith(files.PART)]
        return {
            str(p.relative_to(self.path)): (p.stat().st_size, p.stat().st_mtime_ns) for p in found
        }

    def _there(self) -> list[str]:
        """Names of the small files in the bucket; the checkpoints are not listed."""
        try:
            top = self.files.ls(self.address, detail=True)
        except FileNotFoundError:
            self.files.ls(
                self.address.split("/")[2]
            )  # raises for a missing bucket; a missing run has no files
            return []
        names = []
        for entry in top:
            if entry["type"] == "directory":
                names += (
                    []
                    if entry["name"].endswith(f"/{CHECKPOINTS}")
                    else self.files.find(entry["name"])
                )
            else:
                names.append(entry["name"])
        names = [name.removeprefix(self.address.removeprefix("gs://") + "/") for name in names]
        return [name for name in names if name != LOCK and not name.endswith("/")]


def run_address(runs: str, name: str) -> str:
    """The address of the run `name` below the folder or bucket `runs`. A ValueError unless the name is one plain part of a path."""
    if not runs.strip():
        raise ValueError(
            "--runs is empty: give the folder in which run folders lie, such as runs, or gs://BUCKET/runs"
        )
    if (
        name in ("", ".", "..")
        or name != name.strip()
        or re.search(r"[/\\\x00-\x1f\x7f-\x9f]", name)
        or len(os.fsencode(name)) > 200
    ):
        raise ValueError(
            f"{name!r} cannot be the name of a run: it must be a single part of a path, at most 200 bytes, without '/', '\\', control "
            "characters or spaces around it, and not '.' or '..'; --runs says where run folders lie"
        )
    return f"{runs.rstrip('/')}/{name}"


def open_run_folder(folder: str | os.PathLike) -> RunFolder:
    """The home of the run at this address; a bucket's is one a process."""
    return (
        _bucket_run_folder(there)
        if (there := storage.bucket_address(folder))
        else RunFolder(folder)
    )


def local_path(folder: str | os.PathLike) -> Path:
    """The files of a run, checkpoints aside, in a folder of this machine."""
    return open_run_folder(folder).pull().path


_bucket_run_folder = functools.cache(BucketRunFolder)


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
