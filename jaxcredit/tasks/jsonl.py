"""Task from a JSON Lines file and a reward function."""

import gzip
import hashlib
import itertools
import json
import os
import re
import shlex
import string
import zlib
from collections.abc import Callable, Iterator, Sequence
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
    """Task from a file with one JSON object per line.

    Args:
        path: JSON Lines file, or a JSON array of objects; UTF-8, optionally compressed by gzip.
        reward: called as `reward(meta, text, ids)`, where `meta` is the JSON object of the problem.
        prompt: name of a field, format string such as "Q: {question}" (with "{{" for a literal
            brace), or function of the object. Its value is a string or a list of chat messages.
        answer: the same for demonstrations; None: the task has none.
        test: file of held-out problems, or share of prompts to hold out, in [0, 1). Prompts are
            selected by hash, so that a growing file keeps its test set. Training items with a
            prompt of the test set are dropped with a warning.
        name: name of the task (default: that of the file).

    Raises:
        ValueError: a line cannot be read; the message has file and line.
    """
    check_reward(reward)
    items = read_items(path, prompt, answer)
    if isinstance(test, (int, float)):
        train, held_out = _split(items, test, path)
    else:
        held_out = read_items(test, prompt, answer)
        train = without(items, held_out, str(path))
    return Task(
        name or Path(str(path).removesuffix(".gz")).stem,
        train,
        held_out,
        reward,
        train if answer is not None else (),
    )


def read_items(path: str | os.PathLike, prompt: Read, answer: Read | None = None) -> list[Item]:
    """Items of one file with "prompt", "meta" and, if `answer` is given, "answer".

    The arguments are those of `from_jsonl`.

    Raises:
        ValueError: a line cannot be read; the message has file and line.
        FileNotFoundError: there is no such file; the message names similar ones.
    """
    path = Path(path)
    items: list[Item] = []
    for position, record in _records(path):
        text = _read(prompt, record, position, "prompt")
        if not is_prompt(text):
            raise ValueError(
                f"{position}: the prompt is {text!r:.120}; "
                'it must be a text or a list of {"role", "content"} messages'
            )
        if text == "":
            raise ValueError(f"{position}: the prompt is empty; leave that item out")
        item = {"prompt": text, "meta": record}
        if answer is not None:
            demo = _read(answer, record, position, "answer")
            is_text = isinstance(demo, (str, int, float)) and not isinstance(demo, bool)
            if not is_text or demo != demo:
                raise ValueError(
                    f"{position}: the answer is {json.dumps(demo, default=repr):.120}; "
                    "a demonstration must be a text or a number. "
                    "Leave that item out, or make one with answer=FUNCTION"
                )
            item["answer"] = str(demo)
        items.append(item)
    if not items:
        raise ValueError(f"{path} is empty: it needs one JSON object on each line")
    return items


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(position, object) of every JSON object in a file; the position is "FILE:LINE"."""
    lines = enumerate(_lines(path), 1)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    if first[1].lstrip().startswith("[") and (array := _array(path)) is not None:
        records = ((f"{path}, item {i}", record) for i, record in enumerate(array))
    else:
        texts = (
            (f"{path}:{number}", line.strip())
            for number, line in itertools.chain([first], lines)
            if line.strip()
        )
        records = ((position, _line(text, position, path)) for position, text in texts)
    for position, record in records:
        if not isinstance(record, dict):
            kind, text = type(record).__name__, json.dumps(record)
            raise ValueError(
                f"{position}: a JSON {kind}, {text!r:.120}; "
                "each line must be an object with named fields"
            )
        yield position, record


def _line(text: str, position: str, path: Path) -> Any:
    """Parsed value of one line."""
    try:
        value = _parsed(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except _RepeatedField as repeated:
        raise ValueError(
            f"{position}: the field {repeated} occurs twice in one object: remove one"
        ) from None
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(
            f"{position}: {half} is half of a surrogate pair, no character: "
            "write both halves or leave it out"
        ) from None
    except json.JSONDecodeError as error:
        fix = f"one JSON object a line is needed (jq -c . {shlex.quote(str(path))} writes that)"
        raise ValueError(
            f"{position}: not JSON ({error.msg} at column {error.colno}): {text!r:.120}; {fix}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{position}: cannot be read as JSON ({error}): {text!r:.120}") from None
    return value


def _array(path: Path) -> list | None:
    """Items of a file that is a single JSON array; None if it is not."""
    try:
        array = _parsed("".join(_lines(path)))
        json.dumps(array, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path}: {ascii(error.object[error.start])} is half of a surrogate pair, no character"
        ) from None
    except _RepeatedField as repeated:
        raise ValueError(
            f"{path}: the field {repeated} occurs twice in one object: remove one"
        ) from None
    except json.JSONDecodeError as error:
        if error.lineno == 1 or error.msg == "Extra data":
            return None
        raise ValueError(
            f"{path}:{error.lineno}: a JSON array that cannot be read "
            f"({error.msg} at column {error.colno})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: a JSON array that cannot be read ({error})") from None
    return array if isinstance(array, list) else None


# First bytes of other formats that are mistaken for JSON Lines.
_OTHER_FORMATS = {
    b"PAR1": "a Parquet file: write it as JSON Lines "
    "(pandas: read_parquet(...).to_json(..., orient='records', lines=True))",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it (zstd -d), or compress it by gzip",
    b"BZh": "compressed by bzip2: unpack it (bunzip2), or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz: unpack it (unxz), or compress it by gzip",
    b"PK\x03\x04": "a zip archive: unpack it (unzip)",
    b"\xff\xfe": "UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself: run git lfs pull",
}


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, decompressed if it is a gzip file, without byte-order marks."""
    if not path.is_file():
        endings = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
        hint = "its folder does not exist"
        if path.parent.is_dir():
            others = sorted(p.name for p in path.parent.iterdir() if p.name.endswith(endings))
            hint = f"that folder has: {', '.join(others[:8])}"
            if not others:
                hint = "its folder has no .jsonl file"
        raise FileNotFoundError(f"no file {path}; {hint}")
    with open(path, "rb") as file:
        begin = file.read(24)
    for magic, problem in _OTHER_FORMATS.items():
        if begin.startswith(magic):
            raise ValueError(f"{path} is {problem}")
    opener = gzip.open if begin.startswith(b"\x1f\x8b") else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                if not line.isascii() and (byte := re.search("[\udc80-\udcff]", line)):
                    code = ord(byte[0]) - 0xDC00
                    raise ValueError(
                        f"{path}:{number}: not UTF-8 (the byte 0x{code:02x} in column "
                        f"{byte.start() + 1}): save it as UTF-8"
                    )
                yield line.lstrip("\ufeff")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is a damaged or unfinished gzip file, good up to line {number} ({error}): "
            "download or write it again"
        ) from None


class _RepeatedField(Exception):
    """A JSON object has a field twice. The message is the field's name."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON object from its fields, which must have different names."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedField(repr(next(name for name in names if names.count(name) > 1)))
    return record


def _parsed(text: str) -> Any:
    """Parsed JSON, whose objects have no field twice."""
    return json.loads(text, object_pairs_hook=_distinct)


class _Filled(string.Formatter):
    """str.format that raises a ValueError for None."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            raise ValueError("a field of it is null")
        return super().format_field(value, format_spec)


def _read(source: Read, record: dict, position: str, part: str) -> Any:
    """Value of a prompt or an answer (`part`) in a record: of a field, a template or a function."""
    if isinstance(source, str) and source in record:
        return record[source]
    template = isinstance(source, str) and ("{" in source or "}" in source)
    braces = " A literal brace is written twice: {{ or }}." if template else ""
    try:
        if callable(source):
            return source(record)
        return _Filled().vformat(source, (), record) if template else record[source]
    except KeyError as error:
        fields = ", ".join(map(repr, record)) or "none"
        raise ValueError(
            f"{position}: no field {error} for the {part}; the fields there are {fields} "
            f"(choose one with {part}=...).{braces}"
        ) from None
    except Exception as error:
        kind = f"template {source!r}" if template else "function"
        raise ValueError(
            f"{position}: the {kind} of the {part} does not fit: "
            f"{type(error).__name__}: {error}.{braces}"
        ) from error


def _split(items: Sequence[Item], share: float, path) -> tuple[list[Item], list[Item]]:
    """Training and test items, by the hash of the prompt: a growing file keeps its test set."""
    if not 0 <= share < 1:
        raise ValueError(f"test={share!r}: give a share of the prompts in [0, 1), or a file")

    def held_out(item):
        digest = hashlib.sha256(key(item["prompt"]).encode()).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64

    train = [item for item in items if not held_out(item)]
    test = [item for item in items if held_out(item)]
    if not train or (share and not test):
        parts = f"leaves {len(train)} to train on and {len(test)} to test"
        raise ValueError(
            f"{path}: test={share:g} of {len(items)} items {parts}: give more, or another share"
        )
    return train, test
