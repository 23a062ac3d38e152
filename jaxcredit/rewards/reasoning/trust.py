"""Trust-GRPO of SophiaVL-R1, arXiv 2505.17018 and its released code.

Rewards of thinking are weighted by their agreement with the rewards of answers.
"""

import math
from collections.abc import Sequence


def trust(reward: Sequence[float], thinking: Sequence[float]) -> float:
    """Trustworthiness of thinking scores in a group: gamma = min(1, exp(mu_c - mu_w)).

    mu_c and mu_w are the mean thinking scores of right answers (reward of at least 1/2) and of
    wrong ones.

    Args:
        reward: [G], reward of each answer.
        thinking: [G], score of each answer's thinking.

    Returns:
        gamma in (0, 1]; 1 if all answers are right or all are wrong.
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
    """Rewards of a group: R_i = r_i + weight exp(-step / period) gamma p_i.

    gamma is `trust`. The thinking score p_i is not added if all answers are right or all are wrong.

    Args:
        reward: [G], reward r_i of each answer.
        thinking: [G], a reward model's score p_i of each answer's thinking, in [0, 1].
        step: training step.
        weight: weight of the thinking reward at step 0.
        period: steps over which the weight falls by a factor of e.
        judged_from: least reward of an answer whose thinking is scored; others score 0. The
            released code has 0.2, which leaves gamma at 1 if rewards are 0 and 1.

    Returns:
        [G] rewards.
    """
    if all(r >= 0.9 for r in reward) or all(r <= 0.1 for r in reward):
        return [float(r) for r in reward]
    thinking = [p if r >= judged_from else 0.0 for r, p in zip(reward, thinking, strict=True)]
    factor = weight * math.exp(-step / period) * trust(reward, thinking)
    return [r + factor * p for r, p in zip(reward, thinking, strict=True)]
