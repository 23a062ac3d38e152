"""The data structure of a task: training items, test items and a reward function."""

import dataclasses
import inspect
import json
import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

# A problem: "prompt" (a string or chat messages), "meta" (data for the reward function) and,
# for demonstrations, "answer".
Item = dict[str, Any]
# reward(meta, text, ids): a number, or one for each segment, or None (unscored); may be async.
Reward = Callable[
    [Any, str, Sequence[int]],
    float | Sequence[float] | None | Awaitable[float | Sequence[float] | None],
]


@dataclasses.dataclass(frozen=True)
class Task:
    """Problems to train and to test on, with a reward function.

    An item is a dict with "prompt" (a string or a list of chat messages) and "meta" (any data that
    the reward function needs).

    Attributes:
        name: name of the task, for messages and metrics.
        train: training items, with random access.
        test: held-out items, with random access.
        reward: function `reward(meta, text, ids)` of an item's meta, the text of an answer and its
            token ids. It returns a number, or a sequence with one number for each segment, or None
            for an answer that enters no statistic and no loss. It may be async. See `tasks.score`.
        demos: items with an "answer", for a supervised warm-up. They may be easier than `train`.

    Raises:
        ValueError: there are no training items, or an item lacks a key.
        TypeError: an item is not a dict, a prompt is neither a string nor chat messages, or the
            reward cannot be called with three arguments.

    Example:
        >>> items = [{"prompt": "1 + 1 =", "meta": "2"}, {"prompt": "2 + 3 =", "meta": "5"}]
        >>> task = Task("sums", items, [], lambda meta, text, ids: float(text.strip() == meta))
        >>> task.reward("5", " 5", ())
        1.0
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
    """Raise a TypeError unless `reward` can be called as reward(meta, text, ids)."""
    if not callable(reward):
        raise TypeError(
            f"reward must be a function reward(meta, text, ids), "
            f"got {type(reward).__name__} {reward!r}"
        )
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind(None, "", ())
    except TypeError as error:
        name = getattr(reward, "__name__", repr(reward))
        raise TypeError(
            f"the reward is called as reward(meta, text, ids), "
            f"but {name}{signature} does not take that: {error}"
        ) from None


def key(prompt: str | Sequence[dict]) -> str:
    """Text that identifies a prompt: equal for equal prompts, strings and chats alike."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def is_prompt(x: Any) -> bool:
    """Whether a value is a prompt: a string, or a list of chat messages {"role", "content"}."""
    chat = isinstance(x, (list, tuple)) and len(x) > 0
    return isinstance(x, str) or (chat and all(map(_is_message, x)))


def _is_message(x: Any) -> bool:
    """Whether a value is a chat message."""
    known = isinstance(x, dict) and isinstance(x.get("role"), str) and "content" in x
    return known and (
        isinstance(x["content"], (str, list)) or (x["content"] is None and "tool_calls" in x)
    )


def without(train: Sequence[Item], test: Sequence[Item], name: str) -> list[Item]:
    """Training items whose prompt is not a test prompt. A warning has the number of the others.

    Raises:
        ValueError: no item is left.
    """
    held_out = {key(item["prompt"]) for item in test}
    remaining = [item for item in train if key(item["prompt"]) not in held_out]
    if len(remaining) < len(train):
        dropped = len(train) - len(remaining)
        warnings.warn(
            f"{name}: {dropped} of {len(train)} training items have a prompt of the test set; "
            "they were dropped",
            stacklevel=3,
        )
    if train and not remaining:
        raise ValueError(
            f"{name}: every training prompt is also a test prompt, nothing is left to train on; "
            "give another test set"
        )
    return remaining


def _check_item(position: str, item: Any, names: Sequence[str]) -> None:
    """Raise unless `item` is a dict with these keys and a valid prompt."""
    if not isinstance(item, dict):
        raise TypeError(
            f"{position} is a {type(item).__name__}; "
            'an item is a dict {"prompt": str or chat messages, "meta": ...}'
        )
    missing = [name for name in names if name not in item]
    if missing:
        raise ValueError(
            f"{position} lacks {', '.join(map(repr, missing))}; "
            f"it has {', '.join(map(repr, item)) or 'nothing'}"
        )
    if not is_prompt(item["prompt"]):
        raise TypeError(
            f'{position}["prompt"] must be a text or a list of {{"role", "content"}}, '
            f"got {item['prompt']!r:.200}"
        )
