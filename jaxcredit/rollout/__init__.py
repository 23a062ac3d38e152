"""The one data structure, `Rollout`, and the table of signals that it may carry."""

from jaxcredit.rollout.rollout import (
    SIGNALS,
    Rollout,
    Signal,
    outcome,
    return_rounding,
    trajectory_mask,
)

__all__ = ["SIGNALS", "Rollout", "Signal", "trajectory_mask", "outcome", "return_rounding"]
