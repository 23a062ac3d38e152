"""Long or short thinking, whichever the prompt needs. Adaptive deep reasoning (arXiv 2505.20101) gives the structure; formulas are ours.

Half of a prompt's answers are forced to think long and half short; `preferences.mode_loss` teaches the choice on the first token.
"""

from collections.abc import Sequence


def preferred_mode(
    correct: Sequence[float], long: Sequence[bool], *, enough: float = 0.5, margin: float = 0.25
) -> int:
    """-1 (short) if the short answers' accuracy is `enough`; else 1 (long) if the long ones' is `margin` higher; else 0.

    0 too where a half is missing.
    """
    longs = [c for c, is_long in zip(correct, long, strict=True) if is_long]
    shorts = [c for c, is_long in zip(correct, long, strict=True) if not is_long]
    if not longs or not shorts:
        return 0
    by_long, by_short = sum(longs) / len(longs), sum(shorts) / len(shorts)
    return -1 if by_short >= enough else int(by_long - by_short >= margin)


def adaptive_thinking(
    correct: Sequence[float],
    long: Sequence[bool],
    *,
    bonus: float = 0.5,
    enough: float = 0.5,
    margin: float = 0.25,
) -> list[float]:
    """Rewards of a group: correctness, and a bonus for right answers of the mode that the group prefers."""
    mode = preferred_mode(correct, long, enough=enough, margin=margin)
    return [
        c + bonus * (c > 0 and mode == (1 if is_long else -1))
        for c, is_long in zip(correct, long, strict=True)
    ]
