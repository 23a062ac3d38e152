"""Requests to stop: SIGTERM of a machine that is taken back, and Ctrl-C. The run saves after its step and leaves."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax

from jaxcredit.processes import gathered


class Asked(BaseException):
    """A request to stop, raised inside `Preemption.interruptible`. No Exception, so that no reward or retry catches it."""


class Preemption:
    """Turns SIGTERM and Ctrl-C into a question asked between two steps: `if stop.should_stop(step): save, then sys.exit(stop.code)`.

    143 is what a shell reports for a process ended by SIGTERM, and what schedulers requeue; 130 is that of Ctrl-C. A second signal ends
    the process at once.
    """

    EXIT = 143

    def __init__(self, *, agree_every: int = 10):
        self.asked, self.code, self.agree_every = False, Preemption.EXIT, agree_every
        self._breaks = False
        self._before: dict = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python installs no handlers
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._ask)
        return self

    def __exit__(self, *_) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def should_stop(self, step: int) -> bool:
        """The same answer in every process: several processes compare notes at every `agree_every`-th step."""
        if jax.process_count() == 1:
            return self.asked
        return step % self.agree_every == 0 and bool(gathered(self.asked).any())

    @contextlib.contextmanager
    def interruptible(self, can: bool = True) -> Iterator[None]:
        """Work that may be given up: a request to stop raises Asked in it, or before it. Of several processes none gives up alone."""
        if not can or jax.process_count() > 1:
            yield
            return
        self._breaks = True
        try:
            if self.asked:
                raise Asked
            yield
        finally:
            self._breaks = False

    def _ask(self, signum, _) -> None:
        self.asked, self.code = True, 130 if signum == signal.SIGINT else Preemption.EXIT
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if signum == signal.SIGINT:
            with contextlib.suppress(OSError):  # not print: the signal may have come in the middle of one
                os.write(2, b"\nasked to stop: saving the last whole step (Ctrl-C again stops at once, without saving)\n")
        if self._breaks:
            self._breaks = False
            raise Asked
