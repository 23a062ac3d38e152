"""Reading and truncation of files with one JSON object per line, such as metrics.jsonl."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from jaxcredit.train.runs import file_names, old_names
from jaxcredit.train.runs.folder import local_path
from jaxcredit.utils import files


def read_metrics(folder: str | Path) -> list[dict]:
    """Metrics of a run, one mapping for each step.

    Args:
        folder: path or gs:// address of the run folder.

    Returns:
        Mappings with "step" and the metrics of `metric_table.METRICS`. Damaged lines and a
        partially written last line are left out. Runs made before a metric was renamed have its new
        name.
    """
    return list(iterate_metrics(folder))


def iterate_metrics(folder: str | Path) -> Iterator[dict]:
    """Iterator over the metrics of a run, for runs that do not fit into memory.

    See `read_metrics`.
    """
    path = local_path(folder) / file_names.METRICS
    if path.exists():
        yield from (old_names.metrics(line) for line, _ in _lines(path) if line is not None)


def truncate_after(path: Path, step: int) -> int:
    """Delete the lines of later steps, and a partially written last line.

    Damaged lines of earlier steps are moved to `NAME.damaged`.

    Args:
        path: the file, which may be absent.
        step: last step whose lines stay.

    Returns:
        Number of damaged lines that were moved.
    """
    if not path.exists():
        return 0
    damaged: list[tuple[int, bytes]] = []  # offset and text
    end = 0
    for line, text in _lines(path):
        if line is not None and line["step"] > step:
            break
        if line is None:
            damaged.append((end, text))
        end += len(text)
    if not damaged:
        os.truncate(path, end)
        return 0
    with open(path.with_name(f"{path.name}.damaged"), "ab") as aside:
        aside.write(b"".join(text for _, text in damaged))
        aside.flush()
        os.fsync(aside.fileno())
    with open(path, "rb") as file:
        content = bytearray(file.read(end))
    for offset, text in reversed(damaged):
        del content[offset : offset + len(text)]
    files.write_atomic(path, bytes(content))
    return len(damaged)


def _lines(path: Path) -> Iterator[tuple[dict | None, bytes]]:
    """Object and text of each line. The object is None if the line is damaged.

    A line is damaged if it is no JSON object with an integer `step`. A last line without a newline,
    as an interrupted process leaves it, is left out.
    """
    with open(path, "rb") as file:
        for text in file:
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            is_valid = isinstance(line, dict) and type(line.get("step")) is int
            yield line if is_valid else None, text
