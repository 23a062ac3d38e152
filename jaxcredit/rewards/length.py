"""What an answer's length is worth. The budget itself may shrink: `signals.schedules.length_budget`."""


def near_budget(length: float, budget: float, *, most: float = 1.0) -> float:
    """A tent: length / budget up to the budget, back to 0 at twice that, and 0 beyond. arXiv 2508.08940."""
    return most * max(0.0, 1 - abs(length / budget - 1))


def train_long_think_short(
    correct: float,
    formed: float,
    length: float,
    budget: float,
    *,
    weights: tuple[float, float, float] = (0.3, 0.6, 0.1),
) -> float:
    """w_c correct + w_l near_budget + w_f formed, with a budget that shrinks as training goes on. arXiv 2508.08940.

    Weights are of correctness, length and format; the paper also has (0.6, 0.3, 0.1).
    """
    c, l, f = weights  # noqa: E741
    return c * correct + l * near_budget(length, budget) + f * formed


def overlong(length: float, longest: float, *, cushion: float) -> float:
    """0 up to longest - cushion, then a line down to -1 at `longest`, -1 beyond. DAPO's soft overlong punishment, arXiv 2503.14476."""
    return -min(1.0, max(0.0, (length - (longest - cushion)) / cushion))
