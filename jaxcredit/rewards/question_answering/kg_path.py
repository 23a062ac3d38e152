"""Rewards from a path in a knowledge graph (arXiv 2601.15160): the right answer, by way of the path's entities and relations."""

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
    """R = right or wrong + path_coverage: a right answer earns little by itself."""
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
    """min(slope |both| / |path| + bonus 1[|both| >= 2], most) freshness, of sets: `found` are of the answer, `path` of the path.

    `freshness` in (0, 1] is the paper's penalty of repetition, whose form it does not give; `distinct_share` is ours.
    """
    path = set(path)
    hits = len(path & set(found))
    return min(slope * hits / len(path) + bonus * (hits >= 2), most) * freshness if path else 0.0


def distinct_share(words: Sequence[str], *, n: int = 3) -> float:
    """The share of a text's n-grams that are different from each other; 1 for a text without any. Our design."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
