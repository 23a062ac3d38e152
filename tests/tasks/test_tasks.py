"""Tasks: own data and reward, generators and verifiers."""

import doctest
import json
import os
import warnings
from collections import Counter

import numpy as np
import pytest

from jaxcredit import tasks
from jaxcredit.tasks import addition, grade_school, statistics
from jaxcredit.tasks import task as task_module
from jaxcredit.tasks.addition import final_integer
from jaxcredit.tasks.grade_school import final_number, numeric, symbolic


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def right(meta, text, ids):
    return float(text.strip() == meta["answer"])


QA = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(200)]


@pytest.mark.parametrize("module", [addition, grade_school, statistics, task_module])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module, extraglobs={"np": np})
    assert results.attempted and not results.failed


# JSON Lines


def test_own_data_and_own_reward(tmp_path):
    task = tasks.from_jsonl(write(tmp_path / "mine.jsonl", QA), reward=right)
    assert (
        task.name == "mine"
        and len(task.train) + len(task.test) == 200
        and 8 <= len(task.test) <= 35
    )
    item = task.train[0]
    assert (
        item["prompt"] == item["meta"]["question"]
        and task.reward(item["meta"], item["meta"]["answer"], []) == 1.0
    )
    assert not {x["prompt"] for x in task.train} & {x["prompt"] for x in task.test}


def test_prompts_from_a_format_a_function_and_chat_messages(tmp_path):
    path = write(tmp_path / "a.jsonl", QA)
    assert (
        tasks.from_jsonl(path, prompt="Q: {question} A:", reward=right, test=0).train[3]["prompt"]
        == "Q: What is 3 + 1? A:"
    )
    task = tasks.from_jsonl(
        path,
        prompt=lambda r: [{"role": "user", "content": r["question"]}],
        answer="answer",
        reward=right,
        test=0,
    )
    assert (
        task.train[3]["prompt"] == [{"role": "user", "content": "What is 3 + 1?"}]
        and task.demos[3]["answer"] == "4"
    )


def test_a_growing_file_keeps_its_test_set(tmp_path):
    small = tasks.from_jsonl(write(tmp_path / "a.jsonl", QA[:100]), reward=right)
    large = tasks.from_jsonl(write(tmp_path / "b.jsonl", QA[::-1]), reward=right)
    kept = {x["prompt"] for x in small.test}
    assert kept and kept <= {x["prompt"] for x in large.test}


def test_repeated_prompts_stay_on_one_side_of_the_split(tmp_path):
    task = tasks.from_jsonl(write(tmp_path / "a.jsonl", QA + QA), reward=right)
    assert (
        not {x["prompt"] for x in task.train} & {x["prompt"] for x in task.test}
        and len(task.train) + len(task.test) == 400
    )


def test_overlap_with_a_test_file_is_dropped_and_said(tmp_path):
    train, test = write(tmp_path / "train.jsonl", QA[:10]), write(tmp_path / "test.jsonl", QA[8:12])
    with pytest.warns(
        UserWarning, match="2 of 10 training items have a prompt of the test set; they were dropped"
    ):
        task = tasks.from_jsonl(train, reward=right, test=test)
    assert len(task.train) == 8 and len(task.test) == 4
    with (
        pytest.raises(ValueError, match="every training prompt is also a test prompt"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        tasks.from_jsonl(test, reward=right, test=test)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"question": "a", "answer": "b"}\n{"question": \n',
            r"a\.jsonl:2: not JSON .*one JSON object a line",
        ),
        ('{"question": "a", "answer": "b"}\n\n[1, 2]\n', r"a\.jsonl:3: a JSON list"),
        (
            '{"problem": "a", "gold": "b"}\n',
            r"a\.jsonl:1: no field 'question' for the prompt; "
            r"the fields there are 'problem', 'gold' .*prompt=",
        ),
        ('{"question": 7}\n', r"a\.jsonl:1: the prompt is 7; it must be a text"),
        ("\n\n", r"a\.jsonl is empty"),
        ('{"question": "a"}\n', r"leaves \d to train on and \d to test"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        tasks.from_jsonl(tmp_path / "a.jsonl", reward=right)


def test_other_bad_arguments(tmp_path):
    path = write(tmp_path / "data.jsonl", QA)
    with pytest.raises(
        FileNotFoundError, match=r"no file .*dat\.jsonl; that folder has: data\.jsonl"
    ):
        tasks.from_jsonl(tmp_path / "dat.jsonl", reward=right)
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        tasks.from_jsonl(tmp_path / "no" / "x.jsonl", reward=right)
    with pytest.raises(
        TypeError, match=r"called as reward\(meta, text, ids\), but .*does not take that"
    ):
        tasks.from_jsonl(path, reward=lambda text: 1.0)
    with pytest.raises(TypeError, match="reward must be a function"):
        tasks.from_jsonl(path, reward="exact")
    with pytest.raises(ValueError, match="no field 'gold' for the prompt"):
        tasks.from_jsonl(path, prompt="{question} {gold}", reward=right)
    with pytest.raises(
        ValueError, match=r"test=1.5: give a share of the prompts in \[0, 1\), or a file"
    ):
        tasks.from_jsonl(path, reward=right, test=1.5)


def test_a_task_names_what_its_items_lack():
    with pytest.raises(ValueError, match="task 'x' has no training items"):
        tasks.Task("x", [], [], right)
    with pytest.raises(ValueError, match=r"task 'x', train\[0\] lacks 'meta'; it has 'prompt'"):
        tasks.Task("x", [{"prompt": "a"}], [], right)
    with pytest.raises(TypeError, match=r'train\[0\]\["prompt"\] must be a text or a list of'):
        tasks.Task("x", [{"prompt": [1], "meta": 0}], [], right)


# reasoning-gym


@pytest.fixture(scope="module")
def spelling():
    return tasks.spell_backward()


def test_spelling_is_disjoint_deterministic_and_demonstrated_by_short_words_only(spelling):
    train, test, shown = (
        [x["prompt"] for x in part] for part in (spelling.train, spelling.test, spelling.demos)
    )
    assert (
        len(set(train)) == len(train) >= 10_000
        and len(set(test)) == len(test) == 512
        and not set(train) & set(test)
    )
    assert len(set(shown)) == len(shown) and not set(shown) & set(test)
    assert {len(p) - 1 for p in train + test} == {5, 6, 7, 8} and {len(p) - 1 for p in shown} == {
        3,
        4,
    }
    again = tasks.spell_backward()
    assert (again.train, again.test, again.demos) == (spelling.train, spelling.test, spelling.demos)
    other = tasks.spell_backward(size=500, test_size=100, demo_size=0, seed=1)
    assert (
        other.demos == [] and len({x["prompt"] for x in other.train} & set(train[:500])) < 25
    )  # another seed, other words


def test_spelling_rewards_only_the_whole_word(spelling):
    item = next(x for x in spelling.train if x["prompt"] != x["prompt"][::-1])
    word = item["prompt"].removesuffix(">")
    assert item["answer"] == word[::-1] == word[::-1].lower()
    for text, reward in [
        (word[::-1], 1),
        (word[::-1] + "\n", 1),
        (word, 0),
        (word[::-1] + "a", 0),
        (word[:0:-1], 0),
        ("", 0),
    ]:
        assert spelling.reward(item["meta"], text, []) == reward, text
    everything = [
        spelling.reward(x["meta"], x["answer"], [])
        for x in [*spelling.train[:2000], *spelling.test, *spelling.demos[:500]]
    ]
    assert min(everything) == 1


@pytest.mark.parametrize(
    "family", ["letter_counting", "number_sorting", "base_conversion", "leg_counting"]
)
def test_other_families(family):
    task = tasks.gym(family, 300, 50, demos={"size": 20})
    prompts = [x["prompt"] for x in [*task.train, *task.test]]
    assert len(set(prompts)) == 350 and len(task.demos) == 20
    assert all(task.reward(x["meta"], x["answer"], []) == 1 for x in task.train[:50])
    assert all(task.reward(x["meta"], "nothing", []) == 0 for x in task.train[:50])


def test_what_gym_refuses():
    with pytest.raises(ValueError, match="no family 'spell_backwards'; nearest: spell_backward"):
        tasks.gym("spell_backwards")
    with pytest.raises(TypeError, match="(?s)word_len.*its parameters: min_word_len, max_word_len"):
        tasks.gym("spell_backward", word_len=3)
    with pytest.raises(ValueError, match="refuses .*min_word_len"):
        tasks.gym("spell_backward", min_word_len=5, max_word_len=3)
    with pytest.raises(ValueError, match="gave only 12.. of 2000 distinct problems"):
        tasks.gym(
            "spell_backward",
            2000,
            10,
            min_word_len=3,
            max_word_len=3,
            prompt=lambda e: e["metadata"]["word"].lower(),
        )


# sums


def test_sums_keep_the_same_numbers_on_one_side():
    task = tasks.sums()
    groups = [
        {tuple(sorted(x["meta"]["numbers"])) for x in part} for part in (task.train, task.test)
    ]
    assert not groups[0] & groups[1]
    assert len({tuple(x["meta"]["numbers"]) for x in task.train}) >= 2000 and len(task.test) >= 200
    asked = [x["prompt"][0]["content"] for x in [*task.train, *task.test]]
    assert len(set(asked)) == len(asked)
    sizes = Counter(len(x["meta"]["numbers"]) for x in task.test)
    assert sizes[2] >= 50 and sizes[3] >= 50
    assert (tasks.sums().train, tasks.sums(seed=1).train != task.train) == (task.train, True)


def test_sums_reward_the_right_sum_and_never_the_question():
    task = tasks.sums()
    for item in [*task.train, *task.test]:
        right_sum, asked = sum(item["meta"]["numbers"]), item["prompt"][0]["content"]
        assert item["meta"]["sum"] == right_sum and all(
            str(n) in asked for n in item["meta"]["numbers"]
        )
        assert task.reward(item["meta"], item["answer"], []) == 1
        assert task.reward(item["meta"], f"The answer is {right_sum}.", []) == 1
        assert task.reward(item["meta"], asked, []) == 0
        assert task.reward(item["meta"], f"It is {right_sum + 1}", []) == 0
        assert (
            task.reward(item["meta"], " ".join(map(str, range(60))), []) == 0
        )  # a list of guesses


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("7", 7),
        ("3 + 4 = 7", 7),
        ("The answer is 7.", 7),
        ("It is 3 + 4 = 7.", 7),
        ("The sum of 3 and 4 is 7, since 3 and 4 make 7", 7),
        ("3 plus 4 equals **7**", 7),
        ("= $7$", 7),
        ("3 + 4 + 5 = 7 + 5 = 12", 12),
        ("is 7 - not 8", 7),
        ("= 7 = 8", 7),
        ("5, 6, 7, 8", 8),
        ("3 + 4", 4),
        ("= 7.5", None),
        ("= 71", 71),
        ("= -7", -7),
        ("this7", 7),
        ("", None),
        ("seven", None),
    ],
)
def test_the_number_a_response_commits_to(text, read):
    assert final_integer(text) == read


# GSM8K

ITEMS = [
    {
        "question": "Ann has 3 apples and buys 4. How many?",
        "answer": "She has 3 + 4 = <<3+4=7>>7.\n#### 7",
    },
    {
        "question": "A car costs $1,200 and is $34 dearer now. Price?",
        "answer": "1200 + 34 = $<<1200+34=1234>>1,234\n#### 1,234",
    },
    {"question": "Half of 5 litres?", "answer": "5 / 2 = <<5/2=2.5>>2.5\n#### 2.5"},
    {"question": "From 3 take 8.", "answer": "3 - 8 = -5\n#### -5"},
    {"question": "Ten times 100?", "answer": "10 * 100 = 1000\n#### 1000"},
]


def test_gsm8k_from_a_folder(tmp_path):
    write(tmp_path / "train.jsonl", ITEMS[:3])
    write(tmp_path / "test.jsonl", ITEMS[3:])
    task = tasks.gsm8k(tmp_path)
    assert (len(task.train), len(task.test)) == (3, 2)
    item = task.train[1]
    assert (
        item["meta"]["gold"] == "1,234"
        and "<<" not in item["answer"]
        and item["answer"].endswith("#### 1,234")
    )
    assert item["prompt"][0]["role"] == "user" and item["prompt"][0]["content"].startswith(
        "A car costs"
    )
    assert all(task.reward(x["meta"], x["answer"], []) == 1 for x in [*task.train, *task.test])
    assert [
        task.reward(item["meta"], t, []) for t in ("1234", r"\boxed{1{,}234}", "#### 1235", "")
    ] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match=r"train\.jsonl, item 1: no number after ####"):
        write(tmp_path / "train.jsonl", [{"question": "a", "answer": "b"}])
        tasks.gsm8k(tmp_path)


def test_gsm8k_without_data_says_where_to_get_it(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(
        FileNotFoundError,
        match="(?s)not prepared gsm8k here. Give gsm8k.. the folder that holds train.jsonl",
    ):
        tasks.gsm8k()


def test_gsm8k_as_tensorflow_datasets_prepares_it(tmp_path, monkeypatch):
    """The builder of tensorflow-datasets, with local files instead of a download."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.text.gsm8k import Gsm8k

    lines = [
        {
            "question": f"What is {i} + 1?",
            "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}",
        }
        for i in range(30)
    ]
    parts = {
        "train": lines[:20],
        "test": lines[20:],
        "train_socratic": lines[:20],
        "test_socratic": lines[20:],
    }
    for part, some in parts.items():
        write(tmp_path / f"{part}.jsonl", some)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download_and_extract",
        lambda self, urls: {part: tmp_path / f"{part}.jsonl" for part in urls},
    )
    builder = Gsm8k(data_dir=tmp_path / "prepared", file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    there, here = tasks.gsm8k(), tasks.gsm8k(tmp_path)
    for part in ("train", "test"):
        assert len(getattr(there, part)) == len(parts[part])
        assert sorted(getattr(there, part), key=str) == sorted(getattr(here, part), key=str)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("the answer is 1,234", "1234"),
        ("$1,234.50.", "2469/2"),
        ("#### $70 for 3 days", "70"),
        (r"so \boxed{\frac{1}{2}} of 8", "1/2"),
        (r"first \boxed{3}, then \boxed{4} #### 5", "4"),
        ("3/4", "3/4"),
        ("0.75 cups", "3/4"),
        (r"\boxed{12\%}", "12"),
        ("it is 5-3", "3"),
        ("-5", "-5"),
        ("12.", "12"),
    ],
)
def test_the_number_a_solution_ends_on(text, number):
    assert numeric(number, text)
    assert not numeric("999", text)


def test_no_number_and_a_zero_below_the_line_are_wrong():
    assert (
        final_number("none") is None
        and final_number("1/0") is None
        and final_number("####") is None
        and not numeric("1", "none")
    )


def test_symbolic_reads_latex():
    pytest.importorskip("math_verify")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert symbolic("3/4", r"$\frac{6}{8}$") and not symbolic("3/4", r"$\frac{5}{8}$")


def test_symbolic_gives_up_on_what_it_cannot_decide_and_the_run_goes_on(tmp_path):
    pytest.importorskip("math_verify")
    for part in ("train", "test"):
        write(tmp_path / f"{part}.jsonl", [{"question": f"{part}?", "answer": "#### 1"}])
    task = tasks.gsm8k(tmp_path, verify=symbolic)
    answers = ["$1$", r"$\boxed{9^{9^{9}}}$", "$2/2$"]
    out = tasks.score(task, [{"gold": "1"}] * 3, answers, [[]] * 3, timeout_s=100)
    assert out.ravel().tolist() == [1, 0, 1]


@pytest.mark.slow
@pytest.mark.skipif(
    "JAXCREDIT_DATA" not in os.environ, reason="JAXCREDIT_DATA names no folder of data sets"
)
def test_every_gold_answer_of_gsm8k_scores_one():
    task = tasks.gsm8k(os.path.join(os.environ["JAXCREDIT_DATA"], "gsm8k"))
    items = [*task.train, *task.test]
    assert len(items) == 8792
    assert sum(task.reward(x["meta"], x["answer"], []) for x in items) == 8792
    assert (
        sum(task.reward(x["meta"], f"The answer is {x['meta']['gold']}.", []) for x in items)
        == 8792
    )
    assert (
        sum(
            task.reward(x["meta"], f"#### {final_number(x['meta']['gold']) + 1}", []) for x in items
        )
        == 0
    )


def test_number_sorting_spells_its_lists_and_demonstrates_only_short_ones():
    task = tasks.number_sorting(size=300, test_size=50, demo_size=100)
    assert {len(item["prompt"]) for item in (*task.train, *task.test)} == {7}
    assert {len(item["prompt"]) for item in task.demos} == {4, 5, 6}
    assert not {item["prompt"] for item in task.train} & {item["prompt"] for item in task.test}
    for item in [*task.train[:40], *task.demos[:40]]:
        digits, order = item["prompt"][:-1], item["prompt"][-1]
        assert item["answer"] == "".join(
            sorted(digits, reverse=order == ">")
        )  # by its own rule, not the generator's
    for item in task.test:
        right = "".join(sorted(item["prompt"][:-1], reverse=item["prompt"][-1] == ">"))
        # The last two are in order with a digit that is off by one, which the family's verifier
        # often allows.
        wrong = (
            right[::-1],
            right[:-1],
            right + right[-1],
            "",
            "<" + right[1:],
            right[0] + right[0] + right[2:],
            right[:4] + right[5] * 2,
        )
        assert task.reward(item["meta"], right, ()) == 1.0
        assert [task.reward(item["meta"], text, ()) for text in wrong if text != right] == [
            0.0
        ] * sum(text != right for text in wrong)
