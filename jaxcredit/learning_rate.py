"""Learning rates that depend on how long a run is."""

import optax


def warmup_cosine(peak: float, steps: int, *, warmup: int, end: float = 0.0) -> optax.Schedule:
    """A rise from 0 to `peak` in `warmup` steps, then half a cosine down to `end` at `steps`. A run that is no longer than its warm-up
    reaches the peak at its last step."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(0, min(warmup, steps - 1)), max(1, steps), end)
