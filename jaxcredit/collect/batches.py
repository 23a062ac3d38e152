"""Which prompts come next: an endless, seeded stream of indices that resumes exactly, and prompts laid into buckets of fixed length."""

from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Bool, Int


class Batches:
    """Endless batches of prompt indices [N]; every epoch is a new permutation of range(size), and every process sees the same order.

    Batch k is a pure function of (size, batch, seed, k), so the whole state is k. Epochs are not cut at their ends: where `batch`
    does not divide `size`, a batch holds the last prompts of one epoch and the first of the next, and no prompt is left out.
    """

    def __init__(self, size: int, batch: int, seed: int = 0):
        if not 0 < batch <= size:
            raise ValueError(
                f"a batch of {batch} prompts out of {size}: take a batch between 1 and the number of prompts"
            )
        self.size, self.batch, self.seed, self.next = size, batch, seed, 0
        self._stream = grain.MapDataset.range(size).seed(seed).shuffle().repeat().batch(batch)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Int[np.ndarray, " N"]:
        indices = self._stream[self.next]
        self.next += 1
        return np.asarray(indices, np.int64)

    @property
    def epoch(self) -> float:
        """How often the stream has gone through the prompts."""
        return self.next * self.batch / self.size

    def get_state(self) -> dict[str, int]:
        """JSON for the checkpoint."""
        return {"next": self.next, "size": self.size, "batch": self.batch, "seed": self.seed}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on where `get_state` was called. Another size, batch or seed would be another stream, so it is refused."""
        for name in ("size", "batch", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the checkpoint's prompt stream has {name} = {state[name]}, this run has {getattr(self, name)}: resume with the same "
                    f"{name}, or start a new run folder"
                )
        self.next = state["next"]


def bucketed(
    prompts: Sequence[Sequence[int]], buckets: Sequence[int], *, pad: int = 0
) -> tuple[Int[np.ndarray, "N P"], Bool[np.ndarray, "N P"]]:
    """Token lists, left-padded into the smallest bucket that holds the longest of them; and where the real tokens are.

    Give it the global batch and cut `local_slice` afterwards: all processes must agree on the bucket.
    """
    lengths = [len(p) for p in prompts]
    longest = int(np.argmax(lengths))
    if min(lengths) == 0:
        raise ValueError(
            f"prompt {lengths.index(0)} of the batch is empty: a prompt needs at least one token to condition on"
        )
    fitting = [b for b in buckets if b >= lengths[longest]]
    if not fitting:
        raise ValueError(
            f"prompt {longest} of the batch has {lengths[longest]} tokens, the largest prompt bucket holds {max(buckets)}: "
            f"add a bucket of at least {lengths[longest]}, or shorten or drop that prompt"
        )
    width = min(fitting)
    tokens = np.full((len(prompts), width), pad, np.int32)
    valid = np.arange(width) >= width - np.asarray(lengths)[:, None]
    tokens[valid] = np.concatenate([np.asarray(p, np.int32) for p in prompts])
    return tokens, valid
