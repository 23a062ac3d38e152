"""ToolRL, arXiv 2504.13958 and its released code: rewards for format and content of tool calls."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcredit.rewards.text import jaccard

Call = Mapping[str, Any]  # {"name": str, "parameters": {name: value}}


def toolrl(
    text: str, gold: Sequence[Call], *, answer: bool = False, high: float = 3.0, low: float = -3.0
) -> float:
    """Reward of a text with tool calls: R = toolrl_format + toolrl_calls, in [-3, 4].

    Args:
        text: the policy's text.
        gold: the gold calls. If there are none, the reward is that of the format alone.
        answer: whether a block <response> is required.
        high: reward of the right calls.
        low: reward of calls that cannot be read, or that have nothing in common with the gold ones.
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
    """Reward of predicted calls: low + (high - low) score / S_max.

        score = J(names) + sum_g max_p [J(keys) + #equal values],   S_max = 1 + sum_g (1 +
        |params_g|)

    The maximum is over predicted calls with the name of the gold call g that no earlier gold call
    has used. J is the Jaccard index.

    Args:
        predicted: the policy's calls.
        gold: the gold calls.
        high: the largest reward, that of equal lists.
        low: the least reward.
    """
    if list(predicted) == list(gold):
        return high
    score = jaccard([g["name"] for g in gold], [p["name"] for p in predicted])
    unused = list(predicted)
    for g in gold:
        similarity = [_similarity(p, g) if p["name"] == g["name"] else 0.0 for p in unused]
        best = max(range(len(unused)), key=similarity.__getitem__, default=None)
        if best is not None and similarity[best] > 0:
            score += similarity[best]
            del unused[best]
    return low + (high - low) * score / (1 + sum(1 + len(g["parameters"]) for g in gold))


def toolrl_format(text: str, *, calls: bool, answer: bool) -> float:
    """Reward of the format: 1 if the text has exactly the required blocks in their order, else 0.

    The order is <think>, <tool_call>, <response>.

    Args:
        text: the policy's text.
        calls: whether <tool_call> is required.
        answer: whether <response> is required.
    """
    parts = [r"<think>.*?</think>"]
    parts += [r"<tool_call>\n.*?\n</tool_call>"] * calls + [r"<response>.*?</response>"] * answer
    once = all(
        text.count(f"<{slash}{tag}>") == 1
        for tag in ["tool_call"] * calls + ["response"] * answer
        for slash in ("", "/")
    )
    return float(once and re.search(rf"^{chr(10).join(parts)}$", text, re.DOTALL) is not None)


def parse_calls(text: str) -> list[Call]:
    """Calls in the first block <tool_call>, which has one JSON object on each line.

    Raises:
        ValueError: there is no such block, or a line is not a call.
    """
    block = re.search(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
    if not block:
        raise ValueError("no <tool_call> block")
    calls = [json.loads(line) for line in block.group(1).strip().split("\n")]
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


def _similarity(predicted: Call, gold: Call) -> float:
    """J(keys) + number of equal values."""
    p, g = predicted["parameters"], gold["parameters"]
    return jaccard(list(g), list(p)) + sum(key in p and p[key] == v for key, v in g.items())
