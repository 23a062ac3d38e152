"""Calls a user's reward function on every response of a batch and stops with a clear error where it raises, hangs or answers nonsense."""

import itertools
import math
import numbers
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcredit.tasks.task import Task


class RewardError(RuntimeError):
    """A reward function raised, or returned something that is not a finite number (or one for each segment)."""


class RewardTimeout(RewardError, TimeoutError):
    """A reward function did not come back in time."""


class _Alarm(BaseException):  # not an Exception: `except Exception` in a reward must not swallow it
    pass


def score(
    task: Task,
    metas: Sequence[Any],
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    *,
    prompts: Sequence[Any] | None = None,
    segments: Sequence[int] | None = None,
    timeout_s: float = 10.0,
    workers: int = 0,
) -> np.ndarray:
    """The rewards [M, K] of M responses, float64: K = 1, or the most segments of a response (0 where a response has fewer).

    In the main thread a timer interrupts a reward after `timeout_s`, which costs some microseconds a call. `workers` > 0: that many daemon
    threads, for rewards that wait (a judge behind a network); a hanging one is abandoned. Off the main thread one worker is used.
    A thread cannot interrupt code that keeps the interpreter's lock, as a runaway regular expression does; the timer can.
    """
    M = len(texts)
    if not len(metas) == len(ids) == M or any(x is not None and len(x) != M for x in (prompts, segments)):
        raise ValueError(
            f"{len(metas)} metas, {M} texts and {len(ids)} lists of ids (and prompts and segments, where given) must be as many"
        )

    def call(i: int):
        try:
            return task.reward(metas[i], texts[i], ids[i]), None
        except (Exception, SystemExit) as error:
            return None, error

    timer = workers == 0 and hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    answers = _timed(call, M, timeout_s) if timer else _threaded(call, M, timeout_s, max(1, workers))
    rewards = np.zeros((M, max(segments, default=1) if segments is not None else 1))
    for i, (value, error) in answers:
        try:
            if error is not None:
                raise error
            row = _numbers(value, 1 if segments is None else segments[i])
        except _Alarm:
            where, kind = f"did not return within {timeout_s:g} s", RewardTimeout
            mend = "Bound its loops and its waiting (give network calls a timeout), or raise timeout_s."
        except _Nonsense as nonsense:
            where, kind = str(nonsense), RewardError
            mend = "Return a finite float for every text, an empty or cut-off one too: 0.0 where no answer can be read."
        except (Exception, SystemExit) as raised:
            # Without our own frame: the trace begins in the user's function.
            trace = "".join(traceback.format_exception(type(raised), raised, raised.__traceback__ and _inside(raised.__traceback__)))
            where, kind = f"raised {type(raised).__name__}: {raised}\n{trace.rstrip()}", RewardError
            mend = "Make it return a number for every text, an empty or cut-off one too: 0.0 where no answer can be read."
        else:
            rewards[i, : len(row)] = row
            continue
        name = getattr(task.reward, "__qualname__", repr(task.reward))
        asked = f"prompt:   {_short(prompts[i])}" if prompts is not None else f"meta:     {_short(metas[i])}"
        raise kind(f"the reward {name} of task {task.name!r} {where}\n{asked}\nresponse: {_short(texts[i])}\n{mend}") from None
    return rewards


def _timed(call: Callable, M: int, timeout_s: float):
    """Each answer in turn; the timer of the main thread interrupts what takes too long."""
    fired = False

    def alarm(signum, frame):
        nonlocal fired
        fired = True
        raise _Alarm

    begin = time.monotonic()
    handler = signal.signal(signal.SIGALRM, alarm)
    outer = signal.setitimer(signal.ITIMER_REAL, 0)  # somebody else's timer: given back below
    answers = []
    try:
        for i in range(M):
            signal.setitimer(signal.ITIMER_REAL, timeout_s, timeout_s)
            answers.append((i, call(i)))
            if fired:  # swallowed by a bare `except:`
                raise _Alarm
    except _Alarm as error:
        answers[len(answers) - (len(answers) > i) :] = [(i, (None, error))]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer[0]:
            signal.setitimer(signal.ITIMER_REAL, max(outer[0] - (time.monotonic() - begin), 1e-3), outer[1])
    return answers


def _threaded(call: Callable, M: int, timeout_s: float, workers: int):
    """The answers in the order of the responses; a response that takes too long ends the list with an _Alarm."""
    order, started, answers, came = itertools.count(), {}, {}, queue.SimpleQueue()
    stop = threading.Event()

    def work():
        while (i := next(order)) < M and not stop.is_set():
            started[i] = time.monotonic()
            came.put((i, call(i)))

    for _ in range(min(workers, M)):
        threading.Thread(target=work, daemon=True, name="reward").start()
    while len(answers) < M:
        try:
            i, answer = came.get(timeout=min(timeout_s, 0.5))
            answers[i] = answer
            if answer[1] is not None:
                break
        except queue.Empty:
            now = time.monotonic()
            late = [i for i, t in list(started.items()) if i not in answers and now - t > timeout_s]
            if late:
                answers[min(late)] = (None, _Alarm())
                break
    stop.set()
    return sorted(answers.items())


class _Nonsense(Exception):
    pass


def _numbers(value, count) -> list[float]:
    """`value` as `count` floats, or a complaint."""
    many = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1
    parts = list(value) if many else [value]
    if len(parts) != count:
        what = f"a list of {len(parts)}" if many else "one number"
        raise _Nonsense(f"returned {what}, {value!r:.200}, where {count} {'is' if count == 1 else 'are'} due (one for each segment)")
    return [_number(x, value) for x in parts]


def _number(x, value) -> float:
    if getattr(x, "shape", None) == ():  # a scalar of numpy or jax
        x = x.item()
    if not isinstance(x, numbers.Real):
        raise _Nonsense(f"returned {value!r:.200} ({type(x).__name__}), which is not a number")
    if not math.isfinite(x):
        raise _Nonsense(f"returned {value!r:.200}, which is not finite")
    return float(x)


def _inside(trace):
    return trace.tb_next.tb_next if trace.tb_next and trace.tb_next.tb_next else trace


def _short(x, most=600):
    text = x if isinstance(x, str) else repr(x)
    text = repr(text) if isinstance(x, str) else text
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]} ({len(text)} characters)"
