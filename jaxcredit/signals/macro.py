"""Where one macro action ends and the next begins: the signal `macro` of `ma_rlhf` (arXiv 2410.02743), for the rows of one prompt or many.

Each function numbers the policy's tokens of a row; neighbours with equal numbers are one macro action. The last token of a row is
always alone, so that the reward it earned is not averaged with tokens that earned nothing. Off the mask the number is -1.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxcredit.kernels import is_last, returns_to_go


def ngram(mask: Bool[Array, "*b T"], n: int = 5) -> Int[Array, "*b T"]:
    """A new macro action every n policy tokens; n=1 is a token each."""
    return _last_alone((jnp.cumsum(mask, -1, dtype=jnp.int32) - 1) // n, mask)


def randomised(
    mask: Bool[Array, "*b T"],
    lengths: Sequence[int] = (1, 2, 3, 5, 10),
    repeat: int = 50,
    *,
    key: PRNGKeyArray,
) -> Int[Array, "*b T"]:
    """Macro actions of the given lengths, each `repeat` times, in one random order; what is left of a row after them is one more."""
    ends = jnp.cumsum(
        jax.random.permutation(key, jnp.repeat(jnp.asarray(lengths, jnp.int32), repeat))
    )
    place = jnp.cumsum(mask, -1, dtype=jnp.int32) - 1
    return _last_alone(jnp.searchsorted(ends, place, side="right").astype(jnp.int32), mask)


def perplexity(ref_logp: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> Int[Array, "*b T"]:
    """A new macro action where the reference model is more surprised than by the token before: within one, perplexity does not rise."""
    before = jnp.flip(
        returns_to_go(jnp.flip(ref_logp, -1), 0.0, where=jnp.flip(mask, -1)), -1
    )  # of the last policy token up to here
    before = jnp.concatenate(
        [jnp.full((*mask.shape[:-1], 1), -jnp.inf, before.dtype), before[..., :-1]], -1
    )
    first = mask & (jnp.cumsum(mask, -1) == 1)
    return _last_alone(jnp.cumsum(mask & ~first & (ref_logp < before), -1, dtype=jnp.int32), mask)


def parse(tree, tokens: int, *, cutoff: int = 5) -> np.ndarray:
    """Macro actions from a constituency tree, on the host: depth first, a subtree of fewer than `cutoff` tokens is one.

    A tree is a sequence of trees, or the number of tokens of a word. A word of one token that no small subtree holds joins the macro
    action before it. If tree and tokenizer disagree about the number of tokens, every token is its own.
    """

    def size(node):
        return node if isinstance(node, int) else sum(size(child) for child in node)

    def walk(node):
        if isinstance(node, int) and node == 1 and lengths:
            lengths[-1] += 1
        elif isinstance(node, int) or size(node) < cutoff:
            lengths.append(size(node))
        else:
            for child in node:
                walk(child)

    if size(tree) != tokens:
        return np.arange(tokens, dtype=np.int32)
    lengths: list[int] = []
    walk(tree)
    number = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    number[-1:] += 1  # the last token alone
    return number


def _last_alone(number, mask):
    return jnp.where(mask, number + is_last(mask), -1)
