"""The trainer: experiments, compiled programs, the training loop, runs and evaluation."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxcredit.train.experiment import Experiment, Warmup

__all__ = ["Experiment", "Warmup"]


def __getattr__(name: str):
    """Lazy import of `Experiment` and `Warmup`, whose dependencies a run folder does not need."""
    if name in __all__:
        from jaxcredit.train import experiment

        return getattr(experiment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
