"""Preemption: on SIGTERM or Ctrl-C the run saves a checkpoint after the current step and exits."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax

from jaxcredit.parallel.processes import all_gather


class StopRequested(BaseException):
    """Request to stop, raised inside `Preemption.interruptible`.

    It is a BaseException, so that `except Exception` does not catch it.
    """


class Preemption:
    """Handler of SIGTERM and Ctrl-C, which a training loop polls between steps.

        with Preemption() as preemption:
            for step in ...:
                ...
                if preemption.should_stop(step):
                    save()
                    sys.exit(preemption.code)

    A second signal ends the process at once.

    Args:
        agree_every: number of steps between exchanges of requests by several processes.

    Attributes:
        stop_requested: whether this process received a signal.
        code: exit status: 143 after SIGTERM, which schedulers requeue; 130 after Ctrl-C.
    """

    EXIT = 143

    def __init__(self, *, agree_every: int = 10):
        self.stop_requested, self.code, self.agree_every = False, Preemption.EXIT, agree_every
        self._interrupts = False
        self._before: dict = {}

    def __enter__(self) -> "Preemption":
        # Python installs handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._ask)
        return self

    def __exit__(self, *_) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def should_stop(self, step: int) -> bool:
        """Whether to save and exit after this step; the same answer in all processes."""
        if jax.process_count() == 1:
            return self.stop_requested
        return step % self.agree_every == 0 and bool(all_gather(self.stop_requested).any())

    @contextlib.contextmanager
    def interruptible(self, can: bool = True) -> Iterator[None]:
        """Context in which a request to stop raises StopRequested at once.

        Without effect if `can` is False or there are several processes.
        """
        if not can or jax.process_count() > 1:
            yield
            return
        self._interrupts = True
        try:
            if self.stop_requested:
                raise StopRequested
            yield
        finally:
            self._interrupts = False

    def _ask(self, signum, _) -> None:
        self.stop_requested, self.code = True, 130 if signum == signal.SIGINT else Preemption.EXIT
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if signum == signal.SIGINT:
            with contextlib.suppress(OSError):  # not print, which the signal may have interrupted
                os.write(
                    2,
                    b"\nasked to stop: saving the last whole step "
                    b"(Ctrl-C again stops at once, without saving)\n",
                )
        if self._interrupts:
            self._interrupts = False
            raise StopRequested
