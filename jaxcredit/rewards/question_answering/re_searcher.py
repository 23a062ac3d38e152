"""RE-Searcher, arXiv 2509.26048: rewards for reflections on whether a search reached its goal.

The weights are our own design.
"""

from collections.abc import Sequence


def re_searcher(
    outcome: float,
    reflections: Sequence[bool],
    verdicts: Sequence[bool],
    *,
    formed: bool = True,
    reflection_weight: float = 0.2,
    format_weight: float = 0.1,
) -> float:
    """Reward of a trajectory: outcome + w_r mean 1[reflection = verdict] + w_f 1[well formed].

    The mean is over searches, and 0 without a search.

    Args:
        outcome: reward of the answer.
        reflections: the policy's statement for each search, whether it reached its goal.
        verdicts: the judge's statement for each search.
        formed: whether the format is right.
        reflection_weight: w_r.
        format_weight: w_f.
    """
    agree = [r == v for r, v in zip(reflections, verdicts, strict=True)]
    share = sum(agree) / len(agree) if agree else 0.0
    return outcome + reflection_weight * share + format_weight * formed


def re_searcher_turns(
    reflections: Sequence[bool], verdicts: Sequence[bool], outcome: float, *, weight: float = 0.2
) -> list[float]:
    """Rewards of the turns: weight / n for each right reflection of n, then the outcome.

    Args:
        reflections: the policy's statement for each search, whether it reached its goal.
        verdicts: the judge's statement for each search.
        outcome: reward of the answer, which is the last turn.
        weight: sum of the rewards of all searches if all reflections are right.

    Returns:
        n + 1 rewards.
    """
    each = weight / max(len(reflections), 1)
    return [each * (r == v) for r, v in zip(reflections, verdicts, strict=True)] + [outcome]
