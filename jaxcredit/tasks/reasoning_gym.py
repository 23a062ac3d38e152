"""Tasks from reasoning-gym, a library of procedural generators and verifiers."""

import warnings
from collections.abc import Callable
from typing import Any

from jaxcredit.tasks.task import Item, Task

# Distance of the seeds of training, test and demonstrations. A family draws item i with
# Random(seed + i), so seeds that are closer than the number of draws would share items.
_SEED_DISTANCE = 10_000_000
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
    """Task of distinct problems of a reasoning-gym family; reward 1 if its verifier's score is 1.

    Test problems occur neither in training nor in demonstrations. reasoning-gym: arXiv 2505.24760.

    Args:
        family: name of a data set of reasoning-gym, such as "spell_backward".
        size: number of training problems, 1 or more.
        test_size: number of test problems.
        seed: seed of the problems.
        demos: parameters that differ for demonstrations, with their "size" (default 1000); None: no
            demonstrations. `gym("spell_backward", demos={"size": 2000, "max_word_len": 4},
            min_word_len=5, max_word_len=8)` demonstrates short words.
        prompt: prompt of an entry of the generator.
        answer: answer of an entry.
        extract: answer in a response, for the verifier.
        exact: require that the response equals the answer as well. Some verifiers tolerate small
            errors; that of number_sorting allows each number to be off by one.
        **params: parameters of the generator.

    Raises:
        ValueError: the family is unknown, refuses the parameters, or has fewer distinct problems.
        TypeError: the family has no such parameter.
    """
    if size < 1 or test_size < 0:
        raise ValueError(
            f"size is {size} and test_size {test_size}: at least one training problem is needed"
        )
    source = _source(family, params)
    test = _draw(family, source(seed * 3 * _SEED_DISTANCE), test_size, prompt, answer)
    train = _draw(
        family, source((seed * 3 + 1) * _SEED_DISTANCE), size, prompt, answer, exclude=test
    )
    demonstrations = []
    if demos:
        demos = dict(demos)
        count = demos.pop("size", 1000)
        demonstrations = _draw(
            family,
            _source(family, {**params, **demos})((seed * 3 + 2) * _SEED_DISTANCE),
            count,
            prompt,
            answer,
            exclude=test,
        )
    verifier = source(seed * 3 * _SEED_DISTANCE)

    def reward(meta: Entry, text: str, ids=()) -> float:
        if exact and text.strip() != answer(meta):
            return 0.0
        return float(verifier.score_answer(extract(text), meta) == 1)

    return Task(family, train, test, reward, demonstrations)


def spell_backward(
    size: int = 20_000,
    test_size: int = 512,
    *,
    lengths: tuple[int, int] = (5, 8),
    demo_lengths: tuple[int, int] = (3, 4),
    demo_size: int = 4_000,
    seed: int = 0,
) -> Task:
    """Task of spelling a lower-case English word backward: "listen>" has the answer "netsil".

    Demonstrations are of shorter words, so that longer ones must be learned from rewards.

    Args:
        size: number of training problems.
        test_size: number of test problems.
        lengths: least and largest number of letters.
        demo_lengths: the same for demonstrations.
        demo_size: number of demonstrations; 0: none.
        seed: seed of the problems.
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
    """Task of sorting digits: "794402<" has the answer "024479", and ">" asks for descending order.

    The numbers of the reasoning-gym family are rounded to 0..9 and written as one character each.
    Every digit must be right. Demonstrations are of shorter lists.

    Args:
        size: number of training problems.
        test_size: number of test problems.
        lengths: least and largest number of digits.
        demo_lengths: the same for demonstrations.
        demo_size: number of demonstrations; 0: none.
        seed: seed of the problems.
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


def _source(family: str, params: dict[str, Any]) -> Callable[[int], Any]:
    """Function from a seed to reasoning-gym's data set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of reasoning-gym's dependencies at their import
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    if family not in DATASETS:
        import difflib

        similar = difflib.get_close_matches(family, DATASETS, n=3) or sorted(DATASETS)
        raise ValueError(
            f"reasoning-gym has no family {family!r}; nearest: {', '.join(similar[:5])}"
        )

    def make(seed):
        try:
            return reasoning_gym.create_dataset(family, seed=seed, size=_SEED_DISTANCE, **params)
        except TypeError as error:
            known = ", ".join(DATASETS[family][1].__dataclass_fields__)
            raise TypeError(f"reasoning-gym {family}: {error}; its parameters: {known}") from None
        except AssertionError as error:
            raise ValueError(f"reasoning-gym {family} refuses {params}: {error}") from None

    return make


def _draw(family, source, count, prompt, answer, exclude=()) -> list[Item]:
    """First `count` distinct problems of a data set whose prompts are not in `exclude`."""
    items: list[Item] = []
    prompts = {item["prompt"] for item in exclude}
    for index in range(_SEED_DISTANCE):
        if len(items) == count:
            return items
        if index > 20 * len(items) + 10_000:  # nearly all draws repeat earlier ones
            break
        entry = source[index]
        text = prompt(entry)
        if text not in prompts:
            prompts.add(text)
            items.append({"prompt": text, "meta": entry, "answer": answer(entry)})
    raise ValueError(
        f"reasoning-gym {family} gave only {len(items)} of {count} distinct problems in {index} "
        "draws with these parameters: ask for fewer, or widen the parameters"
    )
