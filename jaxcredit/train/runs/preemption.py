"""Preemption: on SIGTERM or Ctrl-C the run saves a checkpoint after the current step and exits."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax

from jaxcredit.parallel.processes import all_gather


class StopRequested(BaseException):
    """Request to stop, raised inside `Preemption.interruptible`. A BaseException, so that `except Exception` does not catch it."""


class Preemption:
    """Handler of SIGTERM and Ctrl-C, to be polled between steps: `if stop.should_stop(step): save, then sys.exit(stop.code)`.

    `code` is 143 for SIGTERM, which schedulers requeue, and 130 for Ctrl-C. A second signal ends the process at once.

    Args:
        agree_every: several processes exchange requests at every such step.
    """

    EXIT = 143

    def __init__(self, *, agree_every: int = 10):
        self.stop_requested, self.code, self.agree_every = False, Preemption.EXIT, agree_every
        self._breaks = False
        self._before: dict = {}

    def __enter__(self) -> "Preemption":
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python installs handlers only there
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._ask)
        return self

    def __exit__(self, *_) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def should_stop(self, step: int) -> bool:
        """Whether to save and exit after this step; the same in all processes, which exchange requests at every `agree_every`-th step."""
        if jax.process_count() == 1:
            return self.stop_requested
        return step % self.agree_every == 0 and bool(all_gather(self.stop_requested).any())

    @contextlib.contextmanager
    def interruptible(self, can: bool = True) -> Iterator[None]:
        """Context in which a request to stop raises StopRequested at once. Without effect if `can` is False or there are several processes."""
        if not can or jax.process_count() > 1:
            yield
            return
        self._breaks = True
        try:
            if self.stop_requested:
                raise StopRequested
            yield
        finally:
            self._breaks = False

    def _ask(self, signum, _) -> None:
        self.stop_requested, self.code = True, 130 if signum == signal.SIGINT else Preemption.EXIT
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if signum == signal.SIGINT:
            with contextlib.suppress(OSError):  # not print, which the signal may have interrupted
                os.write(
                    2,
                    b"\nasked to stop: saving the last whole step (Ctrl-C again stops at once, without saving)\n",
                )
        if self._breaks:
            self._breaks = False
            raise StopRequested
