"""ReSeek, arXiv 2510.00568: rewards for judging the results of a search.

After each search the policy judges the result and keeps only useful ones in its context. The
magnitudes are our own design.
"""

from collections.abc import Sequence


def reseek(
    judged: Sequence[bool],
    ideal: Sequence[bool],
    outcome: float,
    *,
    right: float = 0.1,
    wrong: float = -0.1,
) -> list[float]:
    """Rewards of the turns: `right` or `wrong` for each judgment, then the outcome.

    Args:
        judged: the policy's judgment of each search result, whether it is useful.
        ideal: the right judgment of each search result, as from `ideal_judgments`.
        outcome: reward of the answer, which is the last turn.
        right: reward of a judgment that agrees with the ideal one.
        wrong: reward of one that does not.

    Returns:
        One reward for each judgment and one for the answer.
    """
    return [right if j == i else wrong for j, i in zip(judged, ideal, strict=True)] + [outcome]


def ideal_judgments(score: Sequence[float], *, threshold: float = 0.5) -> list[bool]:
    """Ideal judgments: whether a reranker's score reaches a threshold.

    Args:
        score: a reranker's score of each search result against the gold answer.
        threshold: least score of a useful result.
    """
    return [s >= threshold for s in score]


def useful_results(results: Sequence[str], judged: Sequence[bool]) -> list[str]:
    """Search results that stay in the context: those judged useful.

    Args:
        results: the search results.
        judged: the policy's judgment of each.
    """
    return [result for result, useful in zip(results, judged, strict=True) if useful]
