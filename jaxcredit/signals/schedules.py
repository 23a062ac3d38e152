"""Numbers that change as training goes on. Plain functions of the step, for the host: whoever keeps the step keeps all state there is."""

import math
from collections.abc import Sequence


def length_budget(
    step: int, *, start: float = 256.0, decay: float = 0.7, every: int = 150
) -> float:
    """B = max(1, start decay^floor(step / every)): the tokens an answer may take.

    Train long, think short, arXiv 2508.08940 (256 to 87 in 600 steps; decay and period are those that give its numbers).
    """
    return max(1.0, start * decay ** (step // every))


def noisy_documents(
    progress: float, *, start: float = 0.0, end: float = 0.5, base: float = 4.0
) -> float:
    """p = start + (base^x - 1) / (base - 1) (end - start), x = progress in [0, 1]: how likely a simulated search answers with noise.

    ZeroSearch's curriculum, arXiv 2505.04588. Slow first where base > 1, fast first where base < 1, and a line where it is 1.
    """
    if base <= 0:
        raise ValueError(f"base must be positive, got {base}")
    x, rate = min(max(progress, 0.0), 1.0), math.log(base)
    share = math.expm1(x * rate) / math.expm1(rate) if rate else x
    return start + share * (end - start)


def retention(
    accuracy: Sequence[float], *, start: float = 0.15, step: float = 0.05, most: float = 0.35
) -> float:
    """eta = min(most, start + step #{evaluations that were no better than the best before them}) (PPPO, arXiv 2512.15274).

    `accuracy` holds the validation accuracies so far, the oldest first. The paper grows eta when accuracy stops improving; that one
    evaluation without a new best is a stop is our reading.
    """
    stops = sum(now <= max(accuracy[:i]) for i, now in enumerate(accuracy) if i)
    return min(most, start + step * stops)
