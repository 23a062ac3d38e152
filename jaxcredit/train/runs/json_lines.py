"""Reading and cutting of files with one JSON object per line, such as metrics.jsonl."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from jaxcredit.train.runs import old_names
from jaxcredit.train.runs.folder import local_path
from jaxcredit.utils import files


def read_metrics(folder: str | Path) -> list[dict]:
    """The metrics of a run, one dict a step; damaged lines and a half-written last line are left out."""
    return list(iterate_metrics(folder))


def iterate_metrics(folder: str | Path) -> Iterator[dict]:
    """Iterator over the metrics of a run, one mapping per step, for runs that do not fit into memory; otherwise like `read`."""
    path = local_path(folder) / "metrics.jsonl"
    if path.exists():
        yield from (old_names.metrics(line) for line, _ in _lines(path) if line is not None)


def truncate_after(path: Path, step: int) -> int:
    """Drop every line after `step`, and a line that was cut off by a kill. Returns the number of damaged lines.

    Damaged lines before `step` are moved to `NAME.damaged`, and the whole lines behind them are kept.
    """
    if not path.exists():
        return 0
    damaged, end = [], 0  # (offset, line)
    for line, raw in _lines(path):
        if line is not None and line["step"] > step:
            break
        damaged += [(end, raw)] if line is None else []
        end += len(raw)
    if not damaged:
        os.truncate(path, end)
        return 0
    with open(path.with_name(f"{path.name}.damaged"), "ab") as aside:
        aside.write(b"".join(raw for _, raw in damaged))
        aside.flush()
        os.fsync(aside.fileno())
    with open(path, "rb") as file:
        whole = bytearray(file.read(end))
    for offset, raw in reversed(damaged):
        del whole[offset : offset + len(raw)]
    files.write_atomic(path, bytes(whole))
    return len(damaged)


def _lines(path: Path) -> Iterator[tuple[dict | None, bytes]]:
    """Lines with the object that each holds: None of a damaged one, which is no JSON object with a whole `step`. The last line, if a kill
    cut it off, is left out."""
    with open(path, "rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):
                line = None
            yield line if isinstance(line, dict) and type(line.get("step")) is int else None, raw
