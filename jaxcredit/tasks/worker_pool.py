"""Pools of worker processes for reward functions.

Rewards that cannot be pickled are executed in the trainer's own process.
"""

import asyncio
import atexit
import functools
import os
import pickle
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import types
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import IO, Any

from jaxcredit.tasks import reward_worker
from jaxcredit.tasks.reward_worker import Outcome, Progress

LARGEST = 2**26  # bytes of a pickled reward; a larger one (with a model) runs in this process
LOADING_S = 300.0  # time for a worker to import the modules of its reward
# Rewards whose workers are kept alive. Training, evaluation and greedy answers share one.
MAX_POOLS = 4
# Signal of a call that exceeds its time-out. Real-time signals have no other use.
_SIGNAL = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else getattr(signal, "SIGUSR2", 0)


class Unsendable(Exception):
    """A reward (or an item) that cannot be sent to another process. The message is the reason."""


class _TimedOut(BaseException):
    """A call has exceeded its time-out. Not an Exception, which a reward could catch."""


class Worker:
    """One worker process with the reward function, and the connection to it."""

    def __init__(self, payload: bytes):
        self.link, theirs = connection.Pipe()
        with theirs, _shared() as memory:
            self.progress = Progress(memory.fileno())
            self.process = _start("serve", theirs.fileno(), memory.fileno(), link=theirs.fileno())
        self.begun, self.ready, self.busy = time.monotonic(), False, range(0)
        self._send(payload)

    def _send(self, message: bytes) -> None:
        try:
            self.link.send_bytes(message)
        except OSError:  # the process ended: receiving its results fails and reports it
            pass

    def wait_until_loaded(self) -> None:
        """Wait until the process has loaded the reward.

        Raises:
            Unsendable: the process cannot load it.
        """
        if self.ready:
            return
        try:
            if not self.link.poll(max(0.0, self.begun + LOADING_S - time.monotonic())):
                raise Unsendable(f"loading it took a worker process longer than {LOADING_S:g} s")
            problem = pickle.loads(self.link.recv_bytes())
        except (EOFError, OSError):
            problem = f"loading it ended a worker process ({self.kill()})"
        if problem is not None:
            raise Unsendable(problem)
        self.ready = True

    def send_batch(self, part: range, calls: bytes) -> None:
        """Send a batch of pickled calls, whose indices are `part`."""
        self.busy = part
        self._send(calls)

    def kill(self) -> str:
        """Kill the process and those that it started.

        Returns:
            Its exit code or its signal if it had ended on its own, else "killed".
        """
        try:
            code = self.process.wait(0.2 if self.link.closed or self.link.poll(0) else 0)
        except (subprocess.TimeoutExpired, OSError):
            code = None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:
            pass
        self.process.wait()
        self.link.close()
        if code is None:
            return "killed"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class Pool:
    """Worker processes of one reward. Processes that ended are replaced at the next `run`."""

    def __init__(self, reward: Callable, size: int):
        self.reward, self.size, self.lock = reward, size, threading.Lock()
        self.payload = pickle.dumps((sys.path, dumps(reward)))
        self.workers: list[Worker] = []
        self.fill()

    def fill(self) -> None:
        """Start processes up to the size of the pool, or as many as the system allows."""
        try:
            while len(self.workers) < self.size:
                self.workers.append(Worker(self.payload))
        except OSError as error:  # no more processes, files or memory
            if not self.workers:
                raise Unsendable(f"no worker process can be started ({error})") from None

    def run(
        self, calls: Sequence[tuple], counts: Sequence[int], timeout_s: float
    ) -> dict[int, Outcome]:
        """Outcomes of calls by index, up to the first failure.

        Calls that are still running at the first failure are abandoned: their outcomes are missing.

        Args:
            calls: argument tuples of the reward.
            counts: number of rewards due for each call.
            timeout_s: time-out of one call.
        """
        size = len(calls) if self.size == 1 else max(1, -(-len(calls) // (4 * self.size)))
        parts = [range(i, min(i + size, len(calls))) for i in range(0, len(calls), size)]
        sent = [
            dumps(([calls[i] for i in part], [counts[i] for i in part], timeout_s))
            for part in parts
        ]
        queue, results = list(zip(parts, sent, strict=True)), {}
        with self.lock:
            self.fill()
            try:
                for process in self.workers:
                    process.wait_until_loaded()
                while queue or any(process.busy for process in self.workers):
                    for process in self.workers:
                        if queue and not process.busy:
                            process.send_batch(*queue.pop(0))
                    self._wait(results, timeout_s)
                    if not all(outcome.good for outcome in results.values()):
                        break
            finally:
                # Results of workers that are still busy are no longer needed.
                for process in [p for p in self.workers if p.busy or not p.ready]:
                    self.drop(process)
        return results

    def _wait(self, results: dict[int, Outcome], timeout_s: float) -> None:
        """Wait for a busy worker and add its outcomes to `results`. Overdue workers are killed."""
        busy: dict[Any, Worker] = {
            process.link: process for process in self.workers if process.busy
        }
        for link in connection.wait(list(busy), timeout=min(0.5, max(0.01, timeout_s / 10))):
            process = busy[link]
            try:
                batch = [Outcome(*fields) for fields in pickle.loads(process.link.recv_bytes())]
            except (EOFError, OSError):
                index = process.busy.start + max(0, process.progress.index)
                results[index] = Outcome("raised", text=f"ended its process ({self.drop(process)})")
                return
            results |= zip(process.busy, batch, strict=False)
            process.busy = range(0)
            if any(outcome.kind == "late" for outcome in batch):
                self.drop(process)  # the call still runs in that process
        for process in self.workers:
            if process.busy and process.progress.overdue():
                results[process.busy.start + process.progress.index] = Outcome("late")
                self.drop(process)
                return

    def drop(self, process: Worker) -> str:
        """Kill a process and remove it from the pool. Returns how it ended, as `Worker.kill`."""
        self.workers.remove(process)
        return process.kill()

    def close(self) -> None:
        """Kill all processes."""
        while self.workers:
            self.drop(self.workers[0])


_pools: list[Pool] = []
# Rewards that run in this process, with the reason, by their id.
_in_this_process: dict[int, tuple[Callable, str]] = {}


def pool_of(reward: Callable, size: int) -> Pool | None:
    """Pool of `size` or more workers for a reward, started if necessary.

    Returns:
        The pool; None if the reward runs in this process.
    """
    if size < 1 or in_process_reason(reward):
        return None
    for pool in _pools:
        if pool.reward is reward:
            pool.size = max(pool.size, size)
            return pool
    try:
        pool = Pool(reward, size)
    except Unsendable as error:
        keep_in_process(reward, str(error))
        return None
    _pools.append(pool)
    while len(_pools) > MAX_POOLS:
        _pools.pop(0).close()
    return pool


def keep_in_process(reward: Callable, reason: str) -> None:
    """Execute a reward in this process from now on, and end its workers."""
    _in_this_process[id(reward)] = reward, reason
    while len(_in_this_process) > MAX_POOLS:
        del _in_this_process[next(iter(_in_this_process))]
    for pool in [pool for pool in _pools if pool.reward is reward]:
        _pools.remove(pool)
        pool.close()


def in_process_reason(reward: Callable) -> str:
    """Reason for which a reward is executed in this process; "" if it is not."""
    return _in_this_process.get(id(reward), (None, ""))[1]


@atexit.register
def _close() -> None:
    """Kill the workers of all pools."""
    while _pools:
        _pools.pop().close()


def dumps(value: Any) -> bytes:
    """Pickle of a value for another Python process.

    Functions of modules that are not installed (configs, notebooks, tests) are pickled by value.

    Raises:
        Unsendable: the value cannot be pickled, holds JAX arrays, or is larger than LARGEST.
    """
    try:
        import cloudpickle
    except ImportError:
        raise Unsendable(
            "the package cloudpickle is missing (pip install 'jaxcredit[train]')"
        ) from None
    if os.name != "posix" or not sys.executable:
        raise Unsendable("worker processes need POSIX and a Python interpreter")
    import io

    errors = []
    # The second attempt is for modules with globals that cannot be pickled: functions go by name.
    for by_value in (True, False):
        registered: list[types.ModuleType] = []

        class Pickler(cloudpickle.Pickler):
            def reducer_override(self, obj, by_value=by_value, registered=registered):
                if _on_device(obj):
                    raise Unsendable("it holds arrays of JAX, which are on this process's device")
                if isinstance(obj, types.CodeType):
                    # Keep the file name, which tracebacks need and cloudpickle drops.
                    make, fields, *_ = self.dispatch_table[types.CodeType](obj)
                    return make, tuple(
                        obj.co_filename if isinstance(x, str) and x == "<dynamic-code>" else x
                        for x in fields
                    )
                module = sys.modules.get(getattr(obj, "__module__", None) or "")
                if (
                    by_value
                    and isinstance(obj, (type, types.FunctionType))
                    and module not in registered
                    and _own(module)
                ):
                    cloudpickle.register_pickle_by_value(module)
                    registered.append(module)
                return super().reducer_override(obj)

        buffer = io.BytesIO()
        try:
            Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        except Unsendable:
            raise
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
            continue
        finally:
            for module in registered:
                cloudpickle.unregister_pickle_by_value(module)
        if buffer.tell() > LARGEST:
            raise Unsendable(f"it carries {buffer.tell() / 2**20:.0f} MiB")
        return buffer.getvalue()
    raise Unsendable(errors[0])


def _on_device(obj: Any) -> bool:
    """Whether an object is a JAX array."""
    jax = sys.modules.get("jax")
    return jax is not None and hasattr(jax, "Array") and isinstance(obj, jax.Array)


@functools.cache
def _own(module: types.ModuleType | None) -> bool:
    """Whether a module is pickled by value: the user's or jaxcredit's, not an installed one."""
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return False
    if module.__name__.partition(".")[0] == "jaxcredit":
        return True
    installed = [
        sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ]
    return not any(
        os.path.realpath(file).startswith(os.path.realpath(folder) + os.sep) for folder in installed
    )


def _shared() -> IO[bytes]:
    """Temporary file for memory that processes share; on Linux it takes no disk space."""
    file = (
        os.fdopen(os.memfd_create("jaxcredit"), "w+b")
        if hasattr(os, "memfd_create")
        else tempfile.TemporaryFile()
    )
    file.truncate(Progress.SIZE)
    return file


def _start(kind: str, *files: int, link: int) -> subprocess.Popen:
    """Start `reward_worker` as a script."""
    # -P: no imports from the folder of reward_worker.py. JAX_PLATFORMS: a reward that uses JAX must
    # not occupy the accelerator. process_group: Ctrl-C reaches the trainer alone, and processes
    # that the reward starts are killed with the worker.
    command = [
        sys.executable,
        "-P",
        reward_worker.__file__,
        kind,
        str(link),
        str(files[-1]),
        str(os.getpid()),
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, pass_fds=files, process_group=0, env=env
    )


# In this process


def run_in_process(
    reward: Callable, calls: Sequence[tuple], counts: Sequence[int], timeout_s: float
) -> dict[int, Outcome]:
    """Like `Pool.run`, in this process.

    In the main thread a signal interrupts a call that exceeds the time-out. Elsewhere the calls run
    in a daemon thread, which is abandoned at a time-out.
    """
    main = (
        threading.current_thread() is threading.main_thread()
        and os.name == "posix"
        and bool(sys.executable)
    )
    if main:
        try:
            _alarm()
        except OSError:  # no more processes, files or memory
            main = False
    return (_interrupted if main else _threaded)(reward, calls, counts, timeout_s)


@functools.cache
def _alarm() -> Progress:
    """Start a process that signals this one when a call is overdue.

    A reward cannot disarm it, unlike a timer of its own process.
    """
    with _shared() as memory:
        progress = Progress(memory.fileno())
        process = _start("alarm", memory.fileno(), link=_SIGNAL)
    atexit.register(lambda: (process.kill(), process.wait()))
    return progress


def _interrupted(
    reward: Callable, calls: Sequence[tuple], counts: Sequence[int], timeout_s: float
) -> dict[int, Outcome]:
    """`run_in_process` in the main thread."""
    progress, late = _alarm(), []

    def ring(*_) -> None:
        if progress.overdue():
            late.append(progress.index)
            raise _TimedOut

    # Never removed: without a handler, a signal that arrives late would end the process.
    signal.signal(_SIGNAL, ring)
    progress.allow(timeout_s)
    try:
        results = dict(
            enumerate(
                reward_worker.outcomes(reward, calls, counts, progress, timeout_s, _on_our_loop)
            )
        )
    except _TimedOut:
        results = {}
    finally:
        progress.idle()
    if late:
        _loop.cache_clear()  # an async reward may still block the event loop
    # A bare `except:` in the reward may have caught _TimedOut, so `late` is checked as well.
    return {**results, late[0]: Outcome("late")} if late else results


def _threaded(
    reward: Callable, calls: Sequence[tuple], counts: Sequence[int], timeout_s: float
) -> dict[int, Outcome]:
    """`run_in_process` in any thread."""
    with _shared() as memory:
        progress = Progress(memory.fileno())
    progress.allow(timeout_s)
    batches: list[list[Outcome]] = []
    thread = threading.Thread(
        target=lambda: batches.append(
            reward_worker.outcomes(reward, calls, counts, progress, timeout_s, _on_our_loop)
        ),
        daemon=True,
        name="reward",
    )
    thread.start()
    while thread.is_alive():
        thread.join(min(0.5, max(0.01, timeout_s / 10)))
        if progress.overdue():
            _loop.cache_clear()
            return {progress.index: Outcome("late")}
    return dict(enumerate(batches[0]))


def _on_our_loop(coroutine: Any) -> Any:
    """Run a coroutine on the event loop of another thread, which is the same for all calls.

    Notebooks already run a loop in their thread, and network clients need one loop.
    """
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """Event loop in a daemon thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="rewards").start()
    return loop
