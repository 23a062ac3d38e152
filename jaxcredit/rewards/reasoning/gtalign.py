"""GTAlign (arXiv 2510.08872, and its released code for mathematics): what an answer is worth to the user and to the model."""

import json
import math
import re
from collections.abc import Mapping

from jaxcredit.rewards.text import blocks

CELLS = frozenset(
    {"DQ_AQ", "DQ_CQ", "DQ_DA", "VQ_AQ", "VQ_CQ", "VQ_DA"}
)  # the user's question (direct, vague) and what the model does
FORM = r"<thinking>.*?</thinking>\s*<payoff>.*?</payoff>\s*<analyze>.*?</analyze>\s*<response>.*?</response>"
Payoff = Mapping[str, Mapping[str, float]]


def gtalign(text: str, correct: float) -> float:
    """sqrt(U_user U_model); 0 for a text that cannot be read. The utilities apart are a signal of the credit `gtalign`."""
    return math.sqrt(math.prod(gtalign_read(text, correct)))


def gtalign_read(text: str, correct: float) -> tuple[float, float]:
    """The two utilities of a text of four blocks: thinking, payoff, analyze, response; (0, 0) without a payoff or a response."""
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
    """U_user  = 1e-4 + .5 correct + .2 L(response words; 20, 500) + .3 exp(-reasoning chars / 500)
    U_model = 1e-4 + .2 formed + .2 payoff + .4 correct + .2 L(words; 500, 1000)
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
    """L = sigmoid(slope (length - low)) sigmoid(slope (high - length))"""
    return 1 / (
        (1 + math.exp(-slope * (length - low))) * (1 + math.exp(min(slope * (length - high), 700)))
    )


def payoff_reward(payoff: Payoff, *, gap: float = 0.1) -> float:
    """1/12 for each of the six cells in which the players differ, and 1/12 where by more than a tenth of the larger."""
    apart = [
        (abs(c["user"] - c["LLM"]), max(abs(c["user"]), abs(c["LLM"]), 1e-8))
        for c in payoff.values()
    ]
    return sum((far > 0) + (far / size > gap) for far, size in apart) / 12


def parse_payoff(text: str) -> Payoff:
    """The six cells {"user": number, "LLM": number}; ValueError for anything else."""
    cells = json.loads(text)
    if not isinstance(cells, dict) or set(cells) != CELLS:
        raise ValueError(f"a payoff has the cells {', '.join(sorted(CELLS))}")
    for cell in cells.values():
        if (
            not isinstance(cell, dict)
            or set(cell) != {"user", "LLM"}
            or not all(isinstance(x, (int, float)) for x in cell.values())
        ):
            raise ValueError(f'{cell!r} is no cell: {{"user": number, "LLM": number}}')
    return cells
