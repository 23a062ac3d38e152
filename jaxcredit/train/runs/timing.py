"""Times of training steps, goodput, and peak FLOP/s of devices."""

import time

import jax

# Dense bfloat16 FLOP/s of one device, from the vendors' data sheets. Keys are beginnings of
# `jax.Device.device_kind`.
PEAK_FLOPS = {
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

_compile_seconds = 0.0  # spent in compilation by this process so far


def _add_compilation(event: str, duration_secs: float, **kwargs: str | int) -> None:
    global _compile_seconds
    if event in (
        "/jax/core/compile/backend_compile_duration",
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
    ):
        _compile_seconds += duration_secs


jax.monitoring.register_event_duration_secs_listener(_add_compilation)


class StepTimer:
    """Timer of a step's sampling, scoring and updating, without compilation.

    The caller excludes evaluation and saving: `stop` comes before them and `start` after them.
    """

    def __init__(self):
        self.start()

    def start(self) -> None:
        """Start timing a step."""
        self._started, self._compiled = time.perf_counter(), _compile_seconds

    def stop(self) -> float:
        """Seconds since `start`, compilation excluded."""
        elapsed = time.perf_counter() - self._started
        return max(0.0, elapsed - (_compile_seconds - self._compiled))


def peak_flops(kind: str) -> float | None:
    """Peak FLOP/s of one device; None for a device that `PEAK_FLOPS` lacks.

    Args:
        kind: `jax.Device.device_kind`.

    >>> peak_flops("TPU v5 lite"), peak_flops("cpu")
    (197000000000000.0, None)
    """
    names = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def goodput_metrics(line: dict, before: dict | None) -> dict:
    """Goodput and model FLOPs utilization after a step.

        goodput = sum of time/work_s / time since the run began
        MFU = flops / (time/work_s * peak FLOP/s of all devices)

    The denominator of goodput includes downtime, compilation, evaluation, saving, and steps that
    were lost and repeated.

    Args:
        line: metrics of the step, with time/total_s.
        before: metrics of the previous step; None before the first.

    Returns:
        time/began, time/good_s, and, where they are defined, time/goodput and time/mfu.
    """
    now = round(time.time(), 3)
    before = before or {}
    began: float = before.get("time/began") or round(now - line.get("time/total_s", 0.0), 3)
    good = before.get("time/good_s", 0.0) + line.get("time/work_s", 0.0)
    out = {"time/began": began, "time/good_s": round(good, 4)}
    if now > began:
        out["time/goodput"] = round(min(1.0, good / (now - began)), 4)
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak and line.get("flops") and line.get("time/work_s"):
        available = line["time/work_s"] * peak * jax.device_count()
        out["time/mfu"] = round(line["flops"] / available, 4)
    return out
