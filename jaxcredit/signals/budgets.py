"""Number of answers per prompt, allocated by the prompts' success rates (Knapsack RL)."""

from collections.abc import Sequence

import numpy as np


def mixed_chance(n, p):
    """Probability that n answers to a prompt contain right and wrong ones: 1 - p^n - (1 - p)^n.

    A group without both has no gradient.

    Args:
        n: int >= 0, number of answers, or an array of them.
        p: float in [0, 1], success rate of the prompt, or an array that broadcasts with n.

    Returns:
        The probability, of the broadcast shape.
    """
    return 1 - np.power(p, n) - np.power(1 - np.asarray(p, float), n)


def information(p):
    """Information gain of a prompt whose answers have a gradient: p (1 - p)^2, largest at p = 1/3.

    Args:
        p: float in [0, 1], success rate of the prompt, or an array.

    Returns:
        The gain, of p's shape.
    """
    p = np.asarray(p, float)
    return p * (1 - p) ** 2


def rollout_value(n, p):
    """Expected value of n answers to a prompt: mixed_chance(n, p) information(p).

    Args:
        n: int >= 0, number of answers, or an array of them.
        p: float in [0, 1], success rate of the prompt, or an array that broadcasts with n.

    Returns:
        The value, of the broadcast shape.
    """
    return mixed_chance(n, p) * information(p)


def knapsack(rates: Sequence[float], total: int, *, low: int = 2, high: int = 128) -> np.ndarray:
    """Number of answers per prompt with the largest total value.

        max sum_i rollout_value(n_i, p_i)   subject to   sum_i n_i = total,  low <= n_i <= high

    The value is concave in n, so adding one answer at a time where its gain is largest is optimal.
    Answers that gain nothing are spread evenly, first over prompts that were never solved, then
    over prompts that were always solved.

    Args:
        rates: success rates p_i in [0, 1], from the last epoch; nan (not yet sampled) counts as
            1/2.
        total: number of answers to allocate.
        low: int >= 1, least number of answers per prompt; 2 in the paper.
        high: int >= low, largest number of answers per prompt; 128 in the paper.

    Returns:
        Numbers n_i, an int array of the length of `rates`, with sum `total`.

    Raises:
        ValueError: a rate is outside [0, 1], or `total` cannot be reached within the limits.

    Source: Knapsack RL, arXiv 2509.25849.

    >>> knapsack([0.1, 0.5, 0.9], 12, high=8).tolist()
    [5, 5, 2]
    """
    p = np.nan_to_num(np.asarray(rates, float), nan=0.5)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("rates must be between 0 and 1 (or nan)")
    if not len(p) * low <= total <= len(p) * high:
        raise ValueError(
            f"total={total} is impossible: {len(p)} prompts of low={low} to high={high} answers "
            f"take {len(p) * low} to {len(p) * high}"
        )
    n = np.arange(low, high)
    p_column = p[:, None]
    gain = (p_column**n * (1 - p_column) + (1 - p_column) ** n * p_column) * information(p_column)
    prompt, step = (x.ravel() for x in np.indices(gain.shape))
    always_solved = (p == 1)[prompt]
    order = np.lexsort((prompt, step, always_solved, -gain.ravel()))
    chosen = order[: total - len(p) * low]
    return low + np.bincount(prompt[chosen], minlength=len(p))
