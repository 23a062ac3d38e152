"""Search-R1, arXiv 2503.09516 and its released code: answers with calls of a search engine.

In a rollout, tokens of search results are in `token_mask` and not in `action_mask`.
"""

import re
from collections.abc import Sequence

from jaxcredit.rewards.text import blocks, exact_match, normalized

# Transitions (state, tag) -> state of a well-formed text, which goes from "start" to "end".
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
# States in which text is allowed.
WITHIN = {"thinking", "searching", "reading", "answering"}


def well_formed(text: str) -> bool:
    """Whether a text is a sequence of blocks (think, search, information)*, think, answer.

    Only white space may be between the blocks.
    """
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
    """Whether a search result, a block <information>, contains a gold answer after normalization.

    Args:
        text: the policy's text with search results.
        gold: one gold answer, or several.
    """
    golds = [normalized(g) for g in ([gold] if isinstance(gold, str) else gold)]
    results = [normalized(result) for result in blocks(text, "information")]
    return any(g and g in result for result in results for g in golds)


def search_r1(
    text: str,
    gold: str | Sequence[str],
    *,
    form: float = 0.2,
    hit: float = 0.1,
    final: float = 0.1,
    outcome_only: bool = False,
) -> float:
    """Reward for a right answer in the right format after a successful search.

        right answer:     1 if well formed, else 1 - form
        wrong answer:     form + hit 1[retrieved] if well formed, else final
        no answer:        form + hit 1[retrieved] if well formed, else 0

    The levels are those of the later release. The paper's reward is the exact match alone
    (`outcome_only=True`).

    Args:
        text: the policy's text with search results.
        gold: one gold answer, or several.
        form: reward of the format.
        hit: reward for a search result that contains a gold answer.
        final: reward for any answer in an ill-formed text.
        outcome_only: return 1 for a right answer and 0 otherwise.
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
