"""Calls a user's reward function on every response of a batch and stops with a clear error where it raises, hangs or returns nonsense."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcredit.plain_text import visible
from jaxcredit.tasks import workers as processes
from jaxcredit.tasks.task import Task


class RewardError(RuntimeError):
    """A reward function raised, or returned something that is not a finite number (or one for each segment)."""


class RewardTimeout(RewardError, TimeoutError):
    """A reward function did not return in time."""


def score(
    task: Task,
    metas: Sequence[Any],
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    *,
    prompts: Sequence[Any] | None = None,
    segments: Sequence[int] | None = None,
    timeout_s: float = 10.0,
    workers: int = 1,
) -> np.ndarray:
    """The rewards [M, K] of M responses, float64: K = 1, or the most segments of a response (0 where a response has fewer).

    A row of NaN is an unscored response: the reward returned None. A reward that is an async function, or returns an awaitable, is
    awaited for many responses at a time.

    The reward runs in `workers` processes, which are started once and killed where a call takes longer than `timeout_s`: it may use
    alarms, keep the interpreter's lock, or crash. It is copied there when they start, so what it changes in its globals is seen by its
    later calls and not by this process. `workers=0`, or a reward that cannot be copied (it holds a lock, a client or arrays of JAX): it
    runs in this process, where a signal interrupts it and a crash ends the run.
    """
    M = len(texts)
    if not len(metas) == len(ids) == M or any(x is not None and len(x) != M for x in (prompts, segments)):
        raise ValueError(
            f"{len(metas)} metas, {M} texts and {len(ids)} lists of ids (and prompts and segments, where given) must be as many"
        )
    counts = [1] * M if segments is None else [int(n) for n in segments]
    rewards = np.zeros((M, max(counts, default=1)))
    found = _outcomes(task, list(zip(metas, texts, ids, strict=True)), counts, timeout_s, workers)
    for i, outcome in sorted(found.items()):
        if outcome.kind == "scored":
            rewards[i, : counts[i]] = outcome.numbers
        elif outcome.kind == "unscored":
            rewards[i] = np.nan
        else:
            asked = f"prompt:   {_short(prompts[i])}" if prompts is not None else f"meta:     {_short(metas[i])}"
            raise _error(task, outcome, f"{asked}\nresponse: {_short(texts[i])}", timeout_s)
    return rewards


def ready(task: Task, workers: int) -> None:
    """Start the processes that will score this task, so that they load what its reward needs while something else is done."""
    processes.start(task.reward, workers)


def _outcomes(task: Task, calls: list[tuple], counts: list[int], timeout_s: float, workers: int) -> dict[int, processes.Outcome]:
    if calls and (pool := processes.start(task.reward, workers)):
        try:
            return pool.run(calls, counts, timeout_s)
        except processes.Unsendable as error:
            processes.stay(task.reward, str(error))
    return processes.run_here(task.reward, calls, counts, timeout_s)


def _error(task: Task, outcome: processes.Outcome, which: str, timeout_s: float) -> RewardError:
    kind, what = RewardError, outcome.text
    if outcome.kind == "late":
        kind, what = RewardTimeout, f"did not return within {timeout_s:g} s"
        mend = "Bound its loops and its waiting (give network calls a timeout), or raise the time-out (timeout_s, reward_timeout_s)."
    elif outcome.kind == "nonsense":
        mend = "Return a finite float for every text, an empty or cut-off one too: 0.0 for a wrong answer, None to leave it unscored."
    else:
        mend = "Make it return a number for every text, an empty or cut-off one too: 0.0 where no answer can be read."
    name = visible(getattr(task.reward, "__qualname__", repr(task.reward)))
    return kind(f"the reward {name} of task {task.name!r} {visible(what)}\n{which}\n{mend}")


def _short(x: Any, most: int = 600) -> str:
    try:
        text = repr(x)
    except Exception:
        return f"a {type(x).__name__} that cannot be shown"
    text = visible(text)
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]} ({len(text)} characters)"
