"""The interface of an annotator that an experiment builds."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxcredit.rollout import Rollout


class Learned(NamedTuple):
    """A signal with a memory. What it remembers (weights, an optimizer, a table, nothing) is `aux`, a tree of arrays."""

    init: Callable[..., Any]  # (key, policy's params) -> aux
    annotate: Callable[..., Rollout]  # (aux, state, rollout, metas) -> rollout with more signals
    update: Callable[..., tuple[Any, dict]] = lambda aux, state, rollout, columns: (
        aux,
        {},
    )  # -> aux, metrics; before the policy's step
