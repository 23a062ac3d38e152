"""ToolRL (arXiv 2504.13958, and its released code): the right calls, with the right parameters, in the right form."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcredit.rewards.text import jaccard

Call = Mapping[str, Any]  # {"name": str, "parameters": {name: value}}


def toolrl(
    text: str, gold: Sequence[Call], *, answer: bool = False, high: float = 3.0, low: float = -3.0
) -> float:
    """R = toolrl_format + toolrl_calls, in [-3, 4]. `answer` says whether a <response> is due. Calls that cannot be read earn the least.

    Without gold calls there is nothing to match: the format alone.
    """
    formed = toolrl_format(text, calls=bool(gold), answer=answer)
    if not gold:
        return formed
    try:
        predicted = parse_calls(text)
    except ValueError:
        return formed + low
    return formed + toolrl_calls(predicted, gold, high=high, low=low)


def toolrl_calls(
    predicted: Sequence[Call], gold: Sequence[Call], *, high: float = 3.0, low: float = -3.0
) -> float:
    """low + (high - low) score / S_max, and `high` for equal lists.

        score = J(names) + sum_g max over unused p of the same name [J(keys) + #equal values],   S_max = 1 + sum_g (1 + |params_g|)

    Gold calls choose in their order, each prediction once. A call too many lowers J(names) alone.
    """
    if list(predicted) == list(gold):
        return high
    score, left = (
        jaccard([g["name"] for g in gold], [p["name"] for p in predicted]),
        list(predicted),
    )
    for g in gold:
        worth = [_alike(p, g) if p["name"] == g["name"] else 0.0 for p in left]
        best = max(range(len(left)), key=worth.__getitem__, default=None)
        if best is not None and worth[best] > 0:
            score += worth[best]
            del left[best]
    return low + (high - low) * score / (1 + sum(1 + len(g["parameters"]) for g in gold))


def toolrl_format(text: str, *, calls: bool, answer: bool) -> float:
    """1 where the text is <think>, then <tool_call> if `calls`, then <response> if `answer`, each once and nothing else; else 0."""
    parts = [r"<think>.*?</think>"]
    parts += [r"<tool_call>\n.*?\n</tool_call>"] * calls + [r"<response>.*?</response>"] * answer
    once = all(
        text.count(f"<{slash}{tag}>") == 1
        for tag in ["tool_call"] * calls + ["response"] * answer
        for slash in ("", "/")
    )
    return float(once and re.search(rf"^{chr(10).join(parts)}$", text, re.DOTALL) is not None)


def parse_calls(text: str) -> list[Call]:
    """The calls of the first <tool_call> block, one JSON object a line; ValueError where it cannot be read."""
    found = re.search(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
    if not found:
        raise ValueError("no <tool_call> block")
    calls = [json.loads(line) for line in found.group(1).strip().split("\n")]
    for call in calls:
        if not (
            isinstance(call, dict)
            and isinstance(call.get("name"), str)
            and isinstance(call.get("parameters"), dict)
        ):
            raise ValueError(
                f'not a call: {call!r}; a call is {{"name": ..., "parameters": {{...}}}}'
            )
    return calls


def _alike(p, g):
    p, g = p["parameters"], g["parameters"]
    return jaccard(list(g), list(p)) + sum(k in p and p[k] == v for k, v in g.items())
