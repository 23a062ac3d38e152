"""Execution of a reward function on a batch of calls, with the outcome of each call as plain data.

`tasks.worker_pool` starts this file as a script in every worker process. It imports the standard
library alone, so that workers start quickly. The trainer's own process calls `outcomes` for rewards
that cannot be pickled.
"""

import asyncio
import functools
import importlib.util
import inspect
import math
import mmap
import numbers
import os
import pickle
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

# Largest magnitude of a reward: rollout.validation.LARGEST_RETURN, which this file cannot import.
LARGEST = 1e30
AT_A_TIME = 64  # async rewards that one process awaits together


class Outcome(NamedTuple):
    """Outcome of one reward call.

    Attributes:
        kind: "scored", "unscored" (the reward returned None), "nonsense" (not numbers), "raised" or
            "late" (timed out).
        numbers: rewards of the segments, if scored.
        text: description of a failure.
    """

    kind: str
    numbers: tuple[float, ...] = ()
    text: str = ""

    @property
    def good(self) -> bool:
        """Whether the call did not fail."""
        return self.kind in ("scored", "unscored")


class Progress:
    """Index and start time of the current call, in memory shared by two processes.

    The index is -1 if there is no call.
    """

    SIZE = 24

    def __init__(self, file: int):
        self._memory = mmap.mmap(file, self.SIZE)
        self.idle()

    def begin(self, index: int) -> None:
        """Record that a call begins now."""
        struct.pack_into("=qd", self._memory, 0, index, time.monotonic())

    def idle(self) -> None:
        """Record that no call runs."""
        struct.pack_into("=qd", self._memory, 0, -1, 0.0)

    def allow(self, timeout_s: float) -> None:
        """Set the time-out of a call in seconds."""
        struct.pack_into("=d", self._memory, 16, timeout_s)

    @property
    def index(self) -> int:
        """Index of the current call, or -1."""
        return struct.unpack_from("=q", self._memory)[0]

    def overdue(self) -> bool:
        """Whether the current call has exceeded the time-out."""
        index, began, allowed = struct.unpack_from("=qdd", self._memory)
        late = index >= 0 and time.monotonic() - began > allowed
        # Read again: values that were read during a write have changed by now.
        return late and struct.unpack_from("=qd", self._memory) == (index, began)


def outcomes(
    reward: Callable,
    calls: Sequence[tuple],
    counts: Sequence[int],
    progress: Progress,
    timeout_s: float,
    run: Callable[[Any], Any],
) -> list[Outcome]:
    """Outcomes of `reward(*call)` in order, up to the first failure.

    Args:
        reward: the reward function, or an async one.
        calls: argument tuples.
        counts: number of rewards due for each call.
        progress: updated before and after each call.
        timeout_s: time-out of an awaitable; other calls are timed out by the observer of
            `progress`.
        run: executes a coroutine, in which awaitables are awaited concurrently.
    """
    results: list[Outcome] = []
    waiting: dict[int, Any] = {}
    for i, (call, count) in enumerate(zip(calls, counts, strict=True)):
        progress.begin(i)
        try:
            value = reward(*call)
            if inspect.isawaitable(value):
                waiting[i] = value
                results.append(Outcome("unscored"))
            else:
                results.append(read(value, count))
        except (Exception, SystemExit) as error:
            results.append(raised(error))
        if not results[-1].good:
            break
    progress.idle()
    if waiting:
        for i, outcome in run(_awaited(waiting, counts, progress, timeout_s)):
            results[i] = outcome
    first = next((i for i, outcome in enumerate(results) if not outcome.good), len(results))
    return results[: first + 1]


async def _awaited(
    waiting: dict[int, Any], counts: Sequence[int], progress: Progress, timeout_s: float
) -> list[tuple[int, Outcome]]:
    """(index, outcome) of awaitables, at most AT_A_TIME concurrently, up to the first time-out."""
    slots, results, late = asyncio.Semaphore(AT_A_TIME), {}, asyncio.Event()

    async def await_one(i: int) -> None:
        async with slots:
            task = asyncio.ensure_future(_Marked(waiting[i], i, progress))
            done, _ = await asyncio.wait({task}, timeout=timeout_s)
            if not done:  # not awaited after cancellation, which it may ignore
                task.cancel()
                results[i] = Outcome("late")
                late.set()
                return
        try:
            results[i] = read(task.result(), counts[i])
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            results[i] = raised(error)

    tasks = [asyncio.ensure_future(await_one(i)) for i in waiting]
    stop = asyncio.ensure_future(late.wait())
    everything = asyncio.gather(*tasks)
    await asyncio.wait({everything, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for awaitable in waiting.values():  # a coroutine that was never started would warn
        if (
            inspect.iscoroutine(awaitable)
            and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED
        ):
            awaitable.close()
    return sorted(results.items())


class _Marked:
    """Awaitable that records in `progress` when it occupies the event loop.

    A call that blocks the loop is identified by the record.
    """

    def __init__(self, inner: Any, index: int, progress: Progress):
        self.inner, self.index, self.progress = inner, index, progress

    def __await__(self):
        steps = self.inner.__await__()
        resume = functools.partial(next, steps)
        while True:
            self.progress.begin(self.index)
            try:
                future = resume()
            except StopIteration as end:
                return end.value
            finally:
                self.progress.idle()
            try:
                yield future
                resume = functools.partial(next, steps)
            except BaseException as error:  # pass the cancellation on to the awaitable
                resume = functools.partial(steps.throw, error)


def read(value: Any, count: int) -> Outcome:
    """Outcome of a call that returned `value`.

    Scored if `value` is `count` finite numbers up to LARGEST, unscored if it is None.
    """
    if value is None:
        return Outcome("unscored")
    many = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1
    parts: list[Any] = list(value) if many else [value]
    if len(parts) != count:
        size = f"a list of {len(parts)}" if many else "one number"
        due = f"{count} {'is' if count == 1 else 'are'} due (one for each segment)"
        return Outcome("nonsense", text=f"returned {size}, {short(value)}, where {due}")
    results = []
    for part in parts:
        if getattr(part, "shape", None) == () and hasattr(part, "item"):
            part = part.item()  # a scalar of numpy, jax or torch
        if part is None:
            return Outcome(
                "nonsense",
                text=f"returned {short(value)}: None inside a list. "
                "Return None for the whole answer, or 0.0 for that segment",
            )
        if not isinstance(part, (numbers.Real, Decimal)):
            return Outcome(
                "nonsense",
                text=f"returned {short(value)} ({type(part).__name__}), which is not a number",
            )
        try:
            number = float(part)
        except OverflowError:  # integers and fractions are unbounded
            number = math.inf
        except ValueError:  # a signalling NaN of decimal
            number = math.nan
        if math.isnan(number) or part in (math.inf, -math.inf):
            return Outcome("nonsense", text=f"returned {short(value)}, which is not finite")
        if abs(number) > LARGEST:
            return Outcome(
                "nonsense",
                text=f"returned {short(value)}, and rewards go up to {LARGEST:g}, "
                "so that sums stay in float32: scale the reward down",
            )
        results.append(number)
    return Outcome("scored", tuple(results))


def raised(error: BaseException) -> Outcome:
    """Outcome of a call that raised, with a traceback that begins in the user's function."""
    trace = step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == __file__:
            trace = step.tb_next
        step = step.tb_next
    try:
        shown = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
        text = f"raised {type(error).__name__}: {error}\n{shown}"
    except Exception:  # its own __str__ raises
        text = f"raised {type(error).__name__}"
    return Outcome("raised", text=text)


def short(value: Any) -> str:
    """Repr of a value, cut to 200 characters."""
    try:
        return f"{value!r:.200}"
    except Exception:  # a __repr__ that raises, or an integer of too many digits
        return f"a {type(value).__name__} that cannot be shown"


class _Output:
    """Wrapper of a standard stream that ignores write errors: a print in a reward stops no run."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError, AttributeError):
            pass
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError, AttributeError):
            pass


def _watch_parent(parent: int) -> None:
    """Exit this process once its parent has ended, even during a reward call."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _alarm_parent(progress: Progress, parent: int, number: int) -> None:
    """Send the parent signals while its current call is overdue."""
    while os.getppid() == parent:
        allowed = struct.unpack_from("=d", progress._memory, 16)[0]
        time.sleep(min(0.2, max(0.01, allowed / 10)))
        if progress.overdue():
            os.kill(parent, number)


def _serve(link: Connection, progress: Progress) -> None:
    """Receive the reward function, then execute batches of calls until the connection closes."""
    # A scheduler sends the signals that end a job to all processes. The trainer still needs these
    # rewards, and ends this process itself. Programs that the reward starts would inherit SIG_IGN.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            # Flushed at each line, since this process may be killed.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
        setattr(sys, name, _Output(stream))
    try:  # if memory runs out, the kernel kills this process rather than the trainer
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass
    try:
        sys.path[:], payload = pickle.loads(link.recv_bytes())
        reward = pickle.loads(payload)
    except BaseException as error:
        link.send_bytes(pickle.dumps(f"{type(error).__name__}: {error}"))
        return
    link.send_bytes(pickle.dumps(None))
    with asyncio.Runner() as runner:
        while True:
            try:
                calls, counts, timeout_s = pickle.loads(link.recv_bytes())
            except EOFError:
                return
            try:
                progress.allow(timeout_s)
                results = outcomes(reward, calls, counts, progress, timeout_s, runner.run)
            except BaseException as error:  # KeyboardInterrupt, GeneratorExit and their like
                results = [*[Outcome("unscored")] * max(progress.index, 0), raised(error)]
            link.send_bytes(pickle.dumps([tuple(outcome) for outcome in results]))


def _lossy() -> AbstractContextManager:
    """`jaxcredit.utils.terminal.lossy`, loaded without importing the package."""
    spec = importlib.util.spec_from_file_location(
        "jaxcredit_terminal", Path(__file__).parents[1] / "utils" / "terminal.py"
    )
    assert spec and spec.loader
    terminal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(terminal)
    return terminal.lossy()


def main() -> None:
    """Run as a worker process ("serve") or as the trainer's alarm clock ("alarm")."""
    kind, link, memory, parent = sys.argv[1], *map(int, sys.argv[2:5])
    progress = Progress(memory)
    if kind == "alarm":
        _alarm_parent(progress, parent, link)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
        try:
            with _lossy():
                _serve(Connection(link), progress)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            pass
        os._exit(0)  # without waiting for threads that a reward left behind


if __name__ == "__main__":
    main()
