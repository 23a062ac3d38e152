"""Search-R1 (arXiv 2503.09516, and its released code): think, search, read, answer, in that order.

What a search returned is not the policy's: it lies off the mask of the rollout, and in `valid`.
"""

import re
from collections.abc import Sequence

from jaxcredit.rewards.text import blocks, exact_match, normalized

# From where one may go where: a text is well formed if it goes from start to end.
NEXT = {
    ("start", "<think>"): "thinking",
    ("read", "<think>"): "thinking",
    ("thinking", "</think>"): "thought",
    ("thought", "<search>"): "searching",
    ("searching", "</search>"): "searched",
    ("searched", "<information>"): "reading",
    ("reading", "</information>"): "read",
    ("thought", "<answer>"): "answering",
    ("answering", "</answer>"): "end",
}
WITHIN = {"thinking", "searching", "reading", "answering"}  # where there may be text


def well_formed(text: str) -> bool:
    """(think, search, information)*, think, answer; and nothing but spaces between them."""
    state = "start"
    for part in re.split(r"(</?(?:think|search|information|answer)>)", text):
        if (state, part) in NEXT:
            state = NEXT[state, part]
        elif re.fullmatch(r"</?(?:think|search|information|answer)>", part) or (
            part.strip() and state not in WITHIN
        ):
            return False
    return state == "end"


def retrieved(text: str, gold: str | Sequence[str]) -> bool:
    """Whether a gold answer stands in what a search returned."""
    golds = [normalized(g) for g in ([gold] if isinstance(gold, str) else gold)]
    return any(g and g in normalized(found) for found in blocks(text, "information") for g in golds)


def search_r1(
    text: str,
    gold: str | Sequence[str],
    *,
    form: float = 0.2,
    hit: float = 0.1,
    final: float = 0.1,
    outcome_only: bool = False,
) -> float:
    """1 for the right answer (1 - form if ill-formed); else, well formed, form (+ hit if a search found it); else `final` for any answer.

    The paper's own reward is the exact match alone (`outcome_only`); the levels are those of the later release.
    """
    answers = blocks(text, "answer")
    correct = bool(answers) and exact_match(answers[-1], gold)
    if outcome_only:
        return float(correct)
    formed = well_formed(text)
    if correct:
        return 1.0 if formed else 1.0 - form
    if formed:
        return form + hit * retrieved(text, gold)
    return final if answers else 0.0
