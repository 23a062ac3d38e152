"""TensorBoard events of a run, written by the calling thread: an error is raised where it happens, and nothing waits for another thread."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue] (generated)
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

FLUSH_S = 120.0  # a flush waits for the disk


class Events:
    """An event file in `folder`. `start` > 0: TensorBoard hides what older files of the folder say of later steps."""

    def __init__(self, folder: Path, start: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._flushed = time.monotonic()
        if start:
            self._file.write_event(Event(step=start + 1, file_version="brain.Event:2"))
            self._file.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        values = [value for name, x in metrics.items() if x is not None for value in scalar(name, x).value]
        self._file.write_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        self._file.flush()

    def close(self) -> None:
        self._file.close()
