"""How much of an answer's beginning `pppo` trains."""

from collections.abc import Sequence


def retention(accuracy: Sequence[float], *, start: float = 0.15, step: float = 0.05, most: float = 0.35) -> float:
    """eta = min(most, start + step #{evaluations that were no better than the best before them}) (PPPO, arXiv 2512.15274).

    `accuracy` holds the validation accuracies so far, the oldest first. The paper grows eta when accuracy stops improving; that one
    evaluation without a new best is a stop is our reading.
    """
    stops = sum(now <= max(accuracy[:i]) for i, now in enumerate(accuracy) if i)
    return min(most, start + step * stops)
