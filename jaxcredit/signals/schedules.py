"""Schedules: numbers that change during training, as functions of the step or of the history.

They are plain functions for the host and keep no state.
"""

import math
from collections.abc import Sequence


def length_budget(
    step: int, *, start: float = 256.0, decay: float = 0.7, every: int = 150
) -> float:
    """Token budget of an answer, reduced in stages: B = max(1, start decay^floor(step / every)).

    Args:
        step: int >= 0, training step.
        start: float >= 1, budget at step 0, in tokens; 256 in the paper.
        decay: float in (0, 1], factor per stage. 0.7 and every=150 reproduce the paper's budgets
            (256 to 87 tokens in 600 steps).
        every: int >= 1, steps per stage.

    Returns:
        The budget in tokens, at least 1.

    Source: Train Long, Think Short, arXiv 2508.08940.

    >>> round(length_budget(300), 2)
    125.44
    """
    return max(1.0, start * decay ** (step // every))


def noisy_documents(
    progress: float, *, start: float = 0.0, end: float = 0.5, base: float = 4.0
) -> float:
    """Probability that a simulated search engine returns noisy documents.

        p = start + (base^x - 1) / (base - 1) (end - start),   x = progress

    Args:
        progress: float, share of the training that is done; clipped to [0, 1].
        start: float in [0, 1], probability at the start.
        end: float in [0, 1], probability at the end.
        base: float > 0. Above 1 the probability rises slowly first (4 in the paper), below 1 fast
            first; 1 is a straight line.

    Returns:
        The probability, a float.

    Raises:
        ValueError: `base` is not positive.

    Source: ZeroSearch, arXiv 2505.04588.

    >>> round(noisy_documents(0.5), 4)
    0.1667
    """
    if base <= 0:
        raise ValueError(f"base must be positive, got {base}")
    x, rate = min(max(progress, 0.0), 1.0), math.log(base)
    share = math.expm1(x * rate) / math.expm1(rate) if rate else x
    return start + share * (end - start)


def retention(
    accuracy: Sequence[float], *, start: float = 0.15, step: float = 0.05, most: float = 0.35
) -> float:
    """Share of each answer's tokens that `credit.pppo` trains: it grows as the accuracy stagnates.

        eta = min(most, start + step n),   n = number of evaluations without a new best accuracy

    Args:
        accuracy: validation accuracies so far, the oldest first.
        start: float in (0, 1], first share; 0.15 in the paper.
        step: float >= 0, growth per stagnation; 0.05 in the paper.
        most: float in (0, 1], largest share; 0.35 in the paper.

    Returns:
        The share eta, a float.

    Departs from the paper: the paper grows eta when the accuracy stops improving and does not say
    how it decides. Here one evaluation without a new best is enough.

    Source: PPPO, arXiv 2512.15274.

    >>> retention([0.2, 0.3, 0.3])
    0.2
    """
    stagnations = sum(now <= max(accuracy[:i]) for i, now in enumerate(accuracy) if i)
    return min(most, start + step * stagnations)
