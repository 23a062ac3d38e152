"""Sums of two and three small numbers, asked in words: what a small chat model gets right now and then."""

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
# An operand of a sum that is still being written is not its result: "is 3 + 4 = 7" says 7.
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
    """Chat prompts: every ordered pair of 1..`two` in each template, every ordered triple of 1..`three` in one. Reward 1 for the right sum.

    Sums of the same numbers in any order and wording lie on the same side of the split, so 4 + 3 is no help for a tested 3 + 4.
    """
    rng = random.Random(seed)
    kinds = [(n, k) for n, k in ((two, 2), (three, 3)) if n]
    groups = [
        g
        for n, k in kinds
        for g in _held(
            rng, list(itertools.combinations_with_replacement(range(1, n + 1), k)), test_share
        )
    ]
    train, test = [], []
    for numbers, held_out in groups:
        for ordered in sorted(set(itertools.permutations(numbers))):
            chosen = templates if len(numbers) == 2 else (rng.choice(templates),)
            (test if held_out else train).extend(_item(ordered, t) for t in chosen)
    rng.shuffle(train)
    rng.shuffle(test)
    return Task("sums", train, test, lambda meta, text, ids=(): float(value(text) == meta["sum"]))


def value(text: str) -> int | None:
    """The one integer a response commits to: the first after "=", "is", "are" or "equals" that is no operand; else its last number.

    One number is read, so listing several guesses earns nothing. As no addend is 0, repeating the question is never right.
    """
    found = _VALUE.search(text)
    last = found.group(1) if found else next(iter(re.findall(_NUMBER, text)[::-1]), "")
    return int(last) if re.fullmatch(r"-?\d+", last) else None


def _held(rng, groups, share):
    held_out = set(rng.sample(range(len(groups)), round(share * len(groups))))
    return [(g, i in held_out) for i, g in enumerate(groups)]


def _item(numbers, template) -> Item:
    words = [str(n) for n in numbers]
    asked = template.format(sum=" + ".join(words), list=", ".join(words[:-1]) + " and " + words[-1])
    return {
        "prompt": [{"role": "user", "content": asked}],
        "meta": {"numbers": list(numbers), "sum": sum(numbers)},
        "answer": f"{' + '.join(words)} = {sum(numbers)}",
    }
