"""How many answers each prompt is worth, given how often it is solved (Knapsack RL, arXiv 2509.25849)."""

from collections.abc import Sequence

import numpy as np


def mixed_chance(n, p):
    """1 - p^n - (1-p)^n: how likely n answers hold both right and wrong ones, without which a group teaches nothing."""
    return 1 - np.power(p, n) - np.power(1 - np.asarray(p, float), n)


def rollout_value(n, p):
    """mixed_chance(n, p) p (1-p)^2: what n answers to a prompt of success rate p are expected to teach."""
    return mixed_chance(n, p) * information(p)


def information(p):
    """p (1-p)^2, at most 4/27 where p = 1/3."""
    p = np.asarray(p, float)
    return p * (1 - p) ** 2


def knapsack(rates: Sequence[float], total: int, *, low: int = 2, high: int = 128) -> np.ndarray:
    """Answers for each prompt: max sum_i rollout_value(n_i, p_i) with sum_i n_i = total and low <= n_i <= high.

    The value is concave in n (its gain from one answer more, (p^n (1-p) + (1-p)^n p) p (1-p)^2, falls), so the largest gains taken one
    after the other are optimal. What is left when no gain is left goes to prompts never solved, then to those always solved, evenly.
    Rates are last epoch's; nan, a prompt not yet seen, counts as 1/2.
    """
    p = np.nan_to_num(np.asarray(rates, float), nan=0.5)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("success rates lie between 0 and 1")
    if not len(p) * low <= total <= len(p) * high:
        raise ValueError(
            f"{len(p)} prompts of {low} to {high} answers each make {len(p) * low} to {len(p) * high} in all, not {total}"
        )
    n = np.arange(low, high)
    gain = (p[:, None] ** n * (1 - p[:, None]) + (1 - p[:, None]) ** n * p[:, None]) * information(
        p
    )[:, None]
    prompt, step = (x.ravel() for x in np.indices(gain.shape))
    solved = (p == 1)[prompt]
    chosen = np.lexsort((prompt, step, solved, -gain.ravel()))[: total - len(p) * low]
    return low + np.bincount(prompt[chosen], minlength=len(p))
