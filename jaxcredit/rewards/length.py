"""Rewards for the length of an answer. `signals.schedules.length_budget` has shrinking budgets."""


def near_budget(length: float, budget: float, *, most: float = 1.0) -> float:
    """Triangular reward for a length near a budget: most max(0, 1 - |length / budget - 1|).

    arXiv 2508.08940.

    Args:
        length: tokens of the answer.
        budget: length with the largest reward, above 0. The reward is 0 at 0 and from 2 budget on.
        most: the largest reward.

    Example:
        >>> near_budget(50, 100), near_budget(100, 100), near_budget(300, 100)
        (0.5, 1.0, 0.0)
    """
    return most * max(0.0, 1 - abs(length / budget - 1))


def train_long_think_short(
    correct: float,
    formed: float,
    length: float,
    budget: float,
    *,
    weights: tuple[float, float, float] = (0.3, 0.6, 0.1),
) -> float:
    """Weighted sum of correctness, length and format: w_c correct + w_l near_budget + w_f formed.

    The budget shrinks during training. arXiv 2508.08940.

    Args:
        correct: reward for the right answer, in [0, 1].
        formed: reward for the right format, in [0, 1].
        length: tokens of the answer.
        budget: current budget of tokens, above 0.
        weights: (w_c, w_l, w_f) of correctness, length and format. The paper also has
            (0.6, 0.3, 0.1).
    """
    of_correctness, of_length, of_format = weights
    return of_correctness * correct + of_length * near_budget(length, budget) + of_format * formed


def overlong(length: float, longest: float, *, cushion: float) -> float:
    """Soft overlong punishment of DAPO: from 0 at longest - cushion linearly to -1 at longest.

    arXiv 2503.14476.

    Args:
        length: tokens of the answer.
        longest: length from which on the reward is -1.
        cushion: number of tokens over which the reward falls, above 0.

    Example:
        >>> overlong(950, 1000, cushion=200)
        -0.75
    """
    return -min(1.0, max(0.0, (length - (longest - cushion)) / cushion))
