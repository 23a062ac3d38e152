"""Scoring of responses by a reward function, with errors that name a call that fails."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcredit.tasks import worker_pool
from jaxcredit.tasks.reward_worker import Outcome
from jaxcredit.tasks.task import Task
from jaxcredit.utils.plain_text import visible


class RewardError(RuntimeError):
    """A reward function raised, or did not return one finite number for each segment."""


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

    K is the largest number of segments (1 by default), with 0 for segments that a response does not
    have. A row of NaN is an unscored response, for which the reward returned None. Async rewards
    are awaited for many responses concurrently.

    The reward is pickled into `workers` processes, which are started once and killed at a time-out,
    so that it may hang or crash. Changes that it makes to globals persist between its calls in one
    worker but do not reach this process. A reward that cannot be pickled (with a lock, a client or
    JAX arrays) runs in this process, where a crash ends the run.

    Args:
        task: the task; its reward function is called as `reward(meta, text, ids)`.
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
        ValueError: the lengths of metas, texts, ids, prompts and segments differ.
    """
    M = len(texts)
    if not len(metas) == len(ids) == M or any(
        x is not None and len(x) != M for x in (prompts, segments)
    ):
        raise ValueError(
            f"{len(metas)} metas, {M} texts and {len(ids)} lists of ids: these (and prompts and "
            "segments, if given) must have the same length"
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
            if prompts is not None:
                problem = f"prompt:   {_short(prompts[i])}"
            else:
                problem = f"meta:     {_short(metas[i])}"
            call = f"{problem}\nresponse: {_short(texts[i])}"
            raise _error(task, outcome, call, timeout_s)
    return rewards


def start_workers(task: Task, workers: int) -> None:
    """Start the worker processes of a task's reward in the background, before the first `score`."""
    worker_pool.pool_of(task.reward, workers)


def _outcomes(
    task: Task, calls: list[tuple], counts: list[int], timeout_s: float, workers: int
) -> dict[int, Outcome]:
    """Outcomes of calls by index, from worker processes if the reward can be pickled."""
    if calls and (pool := worker_pool.pool_of(task.reward, workers)):
        try:
            return pool.run(calls, counts, timeout_s)
        except worker_pool.Unsendable as error:
            worker_pool.keep_in_process(task.reward, str(error))
    return worker_pool.run_in_process(task.reward, calls, counts, timeout_s)


def _error(task: Task, outcome: Outcome, call: str, timeout_s: float) -> RewardError:
    """The error for a call that failed: the task, the failure, the call and a fix."""
    kind, failure = RewardError, outcome.text
    if outcome.kind == "late":
        kind, failure = RewardTimeout, f"did not return within {timeout_s:g} s"
        fix = (
            "Bound its loops and its waiting (give network calls a timeout), "
            "or raise the time-out (timeout_s, reward_timeout_s)."
        )
    elif outcome.kind == "nonsense":
        fix = (
            "Return a finite float for every text, an empty or cut-off one too: "
            "0.0 for a wrong answer, None to leave it unscored."
        )
    else:
        fix = (
            "Make it return a number for every text, an empty or cut-off one too: "
            "0.0 where no answer can be read."
        )
    name = visible(getattr(task.reward, "__qualname__", repr(task.reward)))
    return kind(f"the reward {name} of task {task.name!r} {visible(failure)}\n{call}\n{fix}")


def _short(x: Any, most: int = 600) -> str:
    """Repr of a value in printable characters, shortened in the middle."""
    try:
        text = repr(x)
    except Exception:
        return f"a {type(x).__name__} that cannot be shown"
    text = visible(text)
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} ... {text[-most // 2 :]} ({len(text)} characters)"
