"""What rewards read off a text: blocks between tags, answers compared as question answering compares them."""

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence


def blocks(text: str, tag: str) -> list[str]:
    """The contents of every <tag>...</tag>, stripped."""
    return [
        found.strip()
        for found in re.findall(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", text, re.DOTALL)
    ]


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces, as SQuAD compares answers."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: str | Sequence[str]) -> bool:
    """Equal to one of the gold answers when both are normalised."""
    golds = [gold] if isinstance(gold, str) else gold
    return normalized(answer) in {normalized(g) for g in golds}


def set_f1(answer: str, gold: str) -> float:
    """F1 of the sets of normalised words: 2 |both| / (|answer| + |gold|); 1 where both are empty."""
    a, b = set(normalized(answer).split()), set(normalized(gold).split())
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def jaccard(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """|a and b| / |a or b| of multisets; 1 where both are empty."""
    both = sum((Counter(a) & Counter(b)).values())
    return both / (len(a) + len(b) - both) if a or b else 1.0
