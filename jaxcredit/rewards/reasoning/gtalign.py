"""GTAlign, arXiv 2510.08872 and its released code: utilities of an answer for user and model."""

import json
import math
import re
from collections.abc import Mapping

from jaxcredit.rewards.text import blocks

# Cells of the payoff matrix: the user's question (direct DQ, vague VQ) and the model's action.
CELLS = frozenset({"DQ_AQ", "DQ_CQ", "DQ_DA", "VQ_AQ", "VQ_CQ", "VQ_DA"})
FORM = r"\s*".join(f"<{tag}>.*?</{tag}>" for tag in ("thinking", "payoff", "analyze", "response"))
Payoff = Mapping[str, Mapping[str, float]]  # {cell: {"user": number, "LLM": number}}


def gtalign(text: str, correct: float) -> float:
    """Geometric mean of the two utilities: sqrt(U_user U_model).

    The two utilities by themselves are a signal of the estimator `gtalign`.

    Args:
        text: the policy's text, as for `gtalign_read`.
        correct: reward of the answer, in [0, 1].

    Returns:
        The reward; 0 for a text that cannot be read.
    """
    return math.sqrt(math.prod(gtalign_read(text, correct)))


def gtalign_read(text: str, correct: float) -> tuple[float, float]:
    """Utilities (U_user, U_model) of a text with the blocks thinking, payoff, analyze and response.

    Args:
        text: the policy's text.
        correct: reward of the answer, in [0, 1].

    Returns:
        The utilities; (0, 0) if the payoff or the response is missing or cannot be read.
    """
    payoffs, responses = blocks(text, "payoff"), blocks(text, "response")
    if not payoffs or not responses:
        return 0.0, 0.0
    try:
        payoff = parse_payoff(payoffs[0])
    except ValueError:
        return 0.0, 0.0
    return gtalign_utilities(
        correct,
        response_words=len(responses[0].split()),
        words=len(text.split()),
        reasoning_chars=len(text.split("<response>")[0]),
        formed=float(re.fullmatch(FORM, text, re.DOTALL) is not None),
        payoff=payoff_reward(payoff),
    )


def gtalign_utilities(
    correct: float,
    *,
    response_words: int,
    words: int,
    reasoning_chars: int,
    formed: float,
    payoff: float,
) -> tuple[float, float]:
    """Utilities of an answer for the user and for the model.

        U_user  = 1e-4 + .5 correct + .2 L(response words; 20, 500) + .3 exp(-reasoning chars / 500)
        U_model = 1e-4 + .2 formed + .2 payoff + .4 correct + .2 L(words; 500, 1000)

    L is `length_window`.

    Args:
        correct: reward of the answer, in [0, 1].
        response_words: number of words of the response.
        words: number of words of the whole text.
        reasoning_chars: number of characters before the response.
        formed: reward of the format, in [0, 1].
        payoff: reward of the payoff matrix, in [0, 1]; see `payoff_reward`.

    Returns:
        (U_user, U_model), each in [0, 1.0001].
    """
    user = (
        1e-4
        + 0.5 * correct
        + 0.2 * length_window(response_words, 20, 500)
        + 0.3 * math.exp(-reasoning_chars / 500)
    )
    model = (
        1e-4 + 0.2 * formed + 0.2 * payoff + 0.4 * correct + 0.2 * length_window(words, 500, 1000)
    )
    return user, model


def length_window(length: float, low: float, high: float, *, slope: float = 0.005) -> float:
    """Smooth window over lengths: L = sigmoid(slope (length - low)) sigmoid(slope (high - length)).

    Args:
        length: a length.
        low: lower edge, at which the first factor is 1/2.
        high: upper edge, at which the second factor is 1/2.
        slope: steepness of the edges.
    """
    return 1 / (
        (1 + math.exp(-slope * (length - low))) * (1 + math.exp(min(slope * (length - high), 700)))
    )


def payoff_reward(payoff: Payoff, *, gap: float = 0.1) -> float:
    """Reward of a payoff matrix whose players differ, in [0, 1].

    Each of the six cells adds 1/12 if the payoffs of user and model differ, and another 1/12 if
    they differ by more than `gap` times the larger magnitude.

    Args:
        payoff: the matrix, as from `parse_payoff`.
        gap: relative difference, in [0, 1].
    """
    total = 0
    for cell in payoff.values():
        difference = abs(cell["user"] - cell["LLM"])
        scale = max(abs(cell["user"]), abs(cell["LLM"]), 1e-8)
        total += (difference > 0) + (difference / scale > gap)
    return total / 12


def parse_payoff(text: str) -> Payoff:
    """Payoff matrix from JSON: six cells {"user": number, "LLM": number}.

    Raises:
        ValueError: the text is not such a matrix.
    """
    cells = json.loads(text)
    if not isinstance(cells, dict) or set(cells) != CELLS:
        raise ValueError(f"a payoff has the cells {', '.join(sorted(CELLS))}")
    for cell in cells.values():
        if (
            not isinstance(cell, dict)
            or set(cell) != {"user", "LLM"}
            or not all(isinstance(x, (int, float)) for x in cell.values())
        ):
            raise ValueError(f'{cell!r} is not a cell {{"user": number, "LLM": number}}')
    return cells
