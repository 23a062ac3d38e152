"""Where a run's wall time goes: seconds in steps that count, what of them was compiling, and a trace of chosen steps."""

import time
from pathlib import Path

import jax

from jaxcredit.train.runs.optional_output import OptionalOutput

# Dense bfloat16 FLOP/s of one device, by the beginning of what JAX calls it (vendors' data sheets).
PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
}

_compiled = 0.0


def _heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
    global _compiled
    if event in (
        "/jax/core/compile/backend_compile_duration",
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
    ):
        _compiled += duration_secs


jax.monitoring.register_event_duration_secs_listener(_heard)


class Clock:
    """The seconds of a step's own work: sampling, judging, learning; without evaluation, saving and compilation."""

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        """A step's work begins."""
        self._from, self._compiled = time.perf_counter(), _compiled

    def end(self) -> float:
        """How long it took."""
        return max(0.0, time.perf_counter() - self._from - (_compiled - self._compiled))


def peak(kind: str) -> float | None:
    """What a device can do; None where that is not written down."""
    fitting = [name for name in PEAK if kind.startswith(name)]
    return PEAK[max(fitting, key=len)] if fitting else None


def derived(line: dict, before: dict | None) -> dict:
    """What the clock says beside a step's metrics, from its line and the one before.

    Goodput: seconds in steps that count over all seconds since the run began. Time in which it was down, started, compiled, evaluated,
    saved, or took steps that a kill undid is in the second only. MFU: the step's FLOPs over what the devices could do in it.
    """
    now = round(time.time(), 3)
    before = before or {}
    began: float = before.get("time/began") or round(now - line.get("time/total_s", 0.0), 3)
    good = before.get("time/good_s", 0.0) + line.get("time/work_s", 0.0)
    out = {"time/began": began, "time/good_s": round(good, 4)}
    if now > began:
        out["time/goodput"] = round(min(1.0, good / (now - began)), 4)
    most = peak(jax.devices()[0].device_kind)
    if most and line.get("flops") and line.get("time/work_s"):
        out["time/mfu"] = round(
            line["flops"] / (line["time/work_s"] * most * jax.device_count()), 4
        )
    return out


class Profile:
    """A trace of the steps first..last (both included), written by the first process for TensorBoard, XProf or Perfetto.

    Where it cannot be written, the run goes on without it.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self.folder = folder
        self.first, self.last = steps if steps and jax.process_index() == 0 else (0, -1)
        self._running, self._step = False, None
        self._optional = OptionalOutput(f"the profile ({folder})")

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """The step is about to begin."""
        if self.first <= step <= self.last:
            if not self._running:
                self._optional(jax.profiler.start_trace, self.folder)
                self._running = not self._optional.failed
            if self._running:
                self._step = jax.profiler.StepTraceAnnotation("step", step_num=step)
                self._step.__enter__()

    def after(self, step: int, state) -> None:
        """The step's work has been sent to the device; of the last one its end is waited for."""
        if not self._running:
            return
        if step >= self.last:
            jax.block_until_ready(state)
        self._leave()
        if step >= self.last:
            self._stop()

    def _leave(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def _stop(self) -> None:
        if self._running:
            self._leave()
            self._running = False
            self._optional(jax.profiler.stop_trace)


def span(text: str) -> tuple[int, int]:
    """`10:13` to (10, 13); `10` to (10, 10)."""
    first, _, last = text.partition(":")
    try:
        steps = int(first), int(last or first)
    except ValueError:
        steps = 0, 0
    if not 0 < steps[0] <= steps[1]:
        raise ValueError(
            f"--profile {text}: give the steps to trace as FIRST:LAST, for example 10:13"
        )
    return steps
