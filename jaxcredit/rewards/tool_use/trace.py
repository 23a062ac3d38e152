"""TRACE, the tool cost of HyperEyes (arXiv 2605.07177, and its released code): right answers with few calls, against a reference that
tightens as the policy gets better."""

from collections.abc import Sequence
from typing import NamedTuple

GOOD, BAD = (
    (0.05, 0.20),
    (-0.10, -0.02),
)  # the least and the most bonus within the reference and beyond it


class Attempt(NamedTuple):
    """One answer: right, wrong, or (None) not to be read; its calls and its rounds."""

    correct: bool | None
    calls: int = 0
    rounds: int = 0


Cost = tuple[int, int]  # calls, rounds


def trace(group: Sequence[Attempt], reference: Cost | None) -> tuple[list[float], Cost | None]:
    """The rewards of a prompt's answers, and the prompt's reference from now on: keep it, and hand it in next time.

        -0.5 unreadable;   wrong: -0.1 if calls < ref or calls > int(1.5 ref), else 0;   right: 1 + bonus

    A right answer without calls has no bonus; others have the better one the fewer (calls, rounds) they took, ranked apart within
    the reference (0.20 to 0.05) and beyond it (-0.02 to -0.10); equals share a rank. The reference is read before it is written, and
    becomes the least cost of a right answer with a call if that is less (the release forgets to). Our design: with no reference yet,
    only right and wrong count.
    """
    seen: list[Cost] = [(a.calls, a.rounds) for a in group if a.correct and a.calls > 0]
    known = seen if reference is None else [*seen, reference]
    after = min(known) if known else None
    if reference is None:
        return [-0.5 if a.correct is None else float(a.correct) for a in group], after
    calls, rounds = reference
    within = {cost for cost in seen if cost[0] <= calls and cost[1] <= rounds}
    bonus = {0: 0.0} | _ranked(within, *GOOD) | _ranked(set(seen) - within, *BAD)

    def reward(a):
        if a.correct is None:
            return -0.5
        if not a.correct:
            return -0.1 if a.calls < calls or a.calls > int(1.5 * calls) else 0.0
        return 1.0 + bonus[(a.calls, a.rounds) if a.calls else 0]

    return [reward(a) for a in group], after


def cost_aware_score(accuracy: float, tokens: float, calls: float) -> float:
    """CAS = 100 accuracy^2 / (thousands of tokens + 2 calls + 1), the paper's metric."""
    return 100 * accuracy**2 / (tokens / 1000 + 2 * calls + 1)


def _ranked(costs, low, high):
    order = sorted(costs)
    return {
        cost: high - (high - low) * rank / max(len(order) - 1, 1) for rank, cost in enumerate(order)
    }
