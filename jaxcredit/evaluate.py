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

    `scores` [prompts, n]; right is a score of at least `solved`.
    """
    scores = _scores(scores)
    n = scores.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} answers for each prompt, there are {n}: sample more, or ask for pass@{n}")
    c = (scores >= solved).sum(1)
    # C(n - c, k) / C(n, k) = prod over i < k of (n - c - i) / (n - i), which is 0 as soon as c > n - k.
    i = np.arange(k)
    return 1.0 - np.prod(np.maximum(n - c[:, None] - i, 0) / (n - i), axis=1)


def bootstrap(values: np.ndarray, *, level: float = 0.95, draws: int = 1000, seed: int = 0) -> Estimate:
    """The mean over prompts, with the percentile interval of means over prompts drawn with replacement."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"one number for each prompt is needed, got shape {values.shape}: average over a prompt's answers first")
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values.mean()), float(low), float(high))


def wilson(right: int, total: int, *, z: float = 1.959964) -> Estimate:
    """A share with Wilson's interval: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), which is honest at 0 and at 1."""
    if not 0 <= right <= total or not total:
        raise ValueError(f"{right} right of {total}: a share needs 0 <= right <= total and total > 0")
    p, n = right / total, total
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Estimate(p, min(max(float((centre - half) / scale), 0.0), p), max(min(float((centre + half) / scale), 1.0), p))


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

    mean@n and pass@k with bootstrap intervals over prompts, greedy_accuracy with Wilson's, the share of prompts with mixed answers,
    the share cut off, and the lengths of right and of wrong answers.
    """
    scores = _scores(scores)
    n = scores.shape[1]
    out: dict[str, Estimate | float] = {}
    if greedy is not None:
        right = np.asarray(greedy) >= solved
        out["greedy_accuracy"] = wilson(int(right.sum()), right.size)
    out[f"mean@{n}"] = bootstrap(scores.mean(1), seed=seed)
    for k in ks if ks is not None else [n] if n > 1 else []:
        out[f"pass@{k}"] = bootstrap(pass_at_k(scores, k, solved=solved), seed=seed)
    if n > 1:
        out["mixed"] = float((scores.max(1) > scores.min(1)).mean())
    if done is not None:
        out["truncated"] = float(1 - _same(done, scores, "done").mean())
    if lengths is not None:
        lengths = _same(lengths, scores, "lengths")
        for name, where in (("right", scores >= solved), ("wrong", scores < solved)):
            if where.any():
                out |= {f"length_{name}/{f.__name__}": float(f(lengths[where])) for f in (np.min, np.median, np.mean, np.max)}
    return out


def table(results: Mapping[str, Mapping[str, Estimate | float]], title: str = ""):
    """A rich table with a row a number and a column a run (or a policy): `table({"before": summary(...), "after": summary(...)})`."""
    from rich.table import Table

    out = Table(title=title or None)
    out.add_column("")
    for run in results:
        out.add_column(run, justify="right")
    for name in dict.fromkeys(name for numbers in results.values() for name in numbers):
        out.add_row(name, *(_cell(numbers.get(name)) for numbers in results.values()))
    return out


def _cell(x):
    if x is None:
        return "-"
    return f"{x.value:.3f}  [{x.low:.3f}, {x.high:.3f}]" if isinstance(x, Estimate) else f"{x:.3f}" if abs(x) < 10 else f"{x:.1f}"


def _scores(scores):
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be [prompts, answers], got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{(~np.isfinite(scores)).sum()} scores are not finite; the first is of prompt {np.argwhere(~np.isfinite(scores))[0][0]}"
        )
    return scores


def _same(x, scores, name):
    x = np.asarray(x, np.float64)
    if x.shape != scores.shape:
        raise ValueError(f"{name} has shape {x.shape}, the scores {scores.shape}")
    return x
