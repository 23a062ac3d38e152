"""Text utilities of rewards: blocks between tags, and comparisons of answers as in SQuAD."""

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence


def blocks(text: str, tag: str) -> list[str]:
    """Contents of every <tag>...</tag> in a text, in order, without surrounding space.

    Example:
        >>> blocks("<a>one</a> <a> two </a>", "a")
        ['one', 'two']
    """
    pattern = rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>"
    return [content.strip() for content in re.findall(pattern, text, re.DOTALL)]


def normalized(text: str) -> str:
    """Text in lower case without punctuation, articles and extra spaces, as SQuAD compares answers.

    arXiv 1606.05250.
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: str | Sequence[str]) -> bool:
    """Whether an answer equals one of the gold answers after normalization.

    Args:
        answer: the policy's answer.
        gold: one gold answer, or several that are all right.
    """
    golds = [gold] if isinstance(gold, str) else gold
    return normalized(answer) in {normalized(g) for g in golds}


def set_f1(answer: str, gold: str) -> float:
    """F1 score of the sets of normalized words: 2 |both| / (|answer| + |gold|).

    1 if both are empty.

    Args:
        answer: the policy's answer.
        gold: the gold answer.
    """
    a, b = set(normalized(answer).split()), set(normalized(gold).split())
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def jaccard(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Jaccard index of two multisets: |a and b| / |a or b|; 1 if both are empty.

    Example:
        >>> jaccard("aab", "abb")
        0.5
    """
    both = sum((Counter(a) & Counter(b)).values())
    return both / (len(a) + len(b) - both) if a or b else 1.0
