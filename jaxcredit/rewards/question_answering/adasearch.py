"""AdaSearch, arXiv 2512.16883: learn to answer with and without search, then when to search.

In stage one the policy answers with search and without. In stage two it first decides whether its
own knowledge is enough.
"""

from collections.abc import Sequence

from jaxcredit.rewards.text import exact_match


def adasearch_answer(answer: str, gold: str | Sequence[str]) -> float:
    """Reward of stage one: exact match, for prompts with search and without.

    Args:
        answer: the policy's answer.
        gold: one gold answer, or several.
    """
    return float(exact_match(answer, gold))


def knows(solved: Sequence[bool], *, threshold: float = 0.5) -> bool:
    """Label of stage two: whether a prompt is solved often enough without search.

    The rule is our own design.

    Args:
        solved: whether each of several answers without search is right.
        threshold: least share of right answers, in [0, 1].
    """
    return sum(solved) >= threshold * len(solved) if solved else False


def adasearch_decision(enough: bool, known: bool, correct: bool, *, weight: float = 0.5) -> float:
    """Reward of stage two: weight 1[enough = known] + (1 - weight) 1[correct].

    The weights are our own design.

    Args:
        enough: the policy's decision that its own knowledge is enough.
        known: the label, as from `knows`.
        correct: whether the answer is right.
        weight: weight of the decision, in [0, 1].
    """
    return weight * (enough == known) + (1 - weight) * correct


def decision_f1(decided: Sequence[bool], oracle: Sequence[bool]) -> float:
    """F1 score of decisions against an oracle, the paper's metric; 0 without a true positive.

    Args:
        decided: the policy's decision for each prompt.
        oracle: the right decision for each prompt.
    """
    both = sum(d and o for d, o in zip(decided, oracle, strict=True))
    return 2 * both / (sum(map(bool, decided)) + sum(map(bool, oracle))) if both else 0.0
