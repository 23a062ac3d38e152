"""TRACE, the tool-cost reward of HyperEyes, arXiv 2605.07177 and its released code.

Right answers with few calls earn a bonus. The reference cost of a prompt falls during training.
"""

from collections.abc import Sequence
from typing import NamedTuple

# Least and largest bonus of a right answer within the reference cost, and beyond it.
WITHIN_REFERENCE = (0.05, 0.20)
BEYOND_REFERENCE = (-0.10, -0.02)


class Attempt(NamedTuple):
    """One answer with its cost.

    Attributes:
        correct: whether it is right; None: the answer cannot be read.
        calls: number of tool calls.
        rounds: number of rounds of calls.
    """

    correct: bool | None
    calls: int = 0
    rounds: int = 0


Cost = tuple[int, int]  # calls, rounds


def trace(group: Sequence[Attempt], reference: Cost | None) -> tuple[list[float], Cost | None]:
    """Rewards of a prompt's answers, and the prompt's new reference cost.

        cannot be read:  -0.5
        wrong:           -0.1 if calls < ref or calls > int(1.5 ref), else 0
        right:           1 + bonus;  without calls: 1

    Costs (calls, rounds) of right answers within the reference are ranked, and the bonus falls
    linearly over the ranks from 0.20 to 0.05; beyond the reference from -0.02 to -0.10. Equal costs
    share a rank. Without a reference a right answer has 1 and a wrong one 0, which is our own
    design.

    Args:
        group: the answers to one prompt.
        reference: the prompt's reference cost; None: none yet.

    Returns:
        [G] rewards, and the least of the reference and the costs of right answers with a call,
        which is the reference of the prompt's next group. The released code does not update it.
    """
    costs: list[Cost] = [(a.calls, a.rounds) for a in group if a.correct and a.calls > 0]
    candidates = costs if reference is None else [*costs, reference]
    new_reference = min(candidates) if candidates else None
    if reference is None:
        return [-0.5 if a.correct is None else float(a.correct) for a in group], new_reference
    calls, rounds = reference
    within = {cost for cost in costs if cost[0] <= calls and cost[1] <= rounds}
    bonus = _bonus_by_rank(within, *WITHIN_REFERENCE)
    bonus |= _bonus_by_rank(set(costs) - within, *BEYOND_REFERENCE)

    def reward(attempt: Attempt) -> float:
        if attempt.correct is None:
            return -0.5
        if not attempt.correct:
            outside = attempt.calls < calls or attempt.calls > int(1.5 * calls)
            return -0.1 if outside else 0.0
        return 1.0 + (bonus[attempt.calls, attempt.rounds] if attempt.calls else 0.0)

    return [reward(attempt) for attempt in group], new_reference


def cost_aware_score(accuracy: float, tokens: float, calls: float) -> float:
    """Cost-aware score, the paper's metric: 100 accuracy^2 / (tokens / 1000 + 2 calls + 1).

    Args:
        accuracy: in [0, 1].
        tokens: mean number of tokens of an answer.
        calls: mean number of calls of an answer.
    """
    return 100 * accuracy**2 / (tokens / 1000 + 2 * calls + 1)


def _bonus_by_rank(costs: set[Cost], low: float, high: float) -> dict[Cost, float]:
    """Bonus of each cost: `high` for the least, falling linearly over the ranks to `low`."""
    order = sorted(costs)
    last = max(len(order) - 1, 1)
    return {cost: high - (high - low) * rank / last for rank, cost in enumerate(order)}
