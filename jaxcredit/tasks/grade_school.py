"""Grade school mathematics (GSM8K): 7,473 problems to train on, 1,319 to test."""

import os
import re
import signal
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from jaxcredit.tasks.jsonl import items_of
from jaxcredit.tasks.task import Task, without

SECONDS = 2  # of math-verify, at most three times an answer: less than the time-out of a reward
INSTRUCTION = "Solve the problem step by step. Write the final answer after ####."
_NUMBER = r"(?:(?<![\w)])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d[\d,]*)?"


def gsm8k(
    folder: str | os.PathLike | None = None,
    *,
    instruction: str = INSTRUCTION,
    verify: Callable[[str, str], bool] | None = None,
) -> Task:
    """GSM8K from `folder`/train.jsonl and test.jsonl, or from a data set that tensorflow-datasets has prepared (None). Chat prompts.

    `verify(gold, text)` decides, by default `numeric`; `symbolic` asks math-verify.
    """
    verify = verify or numeric
    parts = (
        [_jsonl(folder, part) for part in ("train", "test")]
        if folder is not None
        else [_tfds(part) for part in ("train", "test")]
    )
    train, test = ([_item(record, instruction) for record in part] for part in parts)
    train = without(train, test, "gsm8k")
    return Task(
        "gsm8k", train, test, lambda meta, text, ids=(): float(verify(meta["gold"], text)), train
    )


def numeric(gold: str, text: str) -> bool:
    r"""Equal as exact fractions: the last \boxed{}, else what follows the last ####, else the last number of the text.

    "$1,234.50", "1234.5" and "2469/2" are one number; a percent sign and units are ignored.
    """
    return (found := final(text)) is not None and found == final(gold)


def symbolic(gold: str, text: str) -> bool:
    """Equal in the eyes of math-verify, which also reads LaTeX. Texts that it cannot read or compare within `SECONDS` are not equal."""
    from math_verify import parse, verify

    # Its time-outs are alarms, which only the main thread has, as that of the processes in which rewards run.
    seconds: Any = (
        SECONDS
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGALRM")
        else None
    )
    right, found = (parse(x, parsing_timeout=seconds) for x in (gold, text))
    return verify(right, found, timeout_seconds=seconds)


def final(text: str) -> Fraction | None:
    """The number a text ends on; None if it has none."""
    text = (
        text.replace("\\$", "$")
        .replace("\\%", "%")
        .replace("\\!", "")
        .replace("\\,", "")
        .replace("{,}", ",")
        .replace("−", "-")
    )
    text = re.sub(r"\\d?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text)
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    if boxed:
        found = re.findall(_NUMBER, boxed[-1])
    elif "####" in text:
        found = re.findall(_NUMBER, text.rpartition("####")[2])[:1]
    else:
        found = re.findall(_NUMBER, text)
    if not found:
        return None
    top, _, bottom = re.sub(r"[$,]", "", found[-1]).partition("/")
    return Fraction(top) / Fraction(bottom or 1) if Fraction(bottom or 1) else None


def _item(record: dict[str, Any], instruction: str) -> dict[str, Any]:
    solution, _, gold = record["answer"].rpartition("####")
    shown = re.sub(r"<<.*?>>", "", solution).strip()  # the calculator's notes
    gold = gold.strip()
    asked = f"{record['question'].strip()}\n\n{instruction}".strip()
    return {
        "prompt": [{"role": "user", "content": asked}],
        "meta": {"question": record["question"], "gold": gold, "solution": shown},
        "answer": f"{shown}\n#### {gold}",
    }


def _jsonl(folder, part):
    path = Path(folder) / f"{part}.jsonl"
    records = [item["meta"] for item in items_of(path, "question", "answer")]
    for i, record in enumerate(records, 1):
        if "####" not in record["answer"] or final(record["answer"]) is None:
            raise ValueError(
                f"{path}, item {i}: no number after #### in the answer {record['answer']!r:.200}"
            )
    return records


def _tfds(part):
    try:  # by its module: without tensorflow, tensorflow-datasets cannot look its data sets up by name
        from tensorflow_datasets.text.gsm8k import Gsm8k
    except ImportError as error:
        error.add_note(
            "or give gsm8k() the folder that holds train.jsonl and test.jsonl (--data FOLDER)"
        )
        raise
    try:
        source = Gsm8k(
            data_dir=os.environ.get("TFDS_DATA_DIR"), file_format="array_record"
        ).as_data_source(split=part)  # pyright: ignore[reportCallIssue] (decorated)
    except Exception as error:
        raise FileNotFoundError(
            "tensorflow-datasets has not prepared gsm8k here. Give gsm8k() the folder that holds train.jsonl and test.jsonl; or prepare it "
            'where there is a network: python -c "from tensorflow_datasets.text.gsm8k import Gsm8k; '
            "Gsm8k(file_format='array_record').download_and_prepare()\". "
            f"Its own words: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    return [{k: _text(row[k]) for k in ("question", "answer")} for row in source]


def _text(x):
    return x.decode() if isinstance(x, bytes) else str(x)
