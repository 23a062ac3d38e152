"""A machine that is taken back says so with SIGTERM; the run saves at the next step and leaves."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils


class Preemption:
    """Turns SIGTERM into a question asked between two steps: `if stop.should_stop(step): save, then sys.exit(Preemption.EXIT)`.

    143 is what a shell reports for a process ended by SIGTERM, and what schedulers requeue. A second SIGTERM ends the process at once.
    """

    EXIT = 143

    def __init__(self, *, agree_every: int = 10):
        self.asked, self.agree_every = False, agree_every

    def __enter__(self) -> "Preemption":
        self._before = None
        if threading.current_thread() is threading.main_thread():  # elsewhere Python installs no handlers
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def should_stop(self, step: int) -> bool:
        """The same answer in every process: several processes compare notes at every `agree_every`-th step."""
        if jax.process_count() == 1:
            return self.asked
        return step % self.agree_every == 0 and bool(multihost_utils.process_allgather(np.asarray(self.asked)).any())

    def _ask(self, *_) -> None:
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
