"""Run folders, on a file system or in a bucket (gs://BUCKET/runs/NAME).

Objects in a bucket cannot be appended to. A run in a bucket therefore writes its small files
(metrics, samples, logs, plots, config) to a local folder. It uploads changed files at each save, at
each evaluation and at its end. Checkpoints are written directly to the bucket.
"""

import atexit
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
from pathlib import Path

from jaxcredit.train.runs import file_names, storage
from jaxcredit.utils import files


class RunFolder:
    """Run folder on a file system.

    Attributes:
        address: path of the folder as the user gave it.
        path: local folder with the small files.
        checkpoints: address of the checkpoints.
    """

    def __init__(self, folder: str | os.PathLike):
        self.address, self.path = os.fspath(folder), Path(folder)
        self.checkpoints = str(self.path / file_names.CHECKPOINTS)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_) -> None:
        self.push()

    def pull(self) -> "RunFolder":
        """Download the small files to `path`. Returns this object."""
        return self

    def push(self) -> None:
        """Upload changes in `path`."""

    def kind(self) -> str:
        """Kind of the folder's content, judged by the small files.

        Returns:
            "" for an absent or empty folder, "run" for a run of jaxcredit, "other" otherwise.
        """
        if not self.path.is_dir():
            return "other" if self.path.exists() or self.path.is_symlink() else ""
        names = {path.name for path in self.path.iterdir()} - {file_names.LOCK}
        is_described = names & {file_names.SOURCE, file_names.CONFIG}
        has_output = names & {file_names.METRICS, file_names.HOSTS, file_names.CHECKPOINTS}
        if self.run_id() or (is_described and has_output):  # runs of version 0.0 have no marker
            return "run"
        return "other" if {name for name in names if not name.endswith(files.PART)} else ""

    def run_id(self) -> str | None:
        """Unique id of the run; None if the marker is missing or damaged."""
        try:
            marker = json.loads((self.path / file_names.MARKER).read_text())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(marker, dict) or marker.get("made_by") != "jaxcredit":
            return None
        run = marker.get("run")
        return run if isinstance(run, str) else None

    def write_marker(self, run: str | None = None) -> str:
        """Write the marker that makes the folder a run.

        Args:
            run: unique id of the run; None: a new id.

        Returns:
            The id.
        """
        run = run or uuid.uuid4().hex
        if self.run_id() != run:
            self.path.mkdir(parents=True, exist_ok=True)
            marker = {
                "made_by": "jaxcredit",
                "run": run,
                "created": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            }
            text = json.dumps(marker, indent=2) + "\n"
            files.write_atomic(self.path / file_names.MARKER, text)
        return run

    def clear(self) -> None:
        """Delete the run's files except lock and marker.

        The marker stays, so that an interrupted deletion leaves a folder that is recognized as a
        run.

        Raises:
            FileExistsError: the folder holds other files, or is a symbolic link.
        """
        self.check_removable()
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.name not in (file_names.LOCK, file_names.MARKER):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def check_removable(self) -> None:
        """Raise FileExistsError if the folder holds other files than a run, or is a link."""
        if self.kind() == "other":
            raise FileExistsError(
                f"{self.address} is not a run that jaxcredit created (no {file_names.MARKER}, no "
                f"{file_names.METRICS} beside {file_names.SOURCE} or {file_names.CONFIG}): "
                "--overwrite does not delete it; remove it yourself, or choose another --run name"
            )
        if self.path.is_symlink():
            raise FileExistsError(
                f"{self.address} is a link to {self.path.resolve()}: --overwrite does not follow "
                "links; remove it"
            )


class BucketRunFolder(RunFolder):
    """Run folder in a bucket. `path` is a temporary local copy without the checkpoints.

    The copy is deleted when the process exits, unless it has files that could not be uploaded.
    """

    def __init__(self, address: str):
        files.inside(address.removeprefix("gs://"))
        self.address, self.files = address, storage.gcs_filesystem()
        self.checkpoints = f"{address}/{file_names.CHECKPOINTS}"
        self._copy = tempfile.mkdtemp(prefix="jaxcredit-")
        # The last part of the path is the name of the run in plots and tables.
        self.path = Path(self._copy) / address.rsplit("/", 1)[-1]
        self.path.mkdir()
        self._has_unsent_files = False
        self._uploaded: dict[str, tuple] = {}  # name: size and modification time
        atexit.register(self._delete_copy)

    def pull(self) -> "BucketRunFolder":
        if self._has_unsent_files:
            self.push()
            if self._has_unsent_files:
                raise OSError(
                    f"{self.address} lacks files that are only in {self.path}, and a download "
                    "would overwrite them: make the bucket writable"
                )
        try:
            names = self._remote_files()
        except Exception as error:
            raise OSError(self._unreadable(error)) from error
        for name in names:
            try:
                files.inside(name)
            except ValueError as error:
                raise ValueError(
                    f"{self.address}: an object in the bucket has a name outside the run folder: "
                    f"{error}; delete it"
                ) from None
        try:
            for name in names:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                self.files.get_file(f"{self.address}/{name}", str(self.path / name))
        except Exception as error:
            raise OSError(self._unreadable(error)) from error
        for name in set(self._local_files()) - set(names):
            (self.path / name).unlink()
        self._uploaded = self._local_files()
        return self

    def push(self) -> None:
        """Upload changed files. If the bucket is unreachable, warn and keep the files for later."""
        try:
            for name, stamp in self._local_files().items():
                if self._uploaded.get(name) != stamp:
                    self.files.put_file(str(self.path / name), f"{self.address}/{name}")
                    self._uploaded[name] = stamp
            self._has_unsent_files = False
        except Exception as error:
            self._has_unsent_files = True
            warnings.warn(
                f"{self.address} cannot be written ({_cause(error)}): "
                f"its newest records are in {self.path}",
                stacklevel=2,
            )

    def clear(self) -> None:
        super().clear()
        bucket = self.address.removeprefix("gs://")
        remaining = {f"{bucket}/{name}" for name in (file_names.LOCK, file_names.MARKER)}
        with contextlib.suppress(FileNotFoundError):
            if names := [name for name in self.files.find(self.address) if name not in remaining]:
                self.files.rm(names)
        self._uploaded = {
            name: stamp for name, stamp in self._uploaded.items() if name == file_names.MARKER
        }

    def _delete_copy(self) -> None:
        if not self._has_unsent_files:
            shutil.rmtree(self._copy, ignore_errors=True)

    def _unreadable(self, error: Exception) -> str:
        return (
            f"{self.address} cannot be read ({_cause(error)}): does the bucket exist, and may this "
            "machine use it (`gcloud auth application-default login`, or a service account that "
            "may read and write its objects)?"
        )

    def _local_files(self) -> dict[str, tuple]:
        """Size and modification time of each file of the copy."""
        paths = [path for path in self.path.rglob("*") if path.is_file()]
        return {
            str(path.relative_to(self.path)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in paths
            if not path.name.endswith(files.PART)
        }

    def _remote_files(self) -> list[str]:
        """Names of the small files in the bucket. Checkpoints are not listed."""
        try:
            entries = self.files.ls(self.address, detail=True)
        except FileNotFoundError:
            # A missing run has no files; a missing bucket raises in this line.
            self.files.ls(self.address.split("/")[2])
            return []
        names = []
        for entry in entries:
            if entry["type"] != "directory":
                names.append(entry["name"])
            elif not entry["name"].endswith(f"/{file_names.CHECKPOINTS}"):
                names += self.files.find(entry["name"])
        names = [name.removeprefix(self.address.removeprefix("gs://") + "/") for name in names]
        return [name for name in names if name != file_names.LOCK and not name.endswith("/")]


def run_address(runs: str, name: str) -> str:
    """Address of a run.

    Args:
        runs: folder or gs:// address that contains the run folders.
        name: name of the run, a single part of a path.

    Returns:
        `runs/name`.

    Raises:
        ValueError: `runs` is empty, or `name` is not a single part of a path.

    >>> run_address("gs://bucket/runs/", "first")
    'gs://bucket/runs/first'
    """
    if not runs.strip():
        raise ValueError(
            "--runs is empty: give the folder that contains the run folders, such as runs, "
            "or gs://BUCKET/runs"
        )
    if (
        name in ("", ".", "..")
        or name != name.strip()
        or re.search(r"[/\\\x00-\x1f\x7f-\x9f]", name)
        or len(os.fsencode(name)) > 200
    ):
        raise ValueError(
            f"{name!r} cannot be the name of a run: it must be a single part of a path, at most "
            "200 bytes, without '/', '\\', control characters or spaces around it, "
            "and not '.' or '..'; "
            "--runs is the folder that contains the run folders"
        )
    return f"{runs.rstrip('/')}/{name}"


def open_run_folder(folder: str | os.PathLike) -> RunFolder:
    """Run folder at a path or gs:// address. A process has one object for each bucket address."""
    if address := storage.bucket_address(folder):
        return _bucket_run_folder(address)
    return RunFolder(folder)


def local_path(folder: str | os.PathLike) -> Path:
    """Local folder with the small files of a run, downloaded if the run is in a bucket."""
    return open_run_folder(folder).pull().path


_bucket_run_folder = functools.cache(BucketRunFolder)


def _cause(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0]}"
