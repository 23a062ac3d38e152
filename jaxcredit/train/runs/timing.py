"""Where a run's wall time goes: seconds in steps that count, what of them was compiling, and a trace of chosen steps."""

import time

import jax

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


class StepTimer:
    """The seconds of a step's own work: sampling, judging, learning; without evaluation, saving and compilation."""

    def __init__(self):
        self.start()

    def start(self) -> None:
        """A step's work begins."""
        self._from, self._compiled = time.perf_counter(), _compiled

    def stop(self) -> float:
        """How long it took."""
        return max(0.0, time.perf_counter() - self._from - (_compiled - self._compiled))


def peak_flops(kind: str) -> float | None:
    """What a device can do; None where that is not written down."""
    fitting = [name for name in PEAK if kind.startswith(name)]
    return PEAK[max(fitting, key=len)] if fitting else None


def goodput_metrics(line: dict, before: dict | None) -> dict:
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
    most = peak_flops(jax.devices()[0].device_kind)
    if most and line.get("flops") and line.get("time/work_s"):
        out["time/mfu"] = round(
            line["flops"] / (line["time/work_s"] * most * jax.device_count()), 4
        )
    return out
