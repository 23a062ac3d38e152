"""Scoring of responses by a user's reward function, with clear errors if it raises, hangs or does not return numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcredit.tasks import workers as processes
from jaxcredit.tasks.task import Task
from jaxcredit.utils.plain_text import visible


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
    """Rewards of M responses, float64 [M, K].

    K is the largest number of segments (1 by default), with 0 for segments that a response does not have. A row of NaN is an unscored
    response, for which the reward returned None. Async rewards are awaited for many responses concurrently.

    The reward is pickled into `workers` processes, which are started once and killed at a time-out, so that it may hang or crash. Changes
    that it makes to globals persist between its calls in one worker but do not reach this process. A reward that cannot be pickled (with a
    lock, a client or JAX arrays) runs in this process, where a crash ends the run.

    Args:
        task: gives the reward function, called as `reward(meta, text, ids)`.
        metas: metadata of the M problems.
        texts: the M responses.
        ids: token ids of the responses.
        prompts: the M prompts, for error messages.
        segments: number of rewards due for each response; None: one.
        timeout_s: longest duration of one call in seconds.
        workers: number of processes; 0: this process.

    Raises:
        RewardError: the reward raised, or did not return finite numbers.
        RewardTimeout: a call exceeded `timeout_s`.
    """
    M = len(texts)
    if not len(metas) == len(ids) == M or any(
        x is not None and len(x) != M for x in (prompts, segments)
    ):
        raise ValueError(
            f"{len(metas)} metas, {M} texts and {len(ids)} lists of ids: these (and prompts and segments, if given) must be equally many"
        )
    counts = [1] * M if segments is None else [int(n) for n in segments]
    rewards = np.zeros((M, max(counts, default=1)))
    results = _outcomes(task, list(zip(metas, texts, ids, strict=True)), counts, timeout_s, workers)
    for i, outcome in sorted(results.items()):
        if outcome.kind == "scored":
            rewards[i, : counts[i]] = outcome.numbers
        elif outcome.kind == "unscored":
            rewards[i] = np.nan
        else:
            problem = (
                f"prompt:   {_short(prompts[i])}"
                if prompts is not None
                else f"meta:     {_short(metas[i])}"
            )
            raise _error(task, outcome, f"{problem}\nresponse: {_short(texts[i])}", timeout_s)
    return rewards


def ready(task: Task, workers: int) -> None:
    """Start the worker processes of a task in the background, so that they load its reward before the first `score`."""
    processes.start(task.reward, workers)


def _outcomes(
    task: Task, calls: list[tuple], counts: list[int], timeout_s: float, workers: int
) -> dict[int, processes.Outcome]:
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
        fix = "Bound its loops and its waiting (give network calls a timeout), or raise the time-out (timeout_s, reward_timeout_s)."
    elif outcome.kind == "nonsense":
        fix = "Return a finite float for every text, an empty or cut-off one too: 0.0 for a wrong answer, None to leave it unscored."
    else:
        fix = "Make it return a number for every text, an empty or cut-off one too: 0.0 where no answer can be read."
    name = visible(getattr(task.reward, "__qualname__", repr(task.reward)))
    return kind(f"the reward {name} of task {task.name!r} {visible(what)}\n{which}\n{fix}")


def _short(x: Any, most: int = 600) -> str:
    try:
        text = repr(x)
    except Exception:
        return f"a {type(x).__name__} that cannot be shown"
    text = visible(text)
    return (
        text
        if len(text) <= most
        else f"{text[: most // 2]} ... {text[-most // 2 :]} ({len(text)} characters)"
    )
