"""How true credit is (identification) and how useful (its gradient), with bootstrap intervals over groups. numpy, float64, no compiling.

Read these before any number. Broadcast credit is wrong as attribution and right as an expected gradient: never rank by an error alone. Do
not average over successes only: that changes what is estimated. A method may be right up to a factor (TEMPO is about twice A at a pivot):
errors here are after the best shift of each state, which any baseline may take, and the best global scale. Localisation can fall while
the signal-to-noise ratio still rises.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata

Draws = np.ndarray  # [1 + B]: the number itself, then its B bootstrap replicates


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def estimate(draws: Draws) -> Estimate:
    """The percentile interval of the replicates, ends rounded outwards; none where more than a tenth of them are not a number."""
    known = np.sort(draws[1:][~np.isnan(draws[1:])])
    if len(known) < 0.9 * len(draws[1:]) or not len(known):
        return Estimate(float(draws[0]), np.nan, np.nan)
    last = len(known) - 1
    return Estimate(
        float(draws[0]), float(known[int(0.025 * last)]), float(known[int(np.ceil(0.975 * last))])
    )


def ratio(a: Draws, b: Draws) -> Estimate:
    """a / b of two estimators on the same batch: replicates are paired, as the same groups were drawn for both."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return estimate(a / b)


def difference(a: Draws, b: Draws) -> Estimate:
    """a - b, paired."""
    return estimate(a - b)


def resampling(N: int, *, resamples: int = 200, seed: int = 0) -> np.ndarray:
    """Weights [1 + B, N]: the groups as they are, then B times N groups drawn with replacement. One seed pairs all estimators."""
    drawn = np.random.default_rng(seed).multinomial(N, np.full(N, 1 / N), size=resamples) / N
    return np.concatenate([np.full((1, N), 1 / N), drawn])


def gradients(g: Any, truth: Any, weights: np.ndarray) -> dict[str, Draws]:
    """Of each group's gradient [N, ...] and the exact one. u is the direction of the truth, tr the trace of Cov g.

    cos_mean = E g . u / |E g|, cos_batch = E cos(g, u), magnitude = |E g| / |truth|, gsnr = |E g|^2 / tr: its inverse is the number of
    groups whose mean is as much signal as noise; asnr = (E g . u)^2 / (E |g|^2 - (E g . u)^2): a mean beside the truth counts as noise,
    and one that points away from it has a negative number. Both are infinite where every group gives the same.
    """
    g, truth = np.asarray(g, np.float64).reshape(len(g), -1), np.asarray(truth, np.float64).ravel()
    N, size = len(g), np.linalg.norm(truth)
    u = truth / size if size > 0 else np.full(truth.shape, np.nan)
    along = g @ u
    mean, square, m, m2 = weights @ g, weights @ (g * g).sum(1), weights @ along, weights @ along**2
    # |mean|^2 overshoots by tr / N, and once more in a replicate, whose mean scatters about the first.
    over = (np.arange(len(weights)) > 0) + 1.0
    raw = (mean * mean).sum(1)
    tr = (square - raw) * N / (N - 1)
    signal = np.maximum(raw - over * tr / N, 0)
    aligned = np.maximum(m**2 - over * (m2 - m**2) / (N - 1), 0)
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


def slopes(credit: Any, batch: Any, logits: Any) -> np.ndarray:
    """`arena.gradient` without compiling: each group's [N, P, A] = 1/G sum_i sum_t A_it (e_token - pi)."""
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


def identification(credit: Any, batch: Any, weights: np.ndarray) -> dict[str, Draws]:
    """Of credit [N, G, T] against the true advantages of a batch, over the tokens the policy chose. Pivots are tokens with A != 0.

    bias and variance of credit given (step, state, action): root mean square over visits, the bias without the scatter of its means;
    `centred_` after the best shift of each state. pearson is after that shift, spearman is not. error = 1 - pearson^2, what the best
    shift of each state and the best scale leave.
    sign = share of pivots with the right sign (zero counts half); top1 = how often the largest |credit| of an answer is a pivot, topk the
    share of pivots among the k largest, k their number; leak = share of |credit| on tokens with A = 0.
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
    centred = c - (np.bincount(state[back], c) / np.bincount(state[back]))[state[back]]
    ranks, true_ranks = rankdata(c) - (len(a) + 1) / 2, rankdata(a) - (len(a) + 1) / 2
    size = np.abs(c)
    with np.errstate(divide="ignore", invalid="ignore"):
        pearson = total(centred * a) / np.sqrt(total(centred**2) * total(a**2))
        answer = {
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
            answer[name] = (weights @ hit.sum(1)) / (weights @ counts.sum(1))
    return answer


def measure(
    credit: Any,
    gradient: Any,
    batch: Any,
    weights: np.ndarray,
    blocks: dict[str, Any] | None = None,
) -> dict[str, Draws]:
    """All numbers; those of a block of parameters (masks [P]) are called `name/block`."""
    g, truth = np.asarray(gradient, np.float64), np.asarray(batch.exact.gradient, np.float64)
    answer = identification(credit, batch, weights) | gradients(g, truth, weights)
    for block, rows in (blocks or {}).items():
        rows = np.asarray(rows)
        answer |= {
            f"{name}/{block}": x for name, x in gradients(g[:, rows], truth[rows], weights).items()
        }
    return answer


def _cells(c, group, back, a, state, N, weights):
    """Bias and deviation given the cell, and given the cell after the best shift of each state."""
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
    answer = {"deviation": deviation}
    for name, b in (
        ("bias", bias),
        ("centred_bias", np.where(np.isfinite(shift), bias - shift, 0)),
    ):
        share = n / n.sum(1, keepdims=True)
        scatter = (share * b[1:].var(0)).sum(1) * ((np.arange(len(weights)) > 0) + 1)
        answer[name] = np.sqrt(np.maximum((share * b**2).sum(1) - scatter, 0))
    return answer


def _top(size, pivots, k):
    """[N, G] expected share of pivots among the k largest (ties drawn), and which answers count: those with credit and a pivot."""
    many = pivots.sum(-1)
    k = np.full(many.shape, 1) if k else many
    counts = (many > 0) & (size.max(-1) > 0)
    largest = -np.sort(-size, -1)
    border = np.take_along_axis(largest, np.maximum(k - 1, 0)[..., None], -1)
    above, level = size > border, size == border
    free = k - above.sum(-1)  # places left for those that tie at the border
    tied = (pivots & level).sum(-1) / np.maximum(level.sum(-1), 1)
    hit = ((pivots & above).sum(-1) + free * tied) / np.maximum(k, 1)
    return np.where(counts, hit, 0), counts * 1.0
