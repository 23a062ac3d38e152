"""Logs of single processes.

`hosts/00000.log` has events, `hosts/00000.jsonl` has times and memory of each step. These files
show which host of several is slow or has failed. metrics.jsonl has the metrics of the whole run. A
resumed run appends to its logs.
"""

import contextlib
import json
import os
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import IO, Any

import jax

from jaxcredit.train.runs import file_names
from jaxcredit.train.runs.optional_output import OptionalOutput
from jaxcredit.utils.plain_text import visible


class HostLog:
    """Log of this process, with its warnings and its last exception.

    If the log cannot be written, this is a warning, and the run continues without a log.

    Args:
        folder: local run folder.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.process = Path(folder) / file_names.HOSTS, jax.process_index()
        self._files: dict[str, IO[str]] = {}
        self._write = OptionalOutput(
            f"the log of this process ({self.folder / f'{self.process:05d}.log'})"
        )
        devices = ", ".join(f"{d.device_kind} {d.id}" for d in jax.local_devices()[:8])
        self.log(
            f"begin: {socket.gethostname()}, pid {os.getpid()}, "
            f"process {self.process} of {jax.process_count()}, {devices}; "
            f"jax {jax.__version__}, python {sys.version.split()[0]}"
        )

    def __enter__(self) -> "HostLog":
        self._shown = warnings.showwarning

        def showwarning(message, category, *args, **kwargs):
            self.log(f"{category.__name__}: {message}")
            self._shown(message, category, *args, **kwargs)

        warnings.showwarning = self._hook = showwarning
        return self

    def __exit__(self, kind, error, trace) -> None:
        if warnings.showwarning is self._hook:
            warnings.showwarning = self._shown
        if kind is None:
            self.log("end")
        elif issubclass(kind, SystemExit):
            self.log(f"end with code {error.code}")
        else:
            self.log("failed\n" + "".join(traceback.format_exception(kind, error, trace)).rstrip())
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def log(self, text: str) -> None:
        """Append a line with the time (UTC) to the .log file, and flush it."""
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        self._write(self._append, "log", f"{now} {visible(text, '  ')}\n")

    def log_step(self, step: int, **seconds: Any) -> None:
        """Append this process's times and memory of a step to the .jsonl file.

        Args:
            step: number of the step.
            seconds: times by name, as numbers on the host. This call never waits for the device.
        """
        line = {"step": step, "at": round(time.time(), 3)}
        line |= {name: round(float(x), 4) for name, x in seconds.items()} | memory_use()
        self._write(self._append, "jsonl", json.dumps(line) + "\n")

    def _append(self, kind: str, text: str) -> None:
        if kind not in self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.process:05d}.{kind}"
            self._files[kind] = open(path, "a", encoding="utf-8")  # noqa: SIM115 (see __exit__)
        self._files[kind].write(text)
        self._files[kind].flush()


def memory_use() -> dict[str, float]:
    """Memory in GB (1e9 bytes), as far as the system and the driver report it.

    Returns:
        rss_gb: resident memory of this process.
        device_gb, device_peak_gb: present and largest use of the fullest local device.
    """
    out = {}
    try:
        with open("/proc/self/statm") as f:
            out["rss_gb"] = round(int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9, 3)
    except OSError:  # not Linux
        pass
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    for name, key in (("device_gb", "bytes_in_use"), ("device_peak_gb", "peak_bytes_in_use")):
        if any(key in s for s in stats):
            out[name] = round(max(s.get(key, 0) for s in stats) / 1e9, 3)
    return out
