"""Profiler traces of chosen training steps."""

from pathlib import Path

import jax

from jaxcredit.train.runs.optional_output import OptionalOutput


class Profiler:
    """Profiler trace of a range of steps, for TensorBoard, XProf or Perfetto.

    Process 0 writes the trace. If it cannot be written, this is a warning, and the run continues.

    Args:
        folder: folder of the trace.
        steps: first and last step of the trace, both included; None: no trace.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self.folder = folder
        self.first, self.last = steps if steps and jax.process_index() == 0 else (0, -1)
        self._running, self._step = False, None
        self._optional = OptionalOutput(f"the profile ({folder})")

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def before_step(self, step: int) -> None:
        """Start the trace if `step` is its first step, and mark the beginning of the step."""
        if self.first <= step <= self.last:
            if not self._running:
                self._optional(jax.profiler.start_trace, self.folder)
                self._running = not self._optional.failed
            if self._running:
                self._step = jax.profiler.StepTraceAnnotation("step", step_num=step)
                self._step.__enter__()

    def after_step(self, step: int, state) -> None:
        """Mark the end of a step. After the last one, wait for the device and stop the trace.

        Args:
            step: number of the step.
            state: arrays that the step computed.
        """
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


def step_range(text: str) -> tuple[int, int]:
    """First and last step from the value of `--profile`.

    Raises:
        ValueError: the text is not FIRST:LAST or STEP with 0 < FIRST <= LAST.

    >>> step_range("10:13"), step_range("10")
    ((10, 13), (10, 10))
    """
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
