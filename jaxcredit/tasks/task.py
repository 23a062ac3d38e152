"""A task: problems to train and to test on, and a function that says what a response is worth. Plain Python, no JAX."""

import dataclasses
import inspect
import json
import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Item = dict[
    str, Any
]  # "prompt": str or chat messages; "meta": what the reward needs; optionally "answer": a demonstration
# A number, one for each segment, or None: unscored. Async, or an awaitable of one of these.
Reward = Callable[
    [Any, str, Sequence[int]],
    float | Sequence[float] | None | Awaitable[float | Sequence[float] | None],
]


@dataclasses.dataclass(frozen=True)
class Task:
    """`train` and `test` are random-access sequences of items; `reward(meta, text, ids)` is a number, or one for each segment.

    None leaves an answer unscored: it is in no statistic and no loss. The reward may be an async function. See `tasks.score`.

    `demos` are items with an "answer" for a supervised warm-up. They may be of another kind (shorter, easier) than what is trained on.
    """

    name: str
    train: Sequence[Item]
    test: Sequence[Item]
    reward: Reward
    demos: Sequence[Item] = ()

    def __post_init__(self):
        if not len(self.train):
            raise ValueError(f"task {self.name!r} has no training items")
        for name in ("train", "test", "demos"):
            part = getattr(self, name)
            if len(part):
                _check_item(
                    f"task {self.name!r}, {name}[0]",
                    part[0],
                    ("prompt", "answer") if name == "demos" else ("prompt", "meta"),
                )
        check_reward(self.reward)


def check_reward(reward: Reward) -> None:
    """Raise unless `reward` can be called as reward(meta, text, ids)."""
    if not callable(reward):
        raise TypeError(
            f"reward must be a function reward(meta, text, ids), got {type(reward).__name__} {reward!r}"
        )
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):  # builtins do not tell
        return
    try:
        signature.bind(None, "", ())
    except TypeError as error:
        name = getattr(reward, "__name__", repr(reward))
        raise TypeError(
            f"the reward is called as reward(meta, text, ids), but {name}{signature} does not take that: {error}"
        ) from None


def key(prompt: str | Sequence[dict]) -> str:
    """One text for a prompt, by which two problems are the same problem."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def is_prompt(x: Any) -> bool:
    """A text, or a chat: a list of {"role", "content"}."""
    chat = isinstance(x, (list, tuple)) and len(x) > 0
    return isinstance(x, str) or (chat and all(map(_is_message, x)))


def _is_message(x: Any) -> bool:
    known = isinstance(x, dict) and isinstance(x.get("role"), str) and "content" in x
    return known and (
        isinstance(x["content"], (str, list)) or (x["content"] is None and "tool_calls" in x)
    )


def without(train: Sequence[Item], test: Sequence[Item], name: str) -> list[Item]:
    """The training items whose prompt is not a test prompt; says how many were dropped."""
    held_out = {key(item["prompt"]) for item in test}
    kept = [item for item in train if key(item["prompt"]) not in held_out]
    if len(kept) < len(train):
        dropped = len(train) - len(kept)
        warnings.warn(
            f"{name}: {dropped} of {len(train)} training items have a prompt of the test set; they were dropped",
            stacklevel=3,
        )
    if train and not kept:
        raise ValueError(
            f"{name}: every training prompt is also a test prompt, nothing is left to train on; give another test set"
        )
    return kept


def _check_item(where, item, names):
    if not isinstance(item, dict):
        raise TypeError(
            f'{where} is a {type(item).__name__}; an item is a dict {{"prompt": str or chat messages, "meta": ...}}'
        )
    missing = [n for n in names if n not in item]
    if missing:
        raise ValueError(
            f"{where} lacks {', '.join(map(repr, missing))}; it has {', '.join(map(repr, item)) or 'nothing'}"
        )
    if not is_prompt(item["prompt"]):
        raise TypeError(
            f'{where}["prompt"] must be a text or a list of {{"role", "content"}}, got {item["prompt"]!r:.200}'
        )
