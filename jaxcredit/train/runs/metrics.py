"""Writer of a run's metrics, to files and to the console.

The files are metrics.jsonl, samples.jsonl, config.json, TensorBoard events and curves.png.
metrics.jsonl and samples.jsonl are the record of the run: if they cannot be written, the run stops.
The other outputs are optional. Metrics that depend on the clock have names that begin with "time/".
All other metrics of a run that was interrupted and resumed are bit for bit those of a run without
interruption.
"""

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxcredit.train.runs import file_names, old_names
from jaxcredit.train.runs.console import Display, Summary
from jaxcredit.train.runs.json_lines import iterate_metrics, truncate_after
from jaxcredit.train.runs.json_values import to_json
from jaxcredit.train.runs.optional_output import OptionalOutput
from jaxcredit.train.runs.timing import goodput_metrics
from jaxcredit.utils import files


class MetricsWriter:
    """Context manager that writes and displays the metrics of a run.

    Metrics may be scalars on the device. They are fetched one step late, so that writing them does
    not block the device. `flush` fetches and writes them at once, and has to precede a checkpoint
    of the same step. Only process 0 writes.

    Args:
        folder: local run folder.
        steps: number of steps of the run.
        start: step that was restored, 0 for a new run. Lines of later steps are deleted.
        title: heading of console output.
        config: fields of the experiment, written to config.json.
        address: address of the run for messages; "": `folder`.
        console: where to print (default: standard output).
        pace_s: seconds between lines, if there is no terminal.
        recent_steps: number of the newest lines that `recent` holds.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        steps: int,
        start: int = 0,
        title: str = "",
        config: Any = None,
        address: str = "",
        console: Console | None = None,
        pace_s: float = 5.0,
        recent_steps: int = 1,
    ):
        self.folder, self.steps, self.title = Path(folder), steps, title
        self.address = address or str(folder)
        self.writes = jax.process_index() == 0
        self._pending: tuple[int, dict, float] | None = None  # step, metrics, seconds
        self._files: dict[str, Any] = {}
        self._summary, self._recent = Summary(), deque(maxlen=max(1, recent_steps))
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            records = file_names.METRICS, file_names.SAMPLES
            damaged = {name: truncate_after(self.folder / name, start) for name in records}
            self._summary = Summary(iterate_metrics(self.folder))
            events = self.folder / file_names.TENSORBOARD
            self._events = OptionalOutput(f"TensorBoard ({events})", _events, events, start)
            self._display = OptionalOutput(
                "the console", Display, console or Console(), steps, start, title, pace_s
            )
            try:
                for name, count in damaged.items():
                    if count:
                        self.note(
                            f"{name}: damaged lines ({count}) are moved to {name}.damaged; "
                            "all other lines are kept"
                        )
                self._write_config(config)
            except BaseException:
                self._events.close()
                self._display.close()  # otherwise the terminal keeps the bar and lacks its cursor
                raise
        self._started = time.monotonic() - self._summary.last.get("time/total_s", 0.0)
        self._logged = time.monotonic()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        self.close(failed=kind is not None and not issubclass(kind, SystemExit))

    @property
    def last(self) -> dict[str, Any]:
        """Metrics of the newest step. Fetches them from the device."""
        self.flush()
        return dict(self._summary.last)

    @property
    def recent(self) -> Sequence[dict[str, Any]]:
        """Metrics of the newest steps that were written, oldest first."""
        return self._recent

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log the metrics of a step.

        A second call for the same step adds to its metrics. A call for an earlier step deletes the
        lines of that step and of later ones.

        Args:
            step: number of the step.
            metrics: scalars by name, on the host or on the device. A value that is not finite is
                written as null.

        Raises:
            ValueError: a metric is not a scalar (raised when the metrics are fetched).
        """
        if self._pending and self._pending[0] == step:
            self._pending[1].update(metrics)
            return
        self._write_pending()
        now = time.monotonic()
        self._pending, self._logged = (step, dict(metrics), now - self._logged), now

    def log_samples(self, step: int, items: Sequence[Mapping[str, Any]]) -> None:
        """Append example answers of a step to samples.jsonl, one line for each mapping."""
        if self.writes:
            self._append(
                file_names.SAMPLES, step, [{"step": step, **to_json(item)} for item in items]
            )

    def note(self, text: str) -> None:
        """Print a line on the console. It is not recorded."""
        if self.writes:
            self._display.note(text)

    def flush(self) -> None:
        """Fetch pending metrics, and write everything that was logged to the disk."""
        self._write_pending()
        for name, (file, _) in list(self._files.items()):
            with self._errors_of_writing(name):
                file.flush()
                os.fsync(file.fileno())

    def close(self, *, failed: bool = False) -> None:
        """Write pending metrics, draw the curves and print the final table.

        Args:
            failed: write pending metrics only.
        """
        try:
            self.flush()
        finally:
            for name in list(self._files):
                self._close_file(name)
            if self.writes:
                self._events.close()
                self._display.close()
        if self.writes and self._summary.last and not failed:
            drawing = OptionalOutput(f"drawing {self.folder / file_names.CURVES}")
            drawing(_curves, self.folder)
            self._display.table(self._summary, self.title, self.address)

    def _write_pending(self) -> None:
        if not self._pending:
            return
        (step, metrics, seconds), self._pending = self._pending, None
        line = {"step": step, **{name: _number(x) for name, x in jax.device_get(metrics).items()}}
        line |= {
            "time/step_s": round(seconds, 4),
            "time/total_s": round(time.monotonic() - self._started, 3),
        }
        if line.get("tokens"):
            line["time/tokens_per_s"] = round(line["tokens"] / max(seconds, 1e-9), 1)
        if self._summary.last and self._summary.last["step"] >= step:
            self._drop_from(step)
        line |= goodput_metrics(line, dict(self._summary.last))
        self._summary.add(line)
        self._recent.append(line)
        if self.writes:
            self._append(file_names.METRICS, step, [line])
            self._events.step(step, {name: x for name, x in line.items() if name != "step"})
            self._display.step(self._summary)

    def _drop_from(self, step: int) -> None:
        """Delete the metrics of this step and of all later ones."""
        self._recent = deque(
            (line for line in self._recent if line["step"] < step), self._recent.maxlen
        )
        if self.writes:
            self._close_file(file_names.METRICS)
            truncate_after(self.folder / file_names.METRICS, step - 1)
        self._summary = Summary(iterate_metrics(self.folder) if self.writes else self._recent)

    def _append(self, name: str, step: int, items: list[dict]) -> None:
        with self._errors_of_writing(name):
            file, newest = self._files.get(name, (None, step))
            if file is None or newest > step:
                self._close_file(name)
                truncate_after(self.folder / name, step - 1)
                file = open(self.folder / name, "a")  # noqa: SIM115 (closed by `close`)
            self._files[name] = file, step
            for item in items:
                file.write(json.dumps(item, allow_nan=False) + "\n")
            file.flush()

    @contextlib.contextmanager
    def _errors_of_writing(self, name: str):
        """Context that adds the file name and the remedy to an OSError."""
        try:
            yield
        except OSError as error:
            self._close_file(name)
            raise OSError(
                f"{self.folder / name} cannot be written ({error.strerror or error}), and a run "
                "does not continue without its record: free space on that disk, or make the folder "
                "writable, and continue from the newest checkpoint with --resume auto"
            ) from error

    def _close_file(self, name: str) -> None:
        """Close a file, and discard data that could not be written."""
        file, _ = self._files.pop(name, (None, None))
        if file:
            with contextlib.suppress(OSError):
                file.close()

    def _write_config(self, config: Any) -> None:
        """Write config.json, and note fields that differ from those of an earlier start."""
        path, new = self.folder / file_names.CONFIG, to_json(config or {})
        if path.exists():
            try:
                old = old_names.options(json.loads(path.read_bytes())["config"])
                changed = [
                    f"{name}: {value!r} -> {new.get(name)!r}"
                    for name, value in old.items()
                    if value != new.get(name)
                ]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                self.note(
                    f"{file_names.CONFIG} of this folder was damaged or empty: it is written again"
                )
            else:
                if changed:
                    self.note(
                        f"{file_names.CONFIG} of this folder had other values: "
                        + "; ".join(changed)
                    )
        environment = {
            "jax": jax.__version__,
            "numpy": np.__version__,
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
        }
        text = json.dumps({"config": new, "environment": environment}, indent=2) + "\n"
        files.write_atomic(path, text)


def _events(folder: Path, start: int):
    # Imports protobuf, which reading a run folder does not need.
    from jaxcredit.train.runs.tensorboard import Events

    return Events(folder, start)


def _curves(folder: Path) -> None:
    from jaxcredit.train.runs import plots  # matplotlib is slow to import

    plots.curves(folder)


def _number(x: Any) -> float | int | None:
    """Python number of a scalar; None if it is not finite, which JSON cannot express."""
    x = np.asarray(x)
    if x.size != 1:
        raise ValueError(
            f"a metric is one number, this one has shape {x.shape}: take its mean first"
        )
    value = x.item()
    return (
        (int(value) if isinstance(value, bool | int) else float(value))
        if np.isfinite(value)
        else None
    )
