"""Worker processes in which a reward function runs, and the plain call in this process for rewards that cannot be sent to one."""

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

LARGEST = 2**26  # bytes of a reward; one that carries more (a model) stays in this process
LOADING_S = 300.0  # for a worker to import what its reward needs
KEPT = 4  # rewards whose workers are kept: training, evaluation and greedy answers share one
_SIGNAL = getattr(signal, "SIGRTMIN", getattr(signal, "SIGUSR2", 0)) + (7 if hasattr(signal, "SIGRTMIN") else 0)


class Unsendable(Exception):
    """A reward (or an item) that cannot be sent to another process; the text says why."""


class _Late(BaseException):  # not an Exception: `except Exception` in a reward must not swallow it
    pass


class Worker:
    """One process with the reward. It may be killed at any moment."""

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
        except OSError:  # it died: whoever waits for the answer is told
            pass

    def settle(self) -> None:
        """Wait until the reward is loaded."""
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
        self.busy = part
        self._send(calls)

    def kill(self) -> str:
        """End the process and what it started; how it ended."""
        try:
            how = self.process.wait(0.2 if self.link.closed or self.link.poll(0) else 0)  # on its own
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
    """Worker processes of one reward; a dead one is replaced when it is next needed."""

    def __init__(self, reward: Callable, size: int):
        self.reward, self.size, self.lock = reward, size, threading.Lock()
        self.payload = pickle.dumps((sys.path, dumps(reward)))
        self.workers: list[Worker] = []
        self.fill()

    def fill(self) -> None:
        try:
            while len(self.workers) < self.size:
                self.workers.append(Worker(self.payload))
        except OSError as error:  # no more processes, files or memory
            if not self.workers:
                raise Unsendable(f"no worker process can be started ({error})") from None

    def run(self, calls: Sequence[tuple], counts: Sequence[int], timeout_s: float) -> dict[int, Outcome]:
        """The outcome of each call by its index; of failing ones at least the first that was seen, and then some may be missing."""
        size = len(calls) if self.size == 1 else max(1, -(-len(calls) // (4 * self.size)))
        parts = [range(i, min(i + size, len(calls))) for i in range(0, len(calls), size)]
        sent = [dumps(([calls[i] for i in part], [counts[i] for i in part], timeout_s)) for part in parts]
        todo, found = list(zip(parts, sent, strict=True)), {}
        with self.lock:
            self.fill()
            try:
                for one in self.workers:
                    one.settle()
                while todo or any(one.busy for one in self.workers):
                    for one in self.workers:
                        if todo and not one.busy:
                            one.give(*todo.pop(0))
                    self._wait(found, timeout_s)
                    if not all(outcome.good for outcome in found.values()):
                        break
            finally:
                for one in [one for one in self.workers if one.busy or not one.ready]:  # of no more use: what it says is not waited for
                    self.drop(one)
        return found

    def _wait(self, found: dict[int, Outcome], timeout_s: float) -> None:
        busy: dict[Any, Worker] = {one.link: one for one in self.workers if one.busy}
        for link in connection.wait(list(busy), timeout=min(0.5, max(0.01, timeout_s / 10))):
            one = busy[link]
            try:
                answer = [Outcome(*fields) for fields in pickle.loads(one.link.recv_bytes())]
            except (EOFError, OSError):
                index = one.busy.start + max(0, one.progress.index)
                how = self.drop(one)
                found[index] = Outcome("raised", text=f"ended its process ({how})")
                return
            found |= zip(one.busy, answer, strict=False)
            one.busy = range(0)
            if any(outcome.kind == "late" for outcome in answer):  # still running in there
                self.drop(one)
        for one in self.workers:
            if one.busy and one.progress.overdue():
                found[one.busy.start + one.progress.index] = Outcome("late")
                self.drop(one)
                return

    def drop(self, one: Worker) -> str:
        self.workers.remove(one)
        return one.kill()

    def close(self) -> None:
        while self.workers:
            self.drop(self.workers[0])


_pools: list[Pool] = []
_here: dict[int, tuple[Callable, str]] = {}  # rewards that stay in this process, and why


def start(reward: Callable, size: int) -> Pool | None:
    """The running workers of a reward, started if need be; None where it stays in this process."""
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
    """From now on this reward runs in this process."""
    _here[id(reward)] = reward, why
    while len(_here) > KEPT:
        del _here[next(iter(_here))]
    for pool in [pool for pool in _pools if pool.reward is reward]:
        _pools.remove(pool)
        pool.close()


def stays(reward: Callable) -> str:
    """Why a reward runs in this process; empty if it does not."""
    return _here.get(id(reward), (None, ""))[1]


@atexit.register
def _close() -> None:
    while _pools:
        _pools.pop().close()


def dumps(value: Any) -> bytes:
    """A pickle that another Python process reads without this process's modules: functions of configs, notebooks and tests go whole."""
    try:
        import cloudpickle
    except ImportError:
        raise Unsendable("the package cloudpickle is missing (pip install 'jaxcredit[train]')") from None
    if os.name != "posix" or not sys.executable:
        raise Unsendable("worker processes need POSIX and a Python interpreter")
    import io

    errors = []
    for whole in (True, False):  # a module may hold what cannot be pickled; then its functions are imported there
        registered: list[types.ModuleType] = []

        class Pickler(cloudpickle.Pickler):
            def reducer_override(self, obj, whole=whole, registered=registered):
                if _on_device(obj):
                    raise Unsendable("it holds arrays of JAX, which lie on this process's device")
                if isinstance(obj, types.CodeType):  # cloudpickle drops the file's name, by which a trace finds the source
                    make, fields, *_ = self.dispatch_table[types.CodeType](obj)
                    return make, tuple(obj.co_filename if isinstance(x, str) and x == "<dynamic-code>" else x for x in fields)
                module = sys.modules.get(getattr(obj, "__module__", None) or "")
                if whole and isinstance(obj, (type, types.FunctionType)) and module not in registered and _own(module):
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
    """Whether a module is the user's or ours, and not an installed one, which a worker imports."""
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return False
    if module.__name__.partition(".")[0] == "jaxcredit":
        return True
    installed = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not any(os.path.realpath(file).startswith(os.path.realpath(folder) + os.sep) for folder in installed)


def _shared() -> IO[bytes]:
    """Memory that processes share, as a file; on Linux it is on no disk, which may be full."""
    file = os.fdopen(os.memfd_create("jaxcredit"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()
    file.truncate(Progress.SIZE)
    return file


def _start(kind: str, *files: int, link: int) -> subprocess.Popen:
    # -P: the folder of worker.py is no place to import from. JAX_PLATFORMS: a reward that computes with JAX leaves the accelerator alone.
    # process_group: Ctrl-C is for the trainer, and what a reward started ends with it.
    command = [sys.executable, "-P", worker.__file__, kind, str(link), str(files[-1]), str(os.getpid())]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=files, process_group=0, env=env)


# In this process


def run_here(reward: Callable, calls: Sequence[tuple], counts: Sequence[int], timeout_s: float) -> dict[int, Outcome]:
    """The same in this process: in the main thread, which a signal interrupts, or in a thread, which a hanging reward keeps for ever."""
    main = threading.current_thread() is threading.main_thread() and os.name == "posix" and bool(sys.executable)
    if main:
        try:
            _alarm()
        except OSError:  # no more processes, files or memory
            main = False
    return (_interrupted if main else _threaded)(reward, calls, counts, timeout_s)


@functools.cache
def _alarm() -> Progress:
    """A process that sends this one a signal when a call is overdue: the reward cannot disarm it, as it can a timer of its own process."""
    with _shared() as memory:
        progress = Progress(memory.fileno())
        process = _start("alarm", memory.fileno(), link=_SIGNAL)
    atexit.register(lambda: (process.kill(), process.wait()))
    return progress


def _interrupted(reward: Callable, calls: Sequence[tuple], counts: Sequence[int], timeout_s: float) -> dict[int, Outcome]:
    progress, late = _alarm(), []

    def ring(*_) -> None:
        if progress.overdue():
            late.append(progress.index)
            raise _Late

    signal.signal(_SIGNAL, ring)  # it stays: a signal sent a moment too late would end the process
    progress.allow(timeout_s)
    try:
        found = dict(enumerate(worker.outcomes(reward, calls, counts, progress, timeout_s, _on_our_loop)))
    except _Late:
        found = {}
    finally:
        progress.idle()
    if late:
        _loop.cache_clear()  # an async reward may block it
    return {**found, late[0]: Outcome("late")} if late else found  # a bare `except:` in the reward may have swallowed it


def _threaded(reward: Callable, calls: Sequence[tuple], counts: Sequence[int], timeout_s: float) -> dict[int, Outcome]:
    with _shared() as memory:
        progress = Progress(memory.fileno())
    progress.allow(timeout_s)
    came: list[list[Outcome]] = []
    thread = threading.Thread(
        target=lambda: came.append(worker.outcomes(reward, calls, counts, progress, timeout_s, _on_our_loop)), daemon=True, name="reward"
    )
    thread.start()
    while thread.is_alive():
        thread.join(min(0.5, max(0.01, timeout_s / 10)))
        if progress.overdue():
            _loop.cache_clear()
            return {progress.index: Outcome("late")}
    return dict(enumerate(came[0]))


def _on_our_loop(coroutine: Any) -> Any:
    """Run a coroutine in a thread of its own: a notebook has a running loop in the main thread. Clients keep their loop between calls."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="rewards").start()
    return loop
