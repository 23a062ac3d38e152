"""What scores say about a policy: accuracies with intervals over prompts, pass@k, lengths. Numpy in, numbers out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A number and its interval (95 % unless asked otherwise)."""

    value: float
    low: float
    high: float


def pass_at_k(scores: np.ndarray, k: int, *, solved: float = 1.0) -> np.ndarray:
    """Each prompt's chance that one of k draws solves it, unbiased: 1 - C(n - c, k) / C(n, k) for c of n right (2107.03374).

    `scores` [prompts, n]; right is a score of at least `solved`. NaN is an unscored answer: n of its prompt is one less, and a prompt
    with less than k scored answers gives NaN.
    """
    scores = _scores(scores)
    if not 1 <= k <= scores.shape[1]:
        most = scores.shape[1]
        raise ValueError(
            f"pass@{k} needs at least {k} answers for each prompt, there are {most}: sample more, or ask for pass@{most}"
        )
    n, c = (~np.isnan(scores)).sum(1)[:, None], (scores >= solved).sum(1)
    # C(n - c, k) / C(n, k) = prod over i < k of (n - c - i) / (n - i), which is 0 as soon as c > n - k.
    i = np.arange(k)
    chance = 1.0 - np.prod(np.maximum(n - c[:, None] - i, 0) / np.maximum(n - i, 1), axis=1)
    return np.where(n[:, 0] >= k, chance, np.nan)


def bootstrap(
    values: np.ndarray, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Estimate:
    """The mean over prompts, with the percentile interval of means over prompts drawn with replacement."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(
            f"one number for each prompt is needed, got shape {values.shape}: average over a prompt's answers first"
        )
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values.mean()), float(low), float(high))


def wilson(right: int, total: int, *, z: float = 1.959964) -> Estimate:
    """A share with Wilson's interval: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), which is honest at 0 and at 1."""
    if not 0 <= right <= total or not total:
        raise ValueError(
            f"{right} right of {total}: a share needs 0 <= right <= total and total > 0"
        )
    p, n = right / total, total
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Estimate(
        p,
        min(max(float((centre - half) / scale), 0.0), p),
        max(min(float((centre + half) / scale), 1.0), p),
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
    """All of it by name, from `scores` [prompts, n] of n sampled answers, `greedy` [prompts], `lengths` and `done` [prompts, n].

    mean@n (of rewards) and pass@k with bootstrap intervals over prompts, greedy_accuracy with Wilson's and greedy_reward, the share of
    prompts with mixed answers, the share cut off, and the lengths of right and of wrong answers. NaN is an unscored answer (the reward
    returned None): it is in none of these but the share cut off, and counted as `unscored`.
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
                out |= {
                    f"length_{name}/{f.__name__}": float(f(lengths[where]))
                    for f in (np.min, np.median, np.mean, np.max)
                }
    return out


def table(results: Mapping[str, Mapping[str, Estimate | float]], title: str = ""):
    """Table with one row per statistic and one column per run or policy: `table({"before": summary(...), "after": summary(...)})`."""
    from jaxcredit.utils.tables import Column, Sheet

    out = Sheet("", *(Column(run, right=True) for run in results), title=title)
    rows: dict[
        tuple, list[str]
    ] = {}  # what is equal in every column is one row: mean@n and pass@1 of rewards of 0 and 1
    for name in dict.fromkeys(name for numbers in results.values() for name in numbers):
        cells = tuple(_cell(numbers.get(name)) for numbers in results.values())
        rows.setdefault(("" if name.startswith(("mean@", "pass@")) else name, cells), []).append(
            name
        )
    for (_, cells), names in rows.items():
        out.add_row(", ".join(names), *cells)
    return out


def _cell(x):
    if x is None:
        return "-"
    return (
        f"{x.value:.3f}  [{x.low:.3f}, {x.high:.3f}]"
        if isinstance(x, Estimate)
        else f"{x:.3f}"
        if abs(x) < 10
        else f"{x:.1f}"
    )


def _scores(scores):
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be [prompts, answers], got shape {scores.shape}")
    if np.isinf(scores).any():
        raise ValueError(
            f"{np.isinf(scores).sum()} scores are not finite; the first is of prompt {np.argwhere(np.isinf(scores))[0][0]}"
        )
    return scores


def _same(x, scores, name):
    x = np.asarray(x, np.float64)
    if x.shape != scores.shape:
        raise ValueError(f"{name} has shape {x.shape}, the scores {scores.shape}")
    return x
