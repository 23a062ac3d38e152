"""What a run leaves behind and shows while it works: one JSON object a step, samples, TensorBoard events, curves, a live display.

    runs/NAME/  config.json  metrics.jsonl  samples.jsonl  tensorboard/  curves.png  (and checkpoints/, which are not ours)

Everything that depends on the clock has a key under "time/": without those keys the metrics of a run that was killed and resumed are
bit for bit the metrics of one that never stopped.

metrics.jsonl and samples.jsonl are the run's record: where they cannot be written, the run stops. All else is optional.
"""

import contextlib
import inspect
import json
import os
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxcredit.train.runs import old_names
from jaxcredit.train.runs.console import Display, Summary
from jaxcredit.train.runs.json_lines import iterate_metrics, truncate_after
from jaxcredit.train.runs.masking import is_secret, masked
from jaxcredit.train.runs.optional_output import OptionalOutput
from jaxcredit.train.runs.timing import goodput_metrics
from jaxcredit.utils import files


class MetricsWriter:
    """The run folder, as a context manager. `start` is the step that was restored: whatever the folder says of later steps is dropped.

    Metrics may be device scalars. They are fetched one step late, so that writing them never holds up the device; `flush` fetches and
    writes them at once and must come before a checkpoint of the same step. Only the first process writes. `keep`: how many of the newest
    lines stay in memory.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        steps: int,
        start: int = 0,
        title: str = "",
        config: Any = None,
        address: str = "",  # where a reader finds the folder, if not there
        console: Console | None = None,
        pace_s: float = 5.0,
        recent_steps: int = 1,
    ):
        self.folder, self.steps, self.title, self.address = (
            Path(folder),
            steps,
            title,
            address or str(folder),
        )
        self.writes = jax.process_index() == 0
        self._held: tuple[int, dict, float] | None = None
        self._files: dict[str, Any] = {}
        self._summary, self._recent = Summary(), deque(maxlen=max(1, recent_steps))
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            damaged = {
                name: truncate_after(self.folder / name, start)
                for name in ("metrics.jsonl", "samples.jsonl")
            }
            self._summary = Summary(iterate_metrics(self.folder))
            self._events = OptionalOutput(
                f"TensorBoard ({self.folder / 'tensorboard'})",
                _events,
                self.folder / "tensorboard",
                start,
            )
            self._show = OptionalOutput(
                "the console", Display, console or Console(), steps, start, title, pace_s
            )
            try:
                for name, count in damaged.items():
                    if count:
                        self.note(
                            f"{name}: damaged lines ({count}) are set aside in {name}.damaged; the whole lines around them are kept"
                        )
                self._config(config)
            except BaseException:
                self._events.close()
                self._show.close()  # else the terminal keeps a bar, and no cursor
                raise
        self._begun = time.monotonic() - self._summary.last.get("time/total_s", 0.0)
        self._tick = time.monotonic()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        self.close(failed=kind is not None and not issubclass(kind, SystemExit))

    @property
    def last(self) -> dict[str, Any]:
        """The newest metrics."""
        self.flush()
        return dict(self._summary.last)

    @property
    def recent(self) -> Sequence[dict[str, Any]]:
        """The last `keep` steps that this process logged, without the latest one."""
        return self._recent

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The metrics of a step. A step logged twice is one object; going back in steps rewrites the file from there."""
        if self._held and self._held[0] == step:
            self._held[1].update(metrics)
            return
        self._write_held()
        now = time.monotonic()
        self._held, self._tick = (step, dict(metrics), now - self._tick), now

    def log_samples(self, step: int, items: Sequence[Mapping[str, Any]]) -> None:
        """Prompts, answers and scores to look at, one line each."""
        if self.writes:
            self._append("samples.jsonl", step, [{"step": step, **plain(item)} for item in items])

    def note(self, text: str) -> None:
        """A line for the reader, kept nowhere."""
        if self.writes:
            self._show.note(text)

    def flush(self) -> None:
        """Everything logged so far lies on the disk."""
        self._write_held()
        for name, (file, _) in list(self._files.items()):
            with self._written(name):
                file.flush()
                os.fsync(file.fileno())

    def close(self, *, failed: bool = False) -> None:
        """Write what is held, draw the curves, show the table. After a failure only what is held is written."""
        try:
            self.flush()
        finally:
            for name in list(self._files):
                self._drop(name)
            if self.writes:
                self._events.close()
                self._show.close()
        if self.writes and self._summary.last and not failed:
            OptionalOutput(f"drawing {self.folder / 'curves.png'}")(_curves, self.folder)
            self._show.table(self._summary, self.title, self.address)

    def _write_held(self) -> None:
        if not self._held:
            return
        (step, metrics, took), self._held = self._held, None
        line = {"step": step, **{name: _number(x) for name, x in jax.device_get(metrics).items()}}
        line |= {
            "time/step_s": round(took, 4),
            "time/total_s": round(time.monotonic() - self._begun, 3),
        }
        if line.get("tokens"):
            line["time/tokens_per_s"] = round(line["tokens"] / max(took, 1e-9), 1)
        if self._summary.last and self._summary.last["step"] >= step:
            self._back_before(step)
        line |= goodput_metrics(line, dict(self._summary.last))
        self._summary.add(line)
        self._recent.append(line)
        if self.writes:
            self._append("metrics.jsonl", step, [line])
            self._events.step(step, {name: x for name, x in line.items() if name != "step"})
            self._show.step(self._summary)

    def _back_before(self, step: int) -> None:
        """Drop the records of this step and all later ones."""
        self._recent = deque(
            (line for line in self._recent if line["step"] < step), self._recent.maxlen
        )
        if self.writes:
            self._drop("metrics.jsonl")
            truncate_after(self.folder / "metrics.jsonl", step - 1)
        self._summary = Summary(iterate_metrics(self.folder) if self.writes else self._recent)

    def _append(self, name: str, step: int, items: list[dict]) -> None:
        with self._written(name):
            file, newest = self._files.get(name, (None, step))
            if file is None or newest > step:
                self._drop(name)
                truncate_after(self.folder / name, step - 1)
                file = open(self.folder / name, "a")  # noqa: SIM115 (closed by `close`)
            self._files[name] = file, step
            for item in items:
                file.write(json.dumps(item, allow_nan=False) + "\n")
            file.flush()

    @contextlib.contextmanager
    def _written(self, name: str):
        """Context that adds the file name and the fix to errors of writing."""
        try:
            yield
        except OSError as error:
            self._drop(name)
            raise OSError(
                f"{self.folder / name} cannot be written ({error.strerror or error}), and no step goes unrecorded: free space on that "
                "disk, or make the folder writable, and go on from the newest checkpoint with --resume auto"
            ) from error

    def _drop(self, name: str) -> None:
        """Close the file, discarding data that could not be written."""
        file, _ = self._files.pop(name, (None, None))
        if file:
            with contextlib.suppress(OSError):
                file.close()

    def _config(self, config: Any) -> None:
        path, new = self.folder / "config.json", plain(config or {})
        if path.exists():
            try:
                old = old_names.options(json.loads(path.read_bytes())["config"])
                changed = [
                    f"{k}: {value!r} -> {new.get(k)!r}"
                    for k, value in old.items()
                    if value != new.get(k)
                ]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                self.note("config.json of this folder was damaged or empty: it is written anew")
            else:
                if changed:
                    self.note("config.json of this folder said otherwise: " + "; ".join(changed))
        device = jax.devices()[0]
        around = {
            "jax": jax.__version__,
            "numpy": np.__version__,
            "device": device.device_kind,
            "devices": jax.device_count(),
        }
        files.write_atomic(
            path, json.dumps({"config": new, "environment": around}, indent=2) + "\n"
        )


def plain(x: Any) -> Any:
    """JSON description of a value: functions by name, partials with their arguments, dataclasses by field, arrays by shape.

    Texts whose names are those of credentials (masking.is_secret) are masked.
    """
    if isinstance(x, float):
        return x if np.isfinite(x) else str(x)
    if x is None or isinstance(x, bool | int | str):
        return x
    if isinstance(x, Mapping):
        return {str(k): plain(masked(v) if is_secret(str(k)) else v) for k, v in x.items()}
    if isinstance(x, list | tuple | set | frozenset):
        return [plain(v) for v in x]
    if isinstance(x, np.generic) or (hasattr(x, "shape") and x.shape == ()):
        return plain(x.item())
    if hasattr(x, "shape"):
        return f"{x.dtype}{list(x.shape)}"
    if hasattr(x, "func") and hasattr(x, "keywords"):
        names = _positional(x.func, len(x.args))
        given = {
            str(i): plain(masked(a) if is_secret(n) else a)
            for i, (n, a) in enumerate(zip(names, x.args, strict=True))
        }
        name, args = plain(x.func), {**given, **plain(x.keywords)}
        return {name: args} if isinstance(name, str) else {**name, "with": args}
    if hasattr(x, "__dataclass_fields__") and not isinstance(x, type):
        return plain({name: getattr(x, name) for name in x.__dataclass_fields__})
    if hasattr(x, "__qualname__"):
        module = str(x.__module__)
        if module.startswith("jaxcredit."):
            return x.__qualname__  # stays the same when a module moves
        return f"{re.sub('^jaxcredit_config_[0-9a-f]+_', '', module)}.{x.__qualname__}"  # a config by its file's name
    return str(x) if isinstance(x, Path) else type(x).__qualname__


def _positional(function: Any, count: int) -> list[str]:
    """Names of a function's first `count` parameters, padded with ""."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = []
    return [*names, *[""] * count][:count]


def _events(folder: Path, start: int):
    from jaxcredit.train.runs.tensorboard import (
        Events,
    )  # imports protobuf, which reading a run folder does not need

    return Events(folder, start)


def _curves(folder: Path) -> None:
    from jaxcredit.train.runs import plots  # matplotlib takes a second to import

    plots.curves(folder)


def _number(x: Any) -> float | int | None:
    """A Python number; None for what is not finite, which JSON cannot say."""
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
