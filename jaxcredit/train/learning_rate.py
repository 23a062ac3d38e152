"""Learning-rate schedules that depend on the length of a run."""

import optax


def warmup_cosine(peak: float, steps: int, *, warmup: int, end: float = 0.0) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then cosine decay to `end`.

    Args:
        peak: the largest learning rate.
        steps: length of the run, at which `end` is reached.
        warmup: steps of the warm-up, at most `steps` - 1, so that a run shorter than its warm-up
            still reaches the peak.
        end: the final learning rate.
    """
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, max(0, min(warmup, steps - 1)), max(1, steps), end
    )
