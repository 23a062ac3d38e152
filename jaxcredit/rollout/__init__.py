"""The data structure `Rollout`, the axes of its fields, and the table of signals."""

from jaxcredit.rollout.rollout import (
    FilledRollout,
    Rollout,
    outcome,
    return_rounding,
    trajectory_mask,
)
from jaxcredit.rollout.signal_table import AXES, SIGNALS, Signal

__all__ = [
    "AXES",
    "SIGNALS",
    "FilledRollout",
    "Rollout",
    "Signal",
    "outcome",
    "return_rounding",
    "trajectory_mask",
]
