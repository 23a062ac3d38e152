"""Adaptive deep reasoning, arXiv 2505.20101: long or short thinking as the prompt needs it.

Half of a prompt's answers are forced to think long and half to think short.
`losses.preferences.mode_loss` trains the choice, which is the first token. The formulas are our own
design.
"""

from collections.abc import Sequence


def preferred_mode(
    correct: Sequence[float], long: Sequence[bool], *, enough: float = 0.5, margin: float = 0.25
) -> int:
    """Mode that a group prefers: -1 short, 1 long, 0 neither.

    Short if the accuracy of short answers is at least `enough`; else long if that of long answers
    is higher by at least `margin`; else neither. Neither if a mode has no answers.

    Args:
        correct: [G], reward of each answer, in [0, 1].
        long: [G], whether each answer thinks long.
        enough: accuracy of short answers that suffices.
        margin: difference in accuracy that long thinking must gain.
    """
    longs = [c for c, is_long in zip(correct, long, strict=True) if is_long]
    shorts = [c for c, is_long in zip(correct, long, strict=True) if not is_long]
    if not longs or not shorts:
        return 0
    long_accuracy, short_accuracy = sum(longs) / len(longs), sum(shorts) / len(shorts)
    return -1 if short_accuracy >= enough else int(long_accuracy - short_accuracy >= margin)


def adaptive_thinking(
    correct: Sequence[float],
    long: Sequence[bool],
    *,
    bonus: float = 0.5,
    enough: float = 0.5,
    margin: float = 0.25,
) -> list[float]:
    """Rewards of a group: correctness, plus a bonus for right answers in the preferred mode.

    Args:
        correct: [G], reward of each answer, in [0, 1].
        long: [G], whether each answer thinks long.
        bonus: additional reward of a right answer in the mode of `preferred_mode`.
        enough: as for `preferred_mode`.
        margin: as for `preferred_mode`.

    Returns:
        [G] rewards.
    """
    mode = preferred_mode(correct, long, enough=enough, margin=margin)
    return [
        c + bonus * (c > 0 and mode == (1 if is_long else -1))
        for c, is_long in zip(correct, long, strict=True)
    ]
