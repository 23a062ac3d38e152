"""AdaSearch (arXiv 2512.16883): first learn to answer with search and without, then to decide whether one's own knowledge is enough."""

from collections.abc import Sequence

from jaxcredit.rewards.text import exact_match


def adasearch_answer(answer: str, gold: str | Sequence[str]) -> float:
    """Stage one, for prompts with search and without alike: exact match."""
    return float(exact_match(answer, gold))


def knows(solved: Sequence[bool], *, threshold: float = 0.5) -> bool:
    """The label of stage two: the prompt is solved without search at least that often. Our design: the paper's rule is not known to us."""
    return sum(solved) >= threshold * len(solved) if solved else False


def adasearch_decision(enough: bool, known: bool, correct: bool, *, weight: float = 0.5) -> float:
    """Stage two: weight 1[the decision is the label] + (1 - weight) 1[the answer is right]. Our design."""
    return weight * (enough == known) + (1 - weight) * correct


def decision_f1(decided: Sequence[bool], oracle: Sequence[bool]) -> float:
    """The paper's metric: F1 of the decision to search (or not) against the oracle; 0 where nothing true was found."""
    both = sum(d and o for d, o in zip(decided, oracle, strict=True))
    return 2 * both / (sum(map(bool, decided)) + sum(map(bool, oracle))) if both else 0.0
