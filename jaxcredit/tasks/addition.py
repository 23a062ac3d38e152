"""Task: sums of two or three small numbers in chat prompts, for small chat models."""

import itertools
import random
import re

from jaxcredit.tasks.task import Item, Task

# {sum} is "3 + 4", {list} is "3 and 4" or "3, 4 and 5".
TEMPLATES = (
    "What is {sum}?",
    "Calculate {sum}.",
    "{sum} = ?",
    "Add {list}.",
    "What is the sum of {list}?",
    "Please work out {sum} and give me the result.",
)
_NUMBER = r"(?:(?<![\w)])-)?\d+(?:[.,/]\d+)*"
# An operand of a sum is not its result: "is 3 + 4 = 7" has the value 7, not 3.
_VALUE = re.compile(
    rf"(?:=|\b(?:is|equals?|are)\b)[\s:*$\\()\[\]]*({_NUMBER})(?![\d.,/]*\d|\s*(?:[-+*,]|and\b|plus\b)\s*\d)",
    re.IGNORECASE,
)


def sums(
    *,
    two: int = 20,
    three: int = 13,
    test_share: float = 0.1,
    templates: tuple[str, ...] = TEMPLATES,
    seed: int = 0,
) -> Task:
    """Task of sums in chat prompts, with reward 1 for the right sum and 0 otherwise.

    Every ordered pair of numbers is in every template, every ordered triple in one random template.
    Sums of the same numbers, in any order and wording, are either all in training or all in test.

    Args:
        two: pairs are of numbers from 1 to `two`; 0: no pairs.
        three: triples are of numbers from 1 to `three`; 0: no triples.
        test_share: share of the sets of numbers that is held out, in [0, 1).
        templates: prompts with the fields {sum} ("3 + 4") and {list} ("3 and 4").
        seed: seed of the split, the templates of triples and the order.
    """
    rng = random.Random(seed)
    groups = []
    for largest, count in ((two, 2), (three, 3)):
        if largest:
            numbers = range(1, largest + 1)
            combinations = list(itertools.combinations_with_replacement(numbers, count))
            groups += _split(rng, combinations, test_share)
    train, test = [], []
    for numbers, held_out in groups:
        for ordered in sorted(set(itertools.permutations(numbers))):
            chosen = templates if len(numbers) == 2 else (rng.choice(templates),)
            (test if held_out else train).extend(_item(ordered, text) for text in chosen)
    rng.shuffle(train)
    rng.shuffle(test)
    return Task(
        "sums", train, test, lambda meta, text, ids=(): float(final_integer(text) == meta["sum"])
    )


def final_integer(text: str) -> int | None:
    """Integer that a response gives as its result.

    It is the first number after "=", "is", "are" or "equals" that is not an operand, else the last
    number. A list of guesses therefore earns no more than one guess, and, as no addend is 0,
    repeating the question is never right.

    Returns:
        The integer; None if there is no number or it is not an integer.

    Example:
        >>> final_integer("3 + 4 = 7, not 8")
        7
    """
    match = _VALUE.search(text)
    number = match.group(1) if match else next(iter(re.findall(_NUMBER, text)[::-1]), "")
    return int(number) if re.fullmatch(r"-?\d+", number) else None


def _split(rng, groups: list, share: float) -> list[tuple]:
    """(group, whether it is held out) of every group."""
    held_out = set(rng.sample(range(len(groups)), round(share * len(groups))))
    return [(group, i in held_out) for i, group in enumerate(groups)]


def _item(numbers: tuple[int, ...], template: str) -> Item:
    words = [str(n) for n in numbers]
    listed = f"{', '.join(words[:-1])} and {words[-1]}"
    question = template.format(sum=" + ".join(words), list=listed)
    return {
        "prompt": [{"role": "user", "content": question}],
        "meta": {"numbers": list(numbers), "sum": sum(numbers)},
        "answer": f"{' + '.join(words)} = {sum(numbers)}",
    }
