"""Worker processes for reward functions, and execution in this process for rewards that cannot be pickled."""

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

from jaxcredit.tasks import worker
from jaxcredit.tasks.worker import Outcome, Progress

LARGEST = 2**26  # bytes of a pickled reward; a larger one (with a model) runs in this process
LOADING_S = 300.0  # time for a worker to import the modules of its reward
KEPT = 4  # rewards whose workers are kept alive; training, evaluation and greedy answers share one
_SIGNAL = getattr(signal, "SIGRTMIN", getattr(signal, "SIGUSR2", 0)) + (
    7 if hasattr(signal, "SIGRTMIN") else 0
)


class Unsendable(Exception):
    """A reward (or an item) that cannot be sent to another process. The message is the reason."""


class _Late(BaseException):  # not an Exception: `except Exception` in a reward must not swallow it
    pass


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

    def settle(self) -> None:
        """Wait until the process has loaded the reward. Raises Unsendable if it cannot."""
        if self.ready:
            return
        try:
            if not self.link.poll(max(0.0, self.begun + LOADING_S - time.monotonic())):
                raise Unsendable(f"loading it took a worker process longer than {LOADING_S:g} s")
            why = pickle.loads(self.link.recv_bytes())
        except (EOFError, OSError):
            why = f"loading it ended a worker process ({self.kill()})"
        if why is not None:
            raise Unsendable(why)
        self.ready = True

    def give(self, part: range, calls: bytes) -> None:
        """Send a batch of pickled calls, whose indices are `part`."""
        self.busy = part
        self._send(calls)

    def kill(self) -> str:
        """Kill the process and those that it started. Returns the way in which it had ended: its exit code, its signal or "killed"."""
        try:
            how = self.process.wait(
                0.2 if self.link.closed or self.link.poll(0) else 0
            )  # on its own
        except (subprocess.TimeoutExpired, OSError):
            how = None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:
            pass
        self.process.wait()
        self.link.close()
        if how is None:
            return "killed"
        return f"signal {signal.Signals(-how).name}" if how < 0 else f"exit code {how}"


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
        """Outcomes of calls by index. After the first failure the remaining calls are abandoned, and their outcomes are missing.

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
        todo, results = list(zip(parts, sent, strict=True)), {}
        with self.lock:
            self.fill()
            try:
                for process in self.workers:
                    process.settle()
                while todo or any(process.busy for process in self.workers):
                    for process in self.workers:
                        if todo and not process.busy:
                            process.give(*todo.pop(0))
                    self._wait(results, timeout_s)
                    if not all(outcome.good for outcome in results.values()):
                        break
            finally:
                for process in [
                    process for process in self.workers if process.busy or not process.ready
                ]:
                    self.drop(process)  # its results are no longer needed
        return results

    def _wait(self, results: dict[int, Outcome], timeout_s: float) -> None:
        busy: dict[Any, Worker] = {
            process.link: process for process in self.workers if process.busy
        }
        for link in connection.wait(list(busy), timeout=min(0.5, max(0.01, timeout_s / 10))):
            process = busy[link]
            try:
                answer = [Outcome(*fields) for fields in pickle.loads(process.link.recv_bytes())]
            except (EOFError, OSError):
                index = process.busy.start + max(0, process.progress.index)
                how = self.drop(process)
                results[index] = Outcome("raised", text=f"ended its process ({how})")
                return
            results |= zip(process.busy, answer, strict=False)
            process.busy = range(0)
            if any(
                outcome.kind == "late" for outcome in answer
            ):  # the call still runs in that process
                self.drop(process)
        for process in self.workers:
            if process.busy and process.progress.overdue():
                results[process.busy.start + process.progress.index] = Outcome("late")
                self.drop(process)
                return

    def drop(self, process: Worker) -> str:
        """Kill a process and remove it from the pool. Returns the way in which it had ended."""
        self.workers.remove(process)
        return process.kill()

    def close(self) -> None:
        while self.workers:
            self.drop(self.workers[0])


_pools: list[Pool] = []
_in_this_process: dict[
    int, tuple[Callable, str]
] = {}  # rewards that run in this process, and the reason


def start(reward: Callable, size: int) -> Pool | None:
    """Pool of `size` or more workers for a reward, started if necessary; None if the reward runs in this process."""
    if size < 1 or stays(reward):
        return None
    for pool in _pools:
        if pool.reward is reward:
            pool.size = max(pool.size, size)
            return pool
    try:
        pool = Pool(reward, size)
    except Unsendable as error:
        stay(reward, str(error))
        return None
    _pools.append(pool)
    while len(_pools) > KEPT:
        _pools.pop(0).close()
    return pool


def stay(reward: Callable, why: str) -> None:
    """Run a reward in this process from now on, for reason `why`, and end its workers."""
    _in_this_process[id(reward)] = reward, why
    while len(_in_this_process) > KEPT:
        del _in_this_process[next(iter(_in_this_process))]
    for pool in [pool for pool in _pools if pool.reward is reward]:
        _pools.remove(pool)
        pool.close()


def stays(reward: Callable) -> str:
    """Reason for which a reward runs in this process; "" if it does not."""
    return _in_this_process.get(id(reward), (None, ""))[1]


@atexit.register
def _close() -> None:
    while _pools:
        _pools.pop().close()


def dumps(value: Any) -> bytes:
    """Pickle of a value for another Python process. Functions of modules that are not installed (configs, notebooks, tests) go by value.

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
    for whole in (
        True,
        False,
    ):  # second try for modules with globals that cannot be pickled: functions go by name
        registered: list[types.ModuleType] = []

        class Pickler(cloudpickle.Pickler):
            def reducer_override(self, obj, whole=whole, registered=registered):
                if _on_device(obj):
                    raise Unsendable("it holds arrays of JAX, which are on this process's device")
                if isinstance(
                    obj, types.CodeType
                ):  # keep the file name, which cloudpickle drops and tracebacks need
                    make, fields, *_ = self.dispatch_table[types.CodeType](obj)
                    return make, tuple(
                        obj.co_filename if isinstance(x, str) and x == "<dynamic-code>" else x
                        for x in fields
                    )
                module = sys.modules.get(getattr(obj, "__module__", None) or "")
                if (
                    whole
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
    jax = sys.modules.get("jax")
    return jax is not None and hasattr(jax, "Array") and isinstance(obj, jax.Array)


@functools.cache
def _own(module: types.ModuleType | None) -> bool:
    """Whether a module is to be pickled by value: the user's or jaxcredit's, not one that is installed."""
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
    """Temporary file for memory shared between processes; on Linux in memory, independent of disk space."""
    file = (
        os.fdopen(os.memfd_create("jaxcredit"), "w+b")
        if hasattr(os, "memfd_create")
        else tempfile.TemporaryFile()
    )
    file.truncate(Progress.SIZE)
    return file


def _start(kind: str, *files: int, link: int) -> subprocess.Popen:
    # -P: no imports from the folder of worker.py. JAX_PLATFORMS: rewards that use JAX must not occupy the accelerator.
    # process_group: Ctrl-C reaches only the trainer, and the reward's own child processes are killed with the worker.
    command = [
        sys.executable,
        "-P",
        worker.__file__,
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


def run_here(
    reward: Callable, calls: Sequence[tuple], counts: Sequence[int], timeout_s: float
) -> dict[int, Outcome]:
    """Like `Pool.run`, in this process.

    In the main thread a signal interrupts a call that exceeds the time-out. Elsewhere the calls run in a daemon thread, which is abandoned
    at a time-out.
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
    """Start a process that signals this one when a call is overdue. Unlike a timer of this process, the reward cannot disarm it."""
    with _shared() as memory:
        progress = Progress(memory.fileno())
        process = _start("alarm", memory.fileno(), link=_SIGNAL)
    atexit.register(lambda: (process.kill(), process.wait()))
    return progress


def _interrupted(
    reward: Callable, calls: Sequence[tuple], counts: Sequence[int], timeout_s: float
) -> dict[int, Outcome]:
    progress, late = _alarm(), []

    def ring(*_) -> None:
        if progress.overdue():
            late.append(progress.index)
            raise _Late

    signal.signal(
        _SIGNAL, ring
    )  # never removed: without a handler, a signal sent slightly too late would end the process
    progress.allow(timeout_s)
    try:
        results = dict(
            enumerate(worker.outcomes(reward, calls, counts, progress, timeout_s, _on_our_loop))
        )
    except _Late:
        results = {}
    finally:
        progress.idle()
    if late:
        _loop.cache_clear()  # an async reward may still block the event loop
    return (
        {**results, late[0]: Outcome("late")} if late else results
    )  # a bare `except:` in the reward may have swallowed it


def _threaded(
    reward: Callable, calls: Sequence[tuple], counts: Sequence[int], timeout_s: float
) -> dict[int, Outcome]:
    with _shared() as memory:
        progress = Progress(memory.fileno())
    progress.allow(timeout_s)
    came: list[list[Outcome]] = []
    thread = threading.Thread(
        target=lambda: came.append(
            worker.outcomes(reward, calls, counts, progress, timeout_s, _on_our_loop)
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
    return dict(enumerate(came[0]))


def _on_our_loop(coroutine: Any) -> Any:
    """Run a coroutine on a persistent event loop in a separate thread: notebooks already run a loop, and clients must stay on one."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="rewards").start()
    return loop
