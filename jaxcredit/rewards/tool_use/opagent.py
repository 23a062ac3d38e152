"""OpAgent (arXiv 2602.13559, and its released code): a tree of rules for each action in a browser, and a judge for the outcome."""

from collections.abc import Sequence


def browser_step(
    *,
    failed: bool = False,
    url_changed: bool = False,
    on_element: bool = False,
    similarity: float | None = None,
    progress: bool | None = None,
    penalty: float = -0.001,
) -> float:
    """0 for an action that did something, `penalty` for one that did not: the first rule that applies decides.

    Failed: penalty. The URL changed, or the click was on an interactive element: 0. The picture before and after is the same
    (similarity 1): penalty. Else a vision model says whether it was progress; unasked (None) is no.
    """
    if failed:
        return penalty
    if url_changed or on_element:
        return 0.0
    if similarity is not None and similarity >= 1:
        return penalty
    return 0.0 if progress else penalty


def normalized_process(process: Sequence[float]) -> list[float]:
    """p_k / (max |sum of p from some step on| + 1e-8): no suffix of it sums to more than 1."""
    total, most = 0.0, 0.0
    for p in reversed(process):
        total += p
        most = max(most, abs(total))
    return [p / (most + 1e-8) for p in process]


def opagent(
    process: Sequence[float],
    form: float,
    answer: float,
    *,
    threshold: float = 1.0,
    weight: float = 0.1,
) -> list[float]:
    """Each step's value: score + weight normalised_process.   score = f - threshold (+ answer if f = threshold), f = min(form, threshold)

    The release has thresholds of 1 and 1/2. A step's value is not a reward to be summed: it already holds the outcome.
    """
    f = min(form, threshold)
    score = f - threshold + (answer if f >= threshold else 0.0)
    return [score + weight * p for p in normalized_process(process)]
