"""A thinking reward that is believed as far as it agrees with the answers (SophiaVL-R1, arXiv 2505.17018, and its released code)."""

import math
from collections.abc import Sequence


def trust(reward: Sequence[float], thinking: Sequence[float]) -> float:
    """gamma = 1 if mu_c >= mu_w else exp(mu_c - mu_w): mean thinking scores of right (reward >= 1/2) and wrong answers of a group.

    Without a right answer there is nothing to hold against the scores: 1.
    """
    right = [p for r, p in zip(reward, thinking, strict=True) if r >= 0.5]
    wrong = [p for r, p in zip(reward, thinking, strict=True) if r < 0.5]
    if not right or not wrong:
        return 1.0
    return math.exp(min(0.0, sum(right) / len(right) - sum(wrong) / len(wrong)))


def trust_grpo(
    reward: Sequence[float],
    thinking: Sequence[float],
    step: float,
    *,
    weight: float = 0.3,
    period: float = 12000.0,
    judged_from: float = 0.0,
) -> list[float]:
    """R_i = r_i + weight exp(-step / period) gamma p_i, for a group; no thinking reward where all answers are right, or all wrong.

    `thinking` are a reward model's scores in [0, 1]. Released code does not ask it about answers below 0.2, which then score 0
    (`judged_from=0.2`): with rewards of 0 and 1 that leaves gamma at 1.
    """
    if all(r >= 0.9 for r in reward) or all(r <= 0.1 for r in reward):
        return [float(r) for r in reward]
    thinking = [p if r >= judged_from else 0.0 for r, p in zip(reward, thinking, strict=True)]
    factor = weight * math.exp(-step / period) * trust(reward, thinking)
    return [r + factor * p for r, p in zip(reward, thinking, strict=True)]
