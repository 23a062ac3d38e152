"""The trainer: experiments, compiled programs, the training loop, runs and evaluation."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxcredit.train.experiment import Experiment, Warmup

__all__ = ["Experiment", "Warmup"]


def __getattr__(name: str):
    """Import `Experiment` and `Warmup` at first use: reading a run folder does not need their
    dependencies.
    """
    if name in __all__:
        from jaxcredit.train import experiment

        return getattr(experiment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
