"""Reward calls: what a reward function returned for each answer of a batch, as plain data.

`tasks.workers` starts this file as a script, so it imports nothing but the standard library: a worker is ready in a fraction of a second.
`tasks.guard` also calls `outcomes` in the trainer's own process, for rewards that cannot be sent to another one.
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

LARGEST = 1e30  # of a reward: validation.LARGEST_RETURN, which this file cannot import
AT_A_TIME = 64  # async rewards that one process awaits together


class Outcome(NamedTuple):
    """What became of one call. `kind` is "scored" (`numbers`), "unscored" (the reward returned None), "nonsense", "raised" or "late"."""

    kind: str
    numbers: tuple[float, ...] = ()
    text: str = ""

    @property
    def good(self) -> bool:
        return self.kind in ("scored", "unscored")


class Progress:
    """The call under way and when it began, in memory that two processes share. Index -1: none."""

    SIZE = 24

    def __init__(self, file: int):
        self._memory = mmap.mmap(file, self.SIZE)
        self.idle()

    def begin(self, index: int) -> None:
        struct.pack_into("=qd", self._memory, 0, index, time.monotonic())

    def idle(self) -> None:
        struct.pack_into("=qd", self._memory, 0, -1, 0.0)

    def allow(self, timeout_s: float) -> None:
        """Set how long a call may take."""
        struct.pack_into("=d", self._memory, 16, timeout_s)

    @property
    def index(self) -> int:
        return struct.unpack_from("=q", self._memory)[0]

    def overdue(self) -> bool:
        """Whether the call under way takes longer than it may."""
        index, began, allowed = struct.unpack_from("=qdd", self._memory)
        late = index >= 0 and time.monotonic() - began > allowed
        return late and struct.unpack_from("=qd", self._memory) == (index, began)  # else it was read while it was written


def outcomes(
    reward: Callable, calls: Sequence[tuple], counts: Sequence[int], progress: Progress, timeout_s: float, run: Callable[[Any], Any]
) -> list[Outcome]:
    """The outcomes of reward(*call) in order, up to the first failure; awaitables are awaited together by `run(coroutine)`."""
    found: list[Outcome] = []
    waiting: dict[int, Any] = {}
    for i, (call, count) in enumerate(zip(calls, counts, strict=True)):
        progress.begin(i)
        try:
            value = reward(*call)
            if inspect.isawaitable(value):
                waiting[i] = value
                found.append(Outcome("unscored"))
            else:
                found.append(read(value, count))
        except (Exception, SystemExit) as error:
            found.append(raised(error))
        if not found[-1].good:
            break
    progress.idle()
    if waiting:
        for i, outcome in run(_awaited(waiting, counts, progress, timeout_s)):
            found[i] = outcome
    first = next((i for i, outcome in enumerate(found) if not outcome.good), len(found))
    return found[: first + 1]


async def _awaited(waiting: dict[int, Any], counts: Sequence[int], progress: Progress, timeout_s: float) -> list[tuple[int, Outcome]]:
    """The outcomes of awaitables, at most AT_A_TIME under way, each within the time-out. Ends early on the first that is late."""
    room, found, late = asyncio.Semaphore(AT_A_TIME), {}, asyncio.Event()

    async def one(i: int) -> None:
        async with room:
            task = asyncio.ensure_future(_marked(waiting[i], i, progress))
            done, _ = await asyncio.wait({task}, timeout=timeout_s)
            if not done:  # not awaited after its cancelling: it may refuse to end
                task.cancel()
                found[i] = Outcome("late")
                late.set()
                return
        try:
            found[i] = read(task.result(), counts[i])
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            found[i] = raised(error)

    tasks = [asyncio.ensure_future(one(i)) for i in waiting]
    stop = asyncio.ensure_future(late.wait())
    everything = asyncio.gather(*tasks)
    await asyncio.wait({everything, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for awaitable in waiting.values():  # one that never began would warn
        if inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED:
            awaitable.close()
    return sorted(found.items())


class _marked:
    """An awaitable that marks when it holds the event loop, so that one that blocks the loop is found and named."""

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
            except BaseException as error:  # cancelled: the awaitable hears it
                resume = functools.partial(steps.throw, error)


def read(value: Any, count: int) -> Outcome:
    """`value` as `count` numbers that float32 can hold; None leaves the answer unscored."""
    if value is None:
        return Outcome("unscored")
    many = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1
    parts: list[Any] = list(value) if many else [value]
    if len(parts) != count:
        what = f"a list of {len(parts)}" if many else "one number"
        due = f"{count} {'is' if count == 1 else 'are'} due (one for each segment)"
        return Outcome("nonsense", text=f"returned {what}, {short(value)}, where {due}")
    found = []
    for part in parts:
        if getattr(part, "shape", None) == () and hasattr(part, "item"):  # a scalar of numpy, jax or torch
            part = part.item()
        if part is None:
            return Outcome("nonsense", text=f"returned {short(value)}: None inside a list. Return None for the whole answer, or 0.0 there")
        if not isinstance(part, (numbers.Real, Decimal)):
            return Outcome("nonsense", text=f"returned {short(value)} ({type(part).__name__}), which is not a number")
        try:
            number = float(part)
        except OverflowError:  # whole numbers and fractions without bounds
            number = math.inf
        except ValueError:  # a signalling NaN of decimal
            number = math.nan
        if math.isnan(number) or part in (math.inf, -math.inf):
            return Outcome("nonsense", text=f"returned {short(value)}, which is not finite")
        if abs(number) > LARGEST:
            return Outcome(
                "nonsense",
                text=f"returned {short(value)}, and rewards go up to {LARGEST:g}, so that sums stay in float32: scale the reward down",
            )
        found.append(number)
    return Outcome("scored", tuple(found))


def raised(error: BaseException) -> Outcome:
    """An exception with its trace, which begins in the user's function."""
    trace = step = error.__traceback__
    while step is not None:
        trace, step = (step.tb_next if step.tb_frame.f_code.co_filename == __file__ else trace), step.tb_next
    try:
        shown = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
        text = f"raised {type(error).__name__}: {error}\n{shown}"
    except Exception:  # its own __str__ raises
        text = f"raised {type(error).__name__}"
    return Outcome("raised", text=text)


def short(value: Any) -> str:
    try:
        return f"{value!r:.200}"
    except Exception:  # a __repr__ that raises, or a whole number of too many digits
        return f"a {type(value).__name__} that cannot be shown"


class _Output:
    """Standard output that may fail: what a reward prints is no reason to stop a run whose terminal is gone or takes ASCII only."""

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
    """Ends this process once its parent is gone, whatever a reward is doing."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _alarm_parent(progress: Progress, parent: int, number: int) -> None:
    """Send the parent a signal for as long as its call is overdue."""
    while os.getppid() == parent:
        allowed = struct.unpack_from("=d", progress._memory, 16)[0]
        time.sleep(min(0.2, max(0.01, allowed / 10)))
        if progress.overdue():
            os.kill(parent, number)


def _serve(link: Connection, progress: Progress) -> None:
    """Receive the reward, then answer batches of calls until the other end closes."""
    # A scheduler that ends a job tells every process of it. The trainer still wants these answers, and ends this process when it leaves.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # a handler and not SIG_IGN, which programs started by the reward would inherit
    for name in ("stdout", "stderr"):
        if hasattr(stream := getattr(sys, name), "reconfigure"):  # by lines: this process may be killed with what it holds back
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
        setattr(sys, name, _Output(stream))
    try:  # where memory runs out, this process should go, and not the trainer
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
                answer = outcomes(reward, calls, counts, progress, timeout_s, runner.run)
            except BaseException as error:  # KeyboardInterrupt, GeneratorExit and their like
                answer = [*[Outcome("unscored")] * max(progress.index, 0), raised(error)]
            link.send_bytes(pickle.dumps([tuple(outcome) for outcome in answer]))


def _lossy() -> AbstractContextManager:
    """`jaxcredit.terminal.lossy`, loaded without the package: a reward that prints does not fail where nobody reads."""
    spec = importlib.util.spec_from_file_location("jaxcredit_terminal", Path(__file__).parents[1] / "terminal.py")
    assert spec and spec.loader
    terminal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(terminal)
    return terminal.lossy()


def main() -> None:
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
        os._exit(0)  # threads that a reward left behind do not keep the process


if __name__ == "__main__":
    main()
