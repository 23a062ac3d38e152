"""Batches of prompts: a resumable stream of prompt indices, and padding of prompts to buckets."""

from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Bool, Int


class Batches:
    """Endless iterator over batches of prompt indices, int64 [batch].

    Every epoch is a new permutation of range(size).

    Batch k is a function of (size, batch, seed, k), so all processes get the same batches and the
    state is k. Epochs are concatenated: if `batch` does not divide `size`, one batch holds the last
    prompts of an epoch and the first of the next, and no prompt is left out.

    Args:
        size: number of prompts.
        batch: prompts per batch, in 1..size.
        seed: seed of the permutations.
    """

    def __init__(self, size: int, batch: int, seed: int = 0):
        if not 0 < batch <= size:
            raise ValueError(
                f"a batch of {batch} prompts out of {size}: take a batch between 1 and the number "
                "of prompts"
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
        """Number of epochs that the batches so far cover; not an integer within an epoch."""
        return self.next * self.batch / self.size

    def get_state(self) -> dict[str, int]:
        """State for a checkpoint, as JSON."""
        return {"next": self.next, "size": self.size, "batch": self.batch, "seed": self.seed}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue from a state of `get_state`.

        Raises:
            ValueError: size, batch or seed differ, which would make it another stream.
        """
        for name in ("size", "batch", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the checkpoint's prompt stream has {name} = {state[name]}, this run has "
                    f"{getattr(self, name)}: resume with the same "
                    f"{name}, or start a new run folder"
                )
        self.next = state["next"]


def bucketed(
    prompts: Sequence[Sequence[int]], buckets: Sequence[int], *, pad: int = 0
) -> tuple[Int[np.ndarray, "N P"], Bool[np.ndarray, "N P"]]:
    """Prompts left-padded to the smallest bucket that holds them all, and the mask of their tokens.

    With several processes, pass the global batch and cut `local_slice` afterwards: all processes
    must agree on the bucket.

    Args:
        prompts: N lists of token ids, none empty.
        buckets: lengths to choose from, in any order.
        pad: token id of the padding.

    Raises:
        ValueError: a prompt is empty, or longer than every bucket.
    """
    lengths = [len(p) for p in prompts]
    longest = int(np.argmax(lengths))
    if min(lengths) == 0:
        raise ValueError(
            f"prompt {lengths.index(0)} of the batch is empty: a prompt needs at least one token "
            "to condition on"
        )
    fitting = [b for b in buckets if b >= lengths[longest]]
    if not fitting:
        raise ValueError(
            f"prompt {longest} of the batch has {lengths[longest]} tokens, the largest prompt "
            f"bucket holds {max(buckets)}: "
            f"add a bucket of at least {lengths[longest]}, or shorten or drop that prompt"
        )
    width = min(fitting)
    tokens = np.full((len(prompts), width), pad, np.int32)
    valid = np.arange(width) >= width - np.asarray(lengths)[:, None]
    tokens[valid] = np.concatenate([np.asarray(p, np.int32) for p in prompts])
    return tokens, valid
