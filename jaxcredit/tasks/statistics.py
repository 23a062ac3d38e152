"""Statistics of scored answers: accuracy, mean@k and pass@k with confidence intervals, lengths."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LENGTH_STATISTICS = {"min": np.min, "median": np.median, "mean": np.mean, "max": np.max}


class Estimate(NamedTuple):
    """A number and its confidence interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval (95 % by default).
        high: upper end.
    """

    value: float
    low: float
    high: float


def pass_at_k(scores: np.ndarray, k: int, *, solved: float = 1.0) -> np.ndarray:
    """Unbiased estimate of pass@k for each prompt: 1 - C(n - c, k) / C(n, k), c of n answers right.

    The probability that at least one of k sampled answers is right; arXiv 2107.03374.

    Args:
        scores: [prompts, n]. NaN is an unscored answer and reduces the n of its prompt.
        k: number of answers, from 1 to n.
        solved: least score of a right answer.

    Returns:
        [prompts]; NaN for a prompt with fewer than k scored answers.

    Raises:
        ValueError: k is not in 1..n.

    Example:
        >>> pass_at_k(np.array([[1.0, 0.0, 0.0, 0.0]]), 2)
        array([0.5])
    """
    scores = _scores(scores)
    if not 1 <= k <= scores.shape[1]:
        n = scores.shape[1]
        raise ValueError(
            f"pass@{k} needs at least {k} answers to each prompt, there are {n}: "
            f"sample more, or ask for pass@{n}"
        )
    n, c = (~np.isnan(scores)).sum(1)[:, None], (scores >= solved).sum(1)
    # C(n - c, k) / C(n, k) = prod over i < k of (n - c - i) / (n - i); 0 if c > n - k.
    i = np.arange(k)
    chance = 1.0 - np.prod(np.maximum(n - c[:, None] - i, 0) / np.maximum(n - i, 1), axis=1)
    return np.where(n[:, 0] >= k, chance, np.nan)


def bootstrap(
    values: np.ndarray, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Mean over prompts with a percentile bootstrap interval: prompts are drawn with replacement.

    Args:
        values: [prompts], one number for each prompt.
        level: confidence level of the interval, in (0, 1).
        draws: number of bootstrap samples.
        seed: seed of the draws.

    Raises:
        ValueError: `values` is not one-dimensional, or is empty.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(
            f"one number for each prompt is needed, got shape {values.shape}: "
            "average over a prompt's answers first"
        )
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values.mean()), float(low), float(high))


def wilson(right: int, total: int, *, z: float = 1.959964) -> Estimate:
    """Proportion with Wilson's score interval, which is valid near 0 and 1 too.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    with p = right / total and n = total.
    Wilson, JASA 22 (1927), doi 10.1080/01621459.1927.10502953.

    Args:
        right: number of successes, from 0 to `total`.
        total: number of trials, 1 or more.
        z: quantile of the normal distribution for the confidence level; default 95 %.

    Raises:
        ValueError: `right` is not in 0..total, or `total` is 0.
    """
    if not 0 <= right <= total or not total:
        raise ValueError(
            f"{right} right of {total}: a share needs 0 <= right <= total and total > 0"
        )
    p, n = right / total, total
    center, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Estimate(
        p,
        min(max(float((center - half) / scale), 0.0), p),
        max(min(float((center + half) / scale), 1.0), p),
    )


def summary(
    scores: np.ndarray,
    *,
    greedy: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    done: np.ndarray | None = None,
    ks: Sequence[int] | None = None,
    solved: float = 1.0,
    seed: int = 0,
) -> dict[str, Estimate | float]:
    """All statistics of an evaluation by name.

    Args:
        scores: [prompts, n], rewards of n sampled answers to each prompt. NaN is an unscored answer
            (the reward returned None), which only `truncated` and `unscored` count.
        greedy: [prompts], rewards of the greedy answers.
        lengths: [prompts, n], tokens of the sampled answers.
        done: [prompts, n], whether an answer ended by itself rather than at the largest length.
        ks: values of k for pass@k; default n, and none if n is 1.
        solved: least reward of a right answer.
        seed: seed of the bootstrap.

    Returns:
        greedy_accuracy (Wilson interval) and greedy_reward, mean@n and pass@k (bootstrap intervals
        over prompts), mixed (share of prompts whose answers differ in reward), unscored (a count),
        truncated (share of answers cut off), and length_right/* and length_wrong/* with * one of
        min, median, mean, max. A statistic without data is left out.

    Raises:
        ValueError: a shape is wrong, or a score is infinite.
    """
    scores = _scores(scores)
    n, missing = scores.shape[1], int(np.isnan(scores).sum())
    out: dict[str, Estimate | float] = {}
    if greedy is not None:
        greedy = np.asarray(greedy, np.float64)
        missing += int(np.isnan(greedy).sum())
        greedy = greedy[~np.isnan(greedy)]
        if greedy.size:
            out["greedy_accuracy"] = wilson(int((greedy >= solved).sum()), greedy.size)
            out["greedy_reward"] = bootstrap(greedy, seed=seed)
    some = scores[~np.isnan(scores).all(1)]
    if len(some):
        out[f"mean@{n}"] = bootstrap(np.nanmean(some, 1), seed=seed)
    for k in ks if ks is not None else [n] if n > 1 else []:
        chances = pass_at_k(scores, k, solved=solved)
        if not np.isnan(chances).all():
            out[f"pass@{k}"] = bootstrap(chances[~np.isnan(chances)], seed=seed)
    if n > 1 and len(some):
        out["mixed"] = float((np.nanmax(some, 1) > np.nanmin(some, 1)).mean())
    if missing:
        out["unscored"] = float(missing)
    if done is not None:
        out["truncated"] = float(1 - _same(done, scores, "done").mean())
    if lengths is not None:
        lengths = _same(lengths, scores, "lengths")
        for name, where in (("right", scores >= solved), ("wrong", scores < solved)):
            if where.any():
                for statistic, function in LENGTH_STATISTICS.items():
                    out[f"length_{name}/{statistic}"] = float(function(lengths[where]))
    return out


def table(results: Mapping[str, Mapping[str, Estimate | float]], title: str = ""):
    """Table of statistics: one row for each statistic, one column for each run.

    Args:
        results: statistics of each run, as from `summary`, by the run's name.
        title: title of the table.

    Returns:
        A `jaxcredit.utils.tables.Sheet` for `rich`. Rows of mean@k and pass@k with equal cells,
        such as mean@n and pass@1 of rewards 0 and 1, are one row.
    """
    from jaxcredit.utils.tables import Column, Sheet

    out = Sheet("", *(Column(run, right=True) for run in results), title=title)
    rows: dict[tuple, list[str]] = {}
    for name in dict.fromkeys(name for numbers in results.values() for name in numbers):
        cells = tuple(_cell(numbers.get(name)) for numbers in results.values())
        label = "" if name.startswith(("mean@", "pass@")) else name
        rows.setdefault((label, cells), []).append(name)
    for (_, cells), names in rows.items():
        out.add_row(", ".join(names), *cells)
    return out


def _cell(x: Estimate | float | None) -> str:
    if x is None:
        return "-"
    if isinstance(x, Estimate):
        return f"{x.value:.3f}  [{x.low:.3f}, {x.high:.3f}]"
    return f"{x:.3f}" if abs(x) < 10 else f"{x:.1f}"


def _scores(scores) -> np.ndarray:
    """Scores as float64, checked."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be [prompts, answers], got shape {scores.shape}")
    if np.isinf(scores).any():
        infinite = np.argwhere(np.isinf(scores))
        raise ValueError(
            f"{len(infinite)} scores are not finite; the first is of prompt {infinite[0][0]}"
        )
    return scores


def _same(x, scores: np.ndarray, name: str) -> np.ndarray:
    """An array as float64, checked to have the shape of the scores."""
    x = np.asarray(x, np.float64)
    if x.shape != scores.shape:
        raise ValueError(f"{name} has shape {x.shape}, the scores {scores.shape}")
    return x
