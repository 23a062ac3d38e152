"""Lock of a run folder, local or in a bucket, so that one process trains in it at a time."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path

from jaxcredit.train.runs import storage
from jaxcredit.train.runs.file_names import LOCK

BEAT_S = 15.0  # seconds between heartbeats
STALE_S = 120.0  # seconds without a heartbeat after which a lock of another machine is stale
_mine: set[str] = set()  # tokens of the locks that this process holds


class Locked(RuntimeError):
    """Another process trains in this run folder."""


class FolderGone(RuntimeError):
    """The run folder was deleted, moved or taken over by another process during training."""


class Lock:
    """Lock of a run folder, renewed by a heartbeat thread until `release`.

    The lock of a dead process on this machine is stale at once. The lock of another machine is
    stale if its heartbeat has not changed for `stale_s` seconds, counted from its last timestamp.
    Because clocks differ between machines, the heartbeat is always observed for at least 1.5
    intervals.

    Args:
        folder: path or gs:// address of the run folder.
        beat_s: seconds between heartbeats.
        stale_s: seconds without a heartbeat after which another machine's lock is stale.
    """

    def __init__(
        self, folder: str | os.PathLike, *, beat_s: float = BEAT_S, stale_s: float = STALE_S
    ):
        self.folder, self.store = os.fspath(folder), storage.open_storage(folder)
        self.beat_s, self.stale_s = beat_s, stale_s
        self.entry = {**_this_process(), "since": _utc(), "token": uuid.uuid4().hex}
        # Text of another process's lock, when it was first read, and when it becomes stale.
        self._seen: tuple[str, float, float] | None = None
        self._thread: threading.Thread | None = None
        self._end, self._lost, self._missing = threading.Event(), "", False

    def acquire(self, *, wait: bool) -> str:
        """Acquire the lock once, without blocking.

        Args:
            wait: allow another machine's lock to become stale; call again until the result is "".

        Returns:
            "" if the lock is acquired, else a message with the remaining waiting time.

        Raises:
            Locked: the lock is held by a process that is alive, or on another machine without
                `wait`.
        """
        with self.store.exclusive():
            if not self.store.create(LOCK, self._text()):
                held = self._read()
                if held is not None and not self._stale(held, wait):
                    return self._waiting(held)
                self.store.delete(LOCK)
                if not self.store.create(LOCK, self._text()):
                    raise Locked(
                        f"{self.folder}: another process took the lock at the same moment; "
                        "try again"
                    )
        _mine.add(self.entry["token"])
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()
        return ""

    def check(self) -> None:
        """Raise FolderGone if the folder is gone or another process has taken it."""
        self._renew(write=False)
        if self._lost:
            raise FolderGone(self._lost)

    def release(self) -> None:
        """Stop the heartbeat and delete the lock file, if it is still that of this object."""
        if self._thread is None:
            return
        self._end.set()
        self._thread.join()
        _mine.discard(self.entry["token"])
        try:
            if (held := self._read()) is not None and _entry(held).get("token") == self.entry[
                "token"
            ]:
                self.store.delete(LOCK)
        except Exception as error:  # bucket unreachable: the lock becomes stale
            print(
                f"the lock of {self.folder} could not be removed ({error}); "
                f"it expires in {self.stale_s:g} s",
                file=sys.stderr,
            )

    def _text(self) -> str:
        return json.dumps({**self.entry, "beat": time.time()})

    def _read(self) -> str | None:
        try:
            return self.store.read(LOCK)
        except FileNotFoundError:
            return None
        except ValueError:  # not UTF-8
            return ""

    def _stale(self, text: str, wait: bool) -> bool:
        held, now = _entry(text), time.monotonic()
        if held.get("token") in _mine or (_same_machine(held) and _alive(held)):
            raise Locked(self._message(held))
        if _same_machine(held):
            return True
        if self._seen is None:
            age = time.time() - held["beat"] if isinstance(held.get("beat"), int | float) else 0.0
            self._seen = (
                text,
                now,
                now + min(max(self.stale_s - age, 1.5 * self.beat_s), self.stale_s),
            )
        if not wait or text != self._seen[0]:
            raise Locked(self._message(held))
        return now >= self._seen[2]

    def _waiting(self, text: str) -> str:
        assert self._seen is not None  # set by `_stale`
        left = max(self._seen[2] - time.monotonic(), 0)
        who = _who(_entry(text))
        return (
            f"{who} left {self.folder} locked, or still trains there: "
            f"this run begins in {left:.0f} s, unless its heartbeat changes"
        )

    def _message(self, held: dict) -> str:
        return (
            f"{_who(held)} has been training in {self.folder} since "
            f"{held.get('since', 'an unknown time')}: stop it first, wait for its end, or choose "
            f"another --run name (the lock is {LOCK} in that folder)"
        )

    def _beat(self) -> None:
        while not self._lost and not self._end.wait(self.beat_s):
            # No other process can take the lock between reading and writing.
            with contextlib.suppress(OSError), self.store.exclusive():
                self._renew(write=True)

    def _renew(self, *, write: bool) -> None:
        try:
            held = self._read()
            if held is None:
                if isinstance(self.store, storage.Disk) and not self.store.root.is_dir():
                    self._lost = (
                        f"{self.folder} was deleted or moved during training: files that are not "
                        "saved elsewhere are lost"
                    )
                elif write and self._missing:
                    # Missing for a full interval: an earlier file could disturb a deletion.
                    self.store.create(LOCK, self._text())
            elif _entry(held).get("token") not in (None, self.entry["token"]):
                self._lost = (
                    f"{_who(_entry(held))} has taken {self.folder} over: "
                    "this process stops, so that the files of the two do not mix"
                )
            elif write:
                self.store.write(LOCK, self._text())
            self._missing = held is None if write else self._missing
        except Exception:  # bucket unreachable or disk full: the next heartbeat may succeed
            pass


def _this_process() -> dict:
    """Identity of this process, with which other processes check whether it is alive."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        **_machine(),
        "started": _started(os.getpid()),
    }


def _machine() -> dict:
    """Boot id and PID namespace. Containers may share a host name but have separate process ids."""
    try:
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "namespace": os.readlink("/proc/self/ns/pid"),
        }
    except OSError:  # no Linux
        return {"boot": "", "namespace": ""}


def _started(pid: int) -> str | None:
    """Start time of a process in ticks since boot, because process ids are reused.

    None: no such process. "": unknown on this system.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else ""
    except (OSError, IndexError):
        return ""


def _same_machine(held: dict) -> bool:
    return (
        held.get("host") == socket.gethostname()
        and {k: held.get(k) for k in ("boot", "namespace")} == _machine()
    )


def _alive(held: dict) -> bool:
    pid = held.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    if pid == os.getpid():  # a lock of this process would be in _mine
        return False
    started = _started(pid)
    if started is None:
        return False
    if not started:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True
    return started == held.get("started")


def _entry(text: str) -> dict:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _who(held: dict) -> str:
    return f"process {held.get('pid', 'unknown')} on {held.get('host', 'an unknown host')}"


def _utc() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
