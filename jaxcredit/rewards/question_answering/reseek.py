"""ReSeek (arXiv 2510.00568): after each search the policy judges what it found, and keeps only what it judged useful.

Its code is not released and its magnitudes are not given: they are parameters here, and our design.
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
    """One reward a judgement, `right` where it agrees with the ideal one and `wrong` where not, and the outcome for the answer's turn."""
    return [right if j == i else wrong for j, i in zip(judged, ideal, strict=True)] + [outcome]


def ideal_judgements(score: Sequence[float], *, threshold: float = 0.5) -> list[bool]:
    """Useful, where a reranker's score of what was found against the gold answer reaches the threshold."""
    return [s >= threshold for s in score]


def kept(found: Sequence[str], judged: Sequence[bool]) -> list[str]:
    """What stays in the context: C' = C (+) o if judged useful. What was judged useless cannot matter later."""
    return [o for o, useful in zip(found, judged, strict=True) if useful]
