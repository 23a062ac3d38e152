"""The one data structure, `Rollout`, and the table of signals that it may carry."""

from jaxcredit.rollout.rollout import (
    SIGNALS,
    Rollout,
    Signal,
    alive,
    outcome,
    slack,
)

__all__ = ["SIGNALS", "Rollout", "Signal", "alive", "outcome", "slack"]
