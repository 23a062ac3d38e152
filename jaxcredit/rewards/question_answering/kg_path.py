"""Rewards from a path in a knowledge graph, arXiv 2601.15160."""

from collections.abc import Collection, Sequence


def kg_path(
    correct: bool,
    found: Collection[str],
    path: Collection[str],
    *,
    freshness: float = 1.0,
    right: float = 0.1,
    wrong: float = -1.0,
) -> float:
    """Reward for an answer and its path: (right if correct else wrong) + path_coverage.

    Args:
        correct: whether the answer is right.
        found: entities and relations that the answer names.
        path: entities and relations of the gold path.
        freshness: factor in (0, 1] for repetition, see `path_coverage`.
        right: reward of a right answer.
        wrong: reward of a wrong answer.
    """
    return (right if correct else wrong) + path_coverage(found, path, freshness=freshness)


def path_coverage(
    found: Collection[str],
    path: Collection[str],
    *,
    freshness: float = 1.0,
    slope: float = 1.2,
    bonus: float = 0.3,
    most: float = 1.5,
) -> float:
    """Coverage of a path: min(slope |both| / |path| + bonus 1[|both| >= 2], most) freshness.

    Args:
        found: entities and relations that the answer names, as a set.
        path: entities and relations of the gold path, as a set; the coverage of an empty one is 0.
        freshness: factor in (0, 1] for repetition. The paper does not give its form;
            `distinct_share` is ours.
        slope: reward for full coverage, before the bonus.
        bonus: additional reward for two or more matches.
        most: largest value before `freshness`.
    """
    path = set(path)
    hits = len(path & set(found))
    return min(slope * hits / len(path) + bonus * (hits >= 2), most) * freshness if path else 0.0


def distinct_share(words: Sequence[str], *, n: int = 3) -> float:
    """Share of distinct n-grams among the n-grams of a text; 1 for a text without any. Our design.

    Args:
        words: the words of the text.
        n: length of an n-gram in words.

    Example:
        >>> distinct_share("a b a b".split(), n=2)
        0.6666666666666666
    """
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
