"""TensorBoard event files, written by the calling thread, so that errors are raised in it."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue] (generated)
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from jaxcredit.train.runs.metric_table import description

FLUSH_S = 120.0  # seconds between flushes, each of which waits for the disk


class Events:
    """Writer of one event file.

    Args:
        folder: TensorBoard's log folder.
        start: step after which a resumed run continues; 0: a new run. TensorBoard hides later
            steps in older files of the folder.
    """

    def __init__(self, folder: Path, start: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter(str(folder / name))
        self._flushed = time.monotonic()
        self._described: set[str] = set()
        self._write(file_version="brain.Event:2")
        if start:
            self._write(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Write one event with all metrics of a step. Metrics that are None are left out."""
        values = [
            value
            for name, x in metrics.items()
            if x is not None
            for value in scalar(name, x, summary_description=self._description(name)).value
        ]
        self._write(step=step, summary=Summary(value=values))
        if time.monotonic() - self._flushed > FLUSH_S:
            self._flushed = time.monotonic()
            self._file.flush()

    def close(self) -> None:
        """Flush and close the file. It is closed even if the flush fails."""
        self._file.close()

    def _description(self, name: str) -> str:
        """Description of a metric for its first value in this file, "" for later values."""
        if name in self._described:
            return ""
        self._described.add(name)
        return description(name)

    def _write(self, **event) -> None:
        self._file.write(Event(wall_time=time.time(), **event).SerializeToString())
