"""Tasks whose credit is known exactly, to see what an estimator gets right and where it loses."""

from jaxcredit.arena import keybranch

__all__ = ["keybranch"]
