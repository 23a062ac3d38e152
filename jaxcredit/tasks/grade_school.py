"""Task: grade school mathematics (GSM8K), 7,473 training and 1,319 test problems."""

import os
import re
import signal
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from jaxcredit.tasks.jsonl import read_items
from jaxcredit.tasks.task import Task, without

# Time-out of one call of math-verify. `symbolic` makes up to three, within the time-out of a
# reward.
SECONDS = 2
INSTRUCTION = "Solve the problem step by step. Write the final answer after ####."
_NUMBER = r"(?:(?<![\w)])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d[\d,]*)?"


def gsm8k(
    folder: str | os.PathLike | None = None,
    *,
    instruction: str = INSTRUCTION,
    verify: Callable[[str, str], bool] | None = None,
) -> Task:
    """GSM8K as a task with chat prompts and reward 1 for the right final answer; arXiv 2110.14168.

    Args:
        folder: folder with train.jsonl and test.jsonl (fields "question" and "answer"); None: the
            data set as tensorflow-datasets has prepared it.
        instruction: text after each question.
        verify: function `verify(gold, text)` that decides whether an answer is right: `numeric`
            (the default) or `symbolic`.

    Raises:
        FileNotFoundError: the files, or the prepared data set, are not there.
        ValueError: an answer in the files has no number after ####.
    """
    verify = verify or numeric
    records = {
        part: _jsonl(folder, part) if folder is not None else _tfds(part)
        for part in ("train", "test")
    }
    train = [_item(record, instruction) for record in records["train"]]
    test = [_item(record, instruction) for record in records["test"]]
    train = without(train, test, "gsm8k")
    return Task(
        "gsm8k", train, test, lambda meta, text, ids=(): float(verify(meta["gold"], text)), train
    )


def numeric(gold: str, text: str) -> bool:
    r"""Whether the final numbers of two texts are equal as exact fractions; see `final_number`.

    "$1,234.50", "1234.5" and "2469/2" are equal. Percent signs and units are ignored.

    Args:
        gold: text with the right answer.
        text: the response.

    Example:
        >>> numeric("#### 42", r"so the total is \boxed{42}")
        True
    """
    number = final_number(text)
    return number is not None and number == final_number(gold)


def symbolic(gold: str, text: str) -> bool:
    """Whether math-verify considers two answers equal. It also reads LaTeX.

    Texts that it cannot read or compare within `SECONDS` are not equal.

    Args:
        gold: the right answer.
        text: the response.
    """
    from math_verify import parse, verify

    # math-verify's time-outs are alarms, which exist in the main thread alone. The processes in
    # which rewards run call this function in their main thread.
    seconds: Any = (
        SECONDS
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGALRM")
        else None
    )
    right, parsed = (parse(x, parsing_timeout=seconds) for x in (gold, text))
    return verify(right, parsed, timeout_seconds=seconds)


def final_number(text: str) -> Fraction | None:
    r"""Number that a response gives as its result.

    It is the last number in the last \boxed{}; else the first after the last ####; else the last
    number of the text.

    Returns:
        The number as an exact fraction; None if there is none.
    """
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
        numbers = re.findall(_NUMBER, boxed[-1])
    elif "####" in text:
        numbers = re.findall(_NUMBER, text.rpartition("####")[2])[:1]
    else:
        numbers = re.findall(_NUMBER, text)
    if not numbers:
        return None
    numerator, _, denominator = re.sub(r"[$,]", "", numbers[-1]).partition("/")
    divisor = Fraction(denominator or 1)
    return Fraction(numerator) / divisor if divisor else None


def _item(record: dict[str, Any], instruction: str) -> dict[str, Any]:
    solution, _, gold = record["answer"].rpartition("####")
    solution = re.sub(r"<<.*?>>", "", solution).strip()  # without calculator annotations
    gold = gold.strip()
    question = f"{record['question'].strip()}\n\n{instruction}".strip()
    return {
        "prompt": [{"role": "user", "content": question}],
        "meta": {"question": record["question"], "gold": gold, "solution": solution},
        "answer": f"{solution}\n#### {gold}",
    }


def _jsonl(folder: str | os.PathLike, part: str) -> list[dict[str, str]]:
    """Records of FOLDER/PART.jsonl, checked."""
    path = Path(folder) / f"{part}.jsonl"
    records = [item["meta"] for item in read_items(path, "question", "answer")]
    for i, record in enumerate(records, 1):
        if "####" not in record["answer"] or final_number(record["answer"]) is None:
            raise ValueError(
                f"{path}, item {i}: no number after #### in the answer {record['answer']!r:.200}"
            )
    return records


def _tfds(part: str) -> list[dict[str, str]]:
    """Records of the data set that tensorflow-datasets has prepared."""
    try:  # imported directly: finding a data set by its name needs tensorflow
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
            "tensorflow-datasets has not prepared gsm8k here. Give gsm8k() the folder that holds "
            "train.jsonl and test.jsonl; or prepare it where there is a network: "
            'python -c "from tensorflow_datasets.text.gsm8k import Gsm8k; '
            "Gsm8k(file_format='array_record').download_and_prepare()\". "
            f"Its error: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    return [{k: _text(row[k]) for k in ("question", "answer")} for row in source]


def _text(x: Any) -> str:
    return x.decode() if isinstance(x, bytes) else str(x)
