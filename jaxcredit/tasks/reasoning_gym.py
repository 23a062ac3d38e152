"""Tasks of reasoning-gym: a third party's generators and verifiers."""

import warnings
from collections.abc import Callable
from typing import Any

from jaxcredit.tasks.task import Item, Task

# A family draws item i with Random(seed + i): seeds nearer than the number of draws would share items.
_APART = 10_000_000
Entry = dict[str, Any]


def gym(
    family: str,
    size: int = 10_000,
    test_size: int = 512,
    *,
    seed: int = 0,
    demos: dict[str, Any] | None = None,
    prompt: Callable[[Entry], str] = lambda entry: entry["question"],
    answer: Callable[[Entry], str] = lambda entry: str(entry["answer"]),
    extract: Callable[[str], str] = str.strip,
    exact: bool = False,
    **params: Any,
) -> Task:
    """Distinct problems of a reasoning-gym family, none of the test set trained on or shown; reward 1 where its verifier gives full marks.

    `params` go to the generator. `demos`: parameters that differ for the demonstrations, and their `size`; for example
    `gym("spell_backward", demos={"size": 2000, "max_word_len": 4}, min_word_len=5, max_word_len=8)`. None: no demonstrations.
    `prompt` and `answer` read an entry of the generator; `extract` takes the answer out of a response. `exact`: beside the verifier's full
    marks the response must be the answer letter by letter, since some verifiers forgive (that of number_sorting one off in each number).
    """
    if size < 1 or test_size < 0:
        raise ValueError(
            f"size is {size} and test_size {test_size}: at least one training problem is needed"
        )
    source = _source(family, params)
    test = _draw(family, source(seed * 3 * _APART), test_size, prompt, answer)
    train = _draw(family, source((seed * 3 + 1) * _APART), size, prompt, answer, apart=test)
    shown = []
    if demos:
        demos = dict(demos)
        count = demos.pop("size", 1000)
        shown = _draw(
            family,
            _source(family, {**params, **demos})((seed * 3 + 2) * _APART),
            count,
            prompt,
            answer,
            apart=test,
        )
    verifier = source(seed * 3 * _APART)

    def reward(meta: Entry, text: str, ids=()) -> float:
        return float(
            (not exact or text.strip() == answer(meta))
            and verifier.score_answer(extract(text), meta) == 1
        )

    return Task(family, train, test, reward, shown)


def spell_backward(
    size: int = 20_000,
    test_size: int = 512,
    *,
    lengths: tuple[int, int] = (5, 8),
    demo_lengths: tuple[int, int] = (3, 4),
    demo_size: int = 4_000,
    seed: int = 0,
) -> Task:
    """Spell a lower-cased English word backward: "listen>" -> "netsil". Demonstrations only of words of `demo_lengths`.

    With demonstrations of short words and reinforcement on longer ones, what is learned of the longer ones nobody has shown.
    """
    return gym(
        "spell_backward",
        size,
        test_size,
        seed=seed,
        prompt=lambda entry: entry["metadata"]["word"].lower() + ">",
        answer=lambda entry: entry["answer"].lower(),
        demos={"size": demo_size, "min_word_len": demo_lengths[0], "max_word_len": demo_lengths[1]}
        if demo_size
        else None,
        min_word_len=lengths[0],
        max_word_len=lengths[1],
    )


def number_sorting(
    size: int = 12_000,
    test_size: int = 512,
    *,
    lengths: tuple[int, int] = (6, 6),
    demo_lengths: tuple[int, int] = (3, 5),
    demo_size: int = 5_000,
    seed: int = 0,
) -> Task:
    """Put digits in order, up or down as the last character says: "794402<" -> "024479". Demonstrations only of lists of `demo_lengths`.

    The family's numbers are rounded to 0..9 and written as one character each; its verifier reads the list that the answer spells,
    and no digit may be another.
    """
    shape = {"min_decimals": 0, "max_decimals": 0, "min_value": 0.0, "max_value": 9.0}

    def digits(numbers):
        return "".join(number[0] for number in numbers)

    return gym(
        "number_sorting",
        size,
        test_size,
        seed=seed,
        prompt=lambda e: (
            digits(e["metadata"]["original_numbers"])
            + "<>"[e["metadata"]["direction"] == "descending"]
        ),
        answer=lambda e: digits(e["metadata"]["sorted_numbers"]),
        extract=lambda text: str(list(text)),
        exact=True,
        demos={"size": demo_size, "min_numbers": demo_lengths[0], "max_numbers": demo_lengths[1]}
        if demo_size
        else None,
        min_numbers=lengths[0],
        max_numbers=lengths[1],
        **shape,
    )


def _source(family, params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, at their first import
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    if family not in DATASETS:
        import difflib

        near = difflib.get_close_matches(family, DATASETS, n=3) or sorted(DATASETS)
        raise ValueError(f"reasoning-gym has no family {family!r}; nearest: {', '.join(near[:5])}")

    def make(seed):
        try:
            return reasoning_gym.create_dataset(family, seed=seed, size=_APART, **params)
        except TypeError as error:
            known = ", ".join(DATASETS[family][1].__dataclass_fields__)
            raise TypeError(f"reasoning-gym {family}: {error}; its parameters: {known}") from None
        except AssertionError as error:
            raise ValueError(f"reasoning-gym {family} refuses {params}: {error}") from None

    return make


def _draw(family, source, count, prompt, answer, apart=()) -> list[Item]:
    """The first `count` distinct problems of the source that are not in `apart`; ends where hardly anything new comes."""
    items: list[Item] = []
    seen = {item["prompt"] for item in apart}
    for index in range(_APART):
        if len(items) == count:
            return items
        if index > 20 * len(items) + 10_000:  # far more repeats than news: the family is spent
            break
        entry = source[index]
        text = prompt(entry)
        if text not in seen:
            seen.add(text)
            items.append({"prompt": text, "meta": entry, "answer": answer(entry)})
    raise ValueError(
        f"reasoning-gym {family} gave only {len(items)} of {count} distinct problems in {index} draws with these parameters: "
        "ask for fewer, or widen the parameters"
    )
