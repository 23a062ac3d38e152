"""JSON Lines files with byte-order marks, gzip, arrays and damage: errors have file and line."""

import gzip
import json
import re

import pytest

from jaxcredit import tasks
from jaxcredit.tasks.jsonl import read_items

RECORDS = [
    {"question": f"What is {i} + 1?", "answer": str(i + 1), "note": "naïve – 五"} for i in range(20)
]
LINES = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
TEXT = "\n".join(LINES) + "\n"


def right(meta, text, ids):
    return float(text == meta["answer"])


def questions(path, data, **kw):
    path.write_bytes(data)
    return [item["prompt"] for item in read_items(path, kw.pop("prompt", "question"), **kw)]


FORMS = {
    "plain": TEXT.encode(),
    "no newline at the end": TEXT.rstrip().encode(),
    "windows": TEXT.replace("\n", "\r\n").encode(),
    "old mac": TEXT.replace("\n", "\r").encode(),
    "blank lines": ("\n \n" + TEXT.replace("\n", "\n\n")).encode(),
    "byte-order mark": TEXT.encode("utf-8-sig"),
    "files put together": "".join(
        ("\ufeff" if i % 5 == 0 else "") + line + "\n" for i, line in enumerate(LINES)
    ).encode(),
    "escaped": "\n".join(map(json.dumps, RECORDS)).encode(),
    "line separators in a text": TEXT.replace("naïve", "a\u2028b\x85c").encode(),
    "array": json.dumps(RECORDS).encode(),
    "array over many lines": json.dumps(RECORDS, indent=2).encode(),
    "array with a mark": json.dumps(RECORDS, ensure_ascii=False, indent=1).encode("utf-8-sig"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_problems_is_read(form, packed, tmp_path):
    data = gzip.compress(FORMS[form]) if packed else FORMS[form]
    assert questions(tmp_path / "a.jsonl", data) == [r["question"] for r in RECORDS]


def test_a_gzip_file_gives_its_task_its_name(tmp_path):
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert tasks.from_jsonl(tmp_path / "mine.jsonl.gz", reward=right, test=0.5).name == "mine"
    with pytest.raises(
        FileNotFoundError, match=r"no file .*mine\.jsonl; that folder has: mine\.jsonl\.gz"
    ):
        tasks.from_jsonl(tmp_path / "mine.jsonl", reward=right)


GOOD = LINES[0].encode() + b"\n"
BAD = {
    "not UTF-8": (
        GOOD + b'{"question": "\xff"}\n',
        r"a\.jsonl:2: not UTF-8 \(the byte 0xff in column 15\)",
    ),
    "latin-1 before the first line": (b'{"question": "na\xefve"}\n', r"a\.jsonl:1: not UTF-8"),
    "half a character": (
        GOOD + rb'{"question": "\ud83d"}',
        r"a\.jsonl:2: '\\ud83d' is half of a surrogate pair",
    ),
    "half a character in an array": (
        rb'[{"question": "\ud83d"}]',
        r"a\.jsonl: '\\ud83d' is half of a surrogate pair",
    ),
    "UTF-16": (TEXT.encode("utf-16"), r"a\.jsonl is UTF-16: save it as UTF-8"),
    "Parquet": (b"PAR1....", "is a Parquet file: write it as JSON Lines"),
    "zstd": (b"\x28\xb5\x2f\xfd....", "compressed by zstd: unpack it"),
    "zip": (b"PK\x03\x04....", "a zip archive"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
    "cut gzip": (gzip.compress(TEXT.encode() * 500)[:-9], "damaged or unfinished gzip file"),
    "damaged gzip": (
        gzip.compress(TEXT.encode())[:-6] + b"\0" * 6,
        "damaged or unfinished gzip file",
    ),
    "damaged gzip inside": (
        (z := gzip.compress(TEXT.encode()))[:40] + b"\xff\xff\xff" + z[43:],
        "gzip file|not UTF-8|not JSON",
    ),
    "pretty-printed": (
        json.dumps(RECORDS[0], indent=1).encode(),
        r"a\.jsonl:1: not JSON .*jq -c \. .*a\.jsonl",
    ),
    "twice": (
        GOOD + b'{"question": "a", "answer": 1, "answer": 2}',
        r"a\.jsonl:2: the field 'answer' occurs twice",
    ),
    "twice inside": (
        GOOD + b'{"question": "a", "more": [{"x": 1, "x": 1}]}',
        r"a\.jsonl:2: the field 'x' occurs twice",
    ),
    "twice in an array": (
        b'[{"question": "a", "question": "b"}]',
        r"a\.jsonl: the field 'question' occurs twice",
    ),
    "deep": (GOOD + b"[" * 200_000, r"a\.jsonl:2: (cannot be read as JSON|not JSON)"),
    "deep array": (b"[" * 200_000, "(cannot be read|not JSON)"),
    "a number of many digits": (
        b'{"question": "a", "n": ' + b"9" * 5000 + b"}",
        r"a\.jsonl:1: cannot be read as JSON",
    ),
    "an array that breaks off": (
        b'[\n{"question": "a"},\n{"question":',
        r"a\.jsonl:3: a JSON array that cannot be read",
    ),
    "an array of texts": (b'["a", "b"]', r"a\.jsonl, item 0: a JSON str"),
    "lists": (b"[1, 2]\n[3, 4]\n", r"a\.jsonl:1: a JSON list"),
    "null": (b'{"question": null}', r"a\.jsonl:1: the prompt is None; it must be a text"),
    "no text": (
        GOOD + b'{"question": ""}',
        r"a\.jsonl:2: the prompt is empty; leave that item out",
    ),
    "a message without content": (
        b'{"question": [{"role": "user", "content": null}]}',
        r"a\.jsonl:1: the prompt is",
    ),
    "an empty array": (b"[]", r"a\.jsonl is empty"),
    "an empty gzip file": (gzip.compress(b""), r"a\.jsonl is empty"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_read_is_named_with_its_place_and_the_mend(what, tmp_path):
    data, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        questions(tmp_path / "a.jsonl", data)


@pytest.mark.parametrize("shown", ["null", "[1]", '{"a": 1}', "true", "NaN"])
def test_an_answer_that_is_no_text_is_refused(shown, tmp_path):
    with pytest.raises(
        ValueError,
        match=rf"a\.jsonl:2: the answer is {re.escape(shown)}; .*must be a text or a number",
    ):
        questions(
            tmp_path / "a.jsonl",
            GOOD + f'{{"question": "a", "answer": {shown}}}'.encode(),
            answer="answer",
        )
    assert questions(
        tmp_path / "a.jsonl", b'{"question": "a", "answer": 1.5}', answer="answer"
    ) == ["a"]


TEMPLATES = {
    "literal braces": (
        '{"sum": {question}}',
        r"no field '\"sum\"' for the prompt.*written twice: \{\{ or \}\}",
    ),
    "an open brace": (
        "{question",
        "the template '{question' of the prompt does not fit: ValueError.*written twice",
    ),
    "a closing brace": (
        "question}",
        "the template 'question}' of the prompt does not fit: ValueError.*written twice",
    ),
    "no name": ("Q: {}", "(no field|does not fit).*written twice"),
    "another format": ("{question:d}", "does not fit: ValueError: .*'d'"),
    "an attribute": ("{question.x}", "does not fit: AttributeError"),
    "an item": ("{question[x]}", "does not fit: TypeError"),
    "null": ("{question} {hint}", "does not fit: ValueError: a field of it is null"),
}


@pytest.mark.parametrize("what", TEMPLATES)
def test_a_template_that_does_not_fit_says_why_and_how_to_write_braces(what, tmp_path):
    template, message = TEMPLATES[what]
    data = b'{"question": "a", "hint": null}'
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .*" + message):
        questions(tmp_path / "a.jsonl", data, prompt=template)
    assert questions(tmp_path / "a.jsonl", data, prompt='{{"sum": {question!r:>5}}}') == [
        """{"sum":   'a'}"""
    ]


def test_a_function_that_raises_is_named_with_the_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"a\.jsonl:1: the function of the prompt does not fit: ZeroDivisionError"
    ):
        questions(tmp_path / "a.jsonl", GOOD, prompt=lambda record: 1 / 0)
    with pytest.raises(ValueError, match=r"a\.jsonl:1: no field 'x' for the prompt"):
        questions(tmp_path / "a.jsonl", GOOD, prompt=lambda record: record["x"])


def test_numbers_that_only_python_writes_stay_in_what_the_reward_reads(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "a", "seconds": NaN}\n')
    assert read_items(tmp_path / "a.jsonl", "question")[0]["meta"]["seconds"] != 0
