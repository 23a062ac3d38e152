"""Your own data and your own reward: a JSON Lines file and a function."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxcredit.tasks.task import Item, Reward, Task, check_reward, is_prompt, key, without

Read = str | Callable[[dict[str, Any]], Any]


def from_jsonl(
    path: str | os.PathLike,
    *,
    reward: Reward,
    prompt: Read = "question",
    answer: Read | None = None,
    test: str | os.PathLike | float = 0.1,
    name: str | None = None,
) -> Task:
    """A task from a file with one JSON object a line; the whole object is the `meta` that `reward(meta, text, ids)` gets.

    `prompt` (and `answer`, for demonstrations) is a field's name, a format string such as "Q: {question}", or a function of the object;
    a prompt is a text or chat messages. `test` is another file, or the share of the prompts to hold out: a prompt's hash decides, so a
    growing file keeps its test set. Training items with a prompt of the test set are dropped with a warning.
    """
    check_reward(reward)
    items = items_of(path, prompt, answer)
    if isinstance(test, (int, float)):
        train, held_out = _split(items, test, path)
    else:
        held_out = items_of(test, prompt, answer)
        train = without(items, held_out, str(path))
    return Task(name or Path(path).stem, train, held_out, reward, train if answer is not None else ())


def items_of(path: str | os.PathLike, prompt: Read, answer: Read | None = None) -> list[Item]:
    """The items of one file."""
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.jsonl")) if path.parent.is_dir() else []
        hint = (
            f"that folder has: {', '.join(near[:8])}"
            if near
            else f"its folder {'has no .jsonl file' if path.parent.is_dir() else 'does not exist'}"
        )
        raise FileNotFoundError(f"no file {path}; {hint}")
    items: list[Item] = []
    with open(path, encoding="utf-8") as file:
        lines = enumerate(file, 1)
        for number, line in lines:
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{where}: not JSON ({error.msg} at column {error.colno}): {line.strip()!r:.120}; one JSON object a line is needed"
                ) from None
            if not isinstance(record, dict):
                raise ValueError(
                    f"{where}: a JSON {type(record).__name__}, {line.strip()!r:.120}; each line must be an object with named fields"
                )
            text = _read(prompt, record, where, "prompt")
            if not is_prompt(text):
                raise ValueError(f'{where}: the prompt is {text!r:.120}; it must be a text or a list of {{"role", "content"}} messages')
            item = {"prompt": text, "meta": record}
            if answer is not None:
                item["answer"] = str(_read(answer, record, where, "answer"))
            items.append(item)
    if not items:
        raise ValueError(f"{path} is empty: one JSON object a line is needed")
    return items


def _read(how: Read, record: dict, where: str, what: str) -> Any:
    if isinstance(how, str) and "{" not in how and how in record:
        return record[how]
    try:
        return how(record) if callable(how) else how.format_map(record) if "{" in how else record[how]
    except KeyError as error:
        fields = ", ".join(map(repr, record)) or "none"
        raise ValueError(f"{where}: no field {error} for the {what}; the fields there are {fields} (say which with {what}=...)") from None


def _split(items: Sequence[Item], share: float, path) -> tuple[list[Item], list[Item]]:
    if not 0 <= share < 1:
        raise ValueError(f"test={share!r}: give a share of the prompts in [0, 1), or a file")

    def held_out(item):
        digest = hashlib.sha256(key(item["prompt"]).encode()).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64

    train, test = [x for x in items if not held_out(x)], [x for x in items if held_out(x)]
    if not train or (share and not test):
        raise ValueError(f"{path}: test={share:g} of {len(items)} items leaves {len(train)} to train on and {len(test)} to test: give more")
    return train, test
