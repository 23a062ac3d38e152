"""Accuracy of credit and of its policy gradient, with bootstrap intervals over groups.

Computed in NumPy and float64, without compilation.

Notes for reading the numbers:

- Broadcast credit (the same number for all tokens) is wrong token by token but right as an expected
  gradient, so errors of credit alone do not rank estimators.
- Averages over successful answers only would change the quantity that is estimated.
- An estimator may be right up to a factor (TEMPO is about twice A at a pivot). Errors are therefore
  measured after the best shift of each state (any baseline may have one) and the best scale.
- The signal-to-noise ratio of the gradient can rise while fewer pivots are found.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata

Draws = np.ndarray  # [1 + B]: the estimate, then its B bootstrap replicates


class Interval(NamedTuple):
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def interval(draws: Draws) -> Interval:
    """Percentile interval of the replicates, with ends rounded outward.

    The ends are NaN if more than a tenth of the replicates are NaN.
    """
    known = np.sort(draws[1:][~np.isnan(draws[1:])])
    if len(known) < 0.9 * len(draws[1:]) or not len(known):
        return Interval(float(draws[0]), np.nan, np.nan)
    last = len(known) - 1
    return Interval(
        float(draws[0]), float(known[int(0.025 * last)]), float(known[int(np.ceil(0.975 * last))])
    )


def ratio(a: Draws, b: Draws) -> Interval:
    """Ratio a / b of two estimators on the same batch, from paired replicates."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return interval(a / b)


def difference(a: Draws, b: Draws) -> Interval:
    """Difference a - b of two estimators on the same batch, from paired replicates."""
    return interval(a - b)


def resampling(N: int, *, resamples: int = 200, seed: int = 0) -> np.ndarray:
    """Bootstrap weights of N groups, [1 + B, N].

    The first row is 1/N; the B = `resamples` others are samples with replacement. Estimators with
    the same weights are paired.
    """
    drawn = np.random.default_rng(seed).multinomial(N, np.full(N, 1 / N), size=resamples) / N
    return np.concatenate([np.full((1, N), 1 / N), drawn])


def gradient_metrics(g: Any, truth: Any, weights: np.ndarray) -> dict[str, Draws]:
    """Accuracy of a policy gradient.

    With u the direction of the true gradient and tr the trace of Cov g:

        cos_mean   E g . u / |E g|
        cos_batch  E cos(g, u)
        magnitude  |E g| / |truth|
        gsnr       |E g|^2 / tr
        asnr       (E g . u)^2 / (E |g|^2 - (E g . u)^2), with the sign of E g . u

    1 / gsnr is the number of groups whose mean has as much signal as noise. In asnr a mean that is
    not parallel to the truth counts as noise. Both are infinite if all groups give the same g.

    Args:
        g: gradient of each group, [N, ...].
        truth: the exact gradient, [...].
        weights: bootstrap weights of `resampling`.

    Returns:
        Draws [1 + B] by name.
    """
    g, truth = np.asarray(g, np.float64).reshape(len(g), -1), np.asarray(truth, np.float64).ravel()
    N, size = len(g), np.linalg.norm(truth)
    u = truth / size if size > 0 else np.full(truth.shape, np.nan)
    along = g @ u
    mean, square, m, m2 = weights @ g, weights @ (g * g).sum(1), weights @ along, weights @ along**2
    # |mean|^2 is biased by tr / N, and by twice that in a replicate.
    bias = (np.arange(len(weights)) > 0) + 1.0
    raw = (mean * mean).sum(1)
    tr = (square - raw) * N / (N - 1)
    signal = np.maximum(raw - bias * tr / N, 0)
    aligned = np.maximum(m**2 - bias * (m2 - m**2) / (N - 1), 0)
    length = np.linalg.norm(g, axis=1)
    cosine = np.divide(along, length, out=np.zeros(N), where=length > 0)
    tr, noise = (
        np.where(x > 1e-9 * square, x, 0) for x in (tr, square - aligned)
    )  # less is rounding
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "cos_mean": np.clip(m / np.sqrt(signal), -1, 1),
            "cos_batch": weights @ cosine + (0 if size > 0 else np.nan),
            "magnitude": np.sqrt(signal) / size,
            "gsnr": signal / tr,
            "asnr": np.sign(m) * aligned / noise,
        }


def group_gradients(credit: Any, batch: Any, logits: Any) -> np.ndarray:
    """Policy gradient of each group, [N, P, A], as `arena.gradient` but in NumPy."""
    (N, G, _), (P, A), mask = credit.shape, logits.shape, np.asarray(batch.rollout.action_mask)
    cell = (np.arange(N)[:, None, None] * P + np.asarray(batch.truth.row)) * A + np.asarray(
        batch.rollout.tokens
    )
    at_token = np.bincount(cell[mask], np.asarray(credit, np.float64)[mask], N * P * A).reshape(
        N, P, A
    )
    return (
        at_token - at_token.sum(-1, keepdims=True) * softmax(np.asarray(logits, np.float64), -1)
    ) / G


def credit_metrics(credit: Any, batch: Any, weights: np.ndarray) -> dict[str, Draws]:
    """Accuracy of credit against true advantages, over the tokens that the policy chose.

        bias             root mean square of E[credit | step, state, action] - A over visits,
                         corrected for the scatter of the means
        deviation        root mean square of the deviation of credit given step, state, action
        centered_bias    bias after the best shift of each state
        pearson          correlation with the truth after that shift
        spearman         rank correlation without the shift
        error            1 - pearson^2: remains after the best shift of each state and scale
        sign             share of pivots whose credit has the right sign; 0 counts half
        top1             share of answers whose largest |credit| is a pivot
        topk             share of pivots among the k largest |credit|, k the number of pivots
        leak             share of |credit| on tokens with A = 0

    A pivot is a token with A != 0.

    Args:
        credit: advantages, [N, G, T].
        batch: the `LabeledBatch` that they were computed from.
        weights: bootstrap weights of `resampling`.

    Returns:
        Draws [1 + B] by name.
    """
    mask = np.asarray(batch.rollout.action_mask)
    A, C = np.asarray(batch.truth.advantage, np.float64), np.asarray(credit, np.float64)
    actions = batch.exact.advantage.shape[-1]
    group = np.broadcast_to(np.arange(len(mask))[:, None, None], mask.shape)[mask]
    a, c, cell = A[mask], C[mask], np.asarray(batch.truth.cell)[mask]
    N, pivot = len(mask), np.abs(a) > 1e-6 * max(np.abs(a).max(initial=0), 1e-30)

    def total(x):
        return weights @ np.bincount(group, x, N)

    _, cells, back = np.unique(cell, return_index=True, return_inverse=True)
    _, state = np.unique(cell[cells] // actions, return_inverse=True)
    centered = c - (np.bincount(state[back], c) / np.bincount(state[back]))[state[back]]
    ranks, true_ranks = rankdata(c) - (len(a) + 1) / 2, rankdata(a) - (len(a) + 1) / 2
    size = np.abs(c)
    with np.errstate(divide="ignore", invalid="ignore"):
        pearson = total(centered * a) / np.sqrt(total(centered**2) * total(a**2))
        numbers = {
            **_cells(c, group, back, a[cells], state, N, weights),
            "error": 1 - np.clip(pearson, 0, 1) ** 2,
            "pearson": pearson,
            "spearman": total(ranks * true_ranks) / np.sqrt(total(ranks**2) * total(true_ranks**2)),
            "sign": total(np.where(c == 0, 0.5, np.sign(c) == np.sign(a)) * pivot)
            / total(pivot * 1.0),
            "leak": total(size * ~pivot) / total(size),
        }
        pivots = np.zeros(mask.shape, bool)
        pivots[mask] = pivot
        for name, k in (("top1", 1), ("topk", None)):
            hit, counts = _top(np.where(mask, np.abs(C), -1), pivots, k)
            numbers[name] = (weights @ hit.sum(1)) / (weights @ counts.sum(1))
    return numbers


def measure(
    credit: Any,
    gradient: Any,
    batch: Any,
    weights: np.ndarray,
    blocks: dict[str, Any] | None = None,
) -> dict[str, Draws]:
    """Numbers of `credit_metrics` and `gradient_metrics` for one estimator.

    Args:
        credit: advantages, [N, G, T].
        gradient: policy gradient of each group, [N, P, A].
        batch: the `LabeledBatch` that they were computed from.
        weights: bootstrap weights of `resampling`.
        blocks: masks [P] of rows of parameters, by name. Their gradient's numbers are added as
            "number/block".

    Returns:
        Draws [1 + B] by name.
    """
    g, truth = np.asarray(gradient, np.float64), np.asarray(batch.exact.gradient, np.float64)
    numbers = credit_metrics(credit, batch, weights) | gradient_metrics(g, truth, weights)
    for block, rows in (blocks or {}).items():
        rows = np.asarray(rows)
        numbers |= {
            f"{name}/{block}": x
            for name, x in gradient_metrics(g[:, rows], truth[rows], weights).items()
        }
    return numbers


def _cells(c, group, back, a, state, N, weights):
    """Bias, deviation and centered bias of credit, given the cell (step, state, action)."""
    M = len(a)
    index = group * M + back
    n, s, q = (weights @ np.bincount(index, x, N * M).reshape(N, M) for x in (None, c, c * c))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(n > 0, s / n, 0)
        deviation = np.sqrt(np.maximum(q.sum(1) - (n * mean**2).sum(1), 0) / n.sum(1))
        by_state = np.zeros((M, state.max() + 1))
        by_state[np.arange(M), state] = 1
        bias = mean - a
        shift = ((n * bias) @ by_state / (n @ by_state))[:, state]
    numbers = {"deviation": deviation}
    for name, b in (
        ("bias", bias),
        ("centered_bias", np.where(np.isfinite(shift), bias - shift, 0)),
    ):
        share = n / n.sum(1, keepdims=True)
        scatter = (share * b[1:].var(0)).sum(1) * ((np.arange(len(weights)) > 0) + 1)
        numbers[name] = np.sqrt(np.maximum((share * b**2).sum(1) - scatter, 0))
    return numbers


def _top(size, pivots, k):
    """Expected share [N, G] of pivots among the k largest, and a mask of answers that count.

    Ties are broken at random. Answers count that have credit and a pivot. k None: the number of
    pivots of the answer.
    """
    many = pivots.sum(-1)
    k = np.full(many.shape, k) if k else many
    counts = (many > 0) & (size.max(-1) > 0)
    largest = -np.sort(-size, -1)
    border = np.take_along_axis(largest, np.maximum(k - 1, 0)[..., None], -1)
    above, level = size > border, size == border
    free = k - above.sum(-1)  # places left for entries that tie at the border
    tied = (pivots & level).sum(-1) / np.maximum(level.sum(-1), 1)
    hit = ((pivots & above).sum(-1) + free * tied) / np.maximum(k, 1)
    return np.where(counts, hit, 0), counts * 1.0
