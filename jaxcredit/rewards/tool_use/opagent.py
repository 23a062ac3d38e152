"""OpAgent, arXiv 2602.13559 and its released code: rewards for actions in a browser.

Rules decide the reward of an action, and a judge that of the outcome.
"""

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
    """Reward of one browser action: 0 if it had an effect, else `penalty`.

    The first rule that applies decides: failed: penalty; URL changed, or click on an interactive
    element: 0; equal screenshots: penalty; else 0 if a vision model sees progress.

    Args:
        failed: the action raised an error.
        url_changed: the URL changed.
        on_element: the click was on an interactive element.
        similarity: similarity of the screenshots before and after, at most 1; None: unknown.
        progress: the vision model's verdict; None counts as no progress.
        penalty: reward of an action without effect.
    """
    if failed:
        return penalty
    if url_changed or on_element:
        return 0.0
    if similarity is not None and similarity >= 1:
        return penalty
    return 0.0 if progress else penalty


def normalized_process(process: Sequence[float]) -> list[float]:
    """Process rewards divided by the largest magnitude of their suffix sums: p_k / (max + 1e-8).

    No suffix of the result sums to more than 1 in magnitude.

    Args:
        process: [K], reward of each step.

    Returns:
        [K] rewards.
    """
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
    """Value of each step: score + weight normalized_process.

        score = f - threshold + answer 1[f >= threshold],   f = min(form, threshold)

    A value includes the outcome, so values must not be summed over steps.

    Args:
        process: [K], reward of each step.
        form: reward of the format.
        answer: reward of the answer, counted only if the format reaches `threshold`.
        threshold: format reward that is required; 1 or 1/2 in the released code.
        weight: weight of the process rewards.

    Returns:
        [K] values.
    """
    f = min(form, threshold)
    score = f - threshold + (answer if f >= threshold else 0.0)
    return [score + weight * p for p in normalized_process(process)]
