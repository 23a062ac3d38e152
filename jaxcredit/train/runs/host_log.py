"""One log a host: `hosts/00000.log`, what this process did and when, and `hosts/00000.jsonl`, its own seconds and memory a step.

Read them when one host of many is slow or gone: what the run as a whole did is in metrics.jsonl. Both go on after a restart.
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

from jaxcredit.train.runs.optional_output import OptionalOutput
from jaxcredit.utils.plain_text import visible


class HostLog:
    """Log of one process, in hosts/ of the run folder. It includes warnings. A log that cannot be written is left out with a warning."""

    def __init__(self, folder: str | Path):
        self.folder, self.process = Path(folder) / "hosts", jax.process_index()
        self._files: dict[str, IO[str]] = {}
        self._write = OptionalOutput(
            f"the log of this process ({self.folder / f'{self.process:05d}.log'})"
        )
        devices = ", ".join(f"{d.device_kind} {d.id}" for d in jax.local_devices()[:8])
        self.log(
            f"begin: {socket.gethostname()}, pid {os.getpid()}, process {self.process} of {jax.process_count()}, {devices}; "
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
        """A line with the time, at once on its way to the disk."""
        self._write(
            self._append,
            "log",
            f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {visible(text, '  ')}\n",
        )

    def log_step(self, step: int, **seconds: Any) -> None:
        """This host's own numbers of a step; what is on the device is left there."""
        line = {"step": step, "at": round(time.time(), 3)}
        line |= {name: round(float(x), 4) for name, x in seconds.items()} | memory()
        self._write(self._append, "jsonl", json.dumps(line) + "\n")

    def _append(self, kind: str, text: str) -> None:
        if kind not in self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._files[kind] = open(
                self.folder / f"{self.process:05d}.{kind}", "a", encoding="utf-8"
            )  # noqa: SIM115 (see __exit__)
        self._files[kind].write(text)
        self._files[kind].flush()


def memory() -> dict[str, float]:
    """Gigabytes: the process' own, and of its fullest device in use and at most, where the driver tells."""
    out = {}
    try:
        with open("/proc/self/statm") as f:
            out["rss_gb"] = round(int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9, 3)
    except OSError:  # no Linux
        pass
    stats = [d.memory_stats() or {} for d in jax.local_devices()]
    for name, key in (("device_gb", "bytes_in_use"), ("device_peak_gb", "peak_bytes_in_use")):
        if any(key in s for s in stats):
            out[name] = round(max(s.get(key, 0) for s in stats) / 1e9, 3)
    return out
