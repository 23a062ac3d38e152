"""Macro actions: numberings of a row's policy tokens in which runs of equal numbers are one action.

They are the signal `macro` of `credit.ma_rlhf` (MA-RLHF, arXiv 2410.02743). The last policy token
of a row is always an action of its own, so that its reward is not averaged over earlier tokens.
Tokens that the policy did not choose have the number -1.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxcredit.kernels import is_last, returns_to_go


def ngram(mask: Bool[Array, "*b T"], n: int = 5) -> Int[Array, "*b T"]:
    """Macro actions of n policy tokens each.

    Args:
        mask: [..., T] tokens that the policy chose.
        n: int >= 1, tokens per action; 1 gives every token an action of its own.

    Returns:
        [..., T] number of each token's action, -1 off the mask.

    >>> ngram(jnp.array([False, True, True, True, True]), 2).tolist()
    [-1, 0, 0, 1, 2]
    """
    return _separate_last((jnp.cumsum(mask, -1, dtype=jnp.int32) - 1) // n, mask)


def randomized(
    mask: Bool[Array, "*b T"],
    lengths: Sequence[int] = (1, 2, 3, 5, 10),
    repeat: int = 50,
    *,
    key: PRNGKeyArray,
) -> Int[Array, "*b T"]:
    """Macro actions of random lengths.

    Args:
        mask: [..., T] tokens that the policy chose.
        lengths: lengths of actions, in tokens.
        repeat: int >= 1, how often each length occurs. All rows use the same random order. The
            tokens that remain after the last of them are one action.
        key: random key.

    Returns:
        [..., T] number of each token's action, -1 off the mask.
    """
    ends = jnp.cumsum(
        jax.random.permutation(key, jnp.repeat(jnp.asarray(lengths, jnp.int32), repeat))
    )
    index = jnp.cumsum(mask, -1, dtype=jnp.int32) - 1
    return _separate_last(jnp.searchsorted(ends, index, side="right").astype(jnp.int32), mask)


def perplexity(ref_logp: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> Int[Array, "*b T"]:
    """Macro actions in which the reference model's perplexity does not rise from token to token.

    Args:
        ref_logp: [..., T] log-probability of each token under the reference model.
        mask: [..., T] tokens that the policy chose.

    Returns:
        [..., T] number of each token's action, -1 off the mask. A new action begins at each token
        that is less probable than the policy token before it.
    """
    latest = jnp.flip(
        returns_to_go(jnp.flip(ref_logp, -1), 0.0, where=jnp.flip(mask, -1)), -1
    )  # of the last policy token up to each column
    previous = jnp.concatenate(
        [jnp.full((*mask.shape[:-1], 1), -jnp.inf, latest.dtype), latest[..., :-1]], -1
    )
    first = mask & (jnp.cumsum(mask, -1) == 1)
    begins = mask & ~first & (ref_logp < previous)
    return _separate_last(jnp.cumsum(begins, -1, dtype=jnp.int32), mask)


def parse(tree, tokens: int, *, cutoff: int = 5) -> np.ndarray:
    """Macro actions from a constituency tree, computed on the host.

    The tree is traversed depth first. A subtree of fewer than `cutoff` tokens is one action. A word
    of one token in no such subtree joins the action before it.

    Args:
        tree: a sequence of trees, or an int, the number of tokens of a word.
        tokens: int >= 0, number of policy tokens of the row.
        cutoff: int >= 1, tokens.

    Returns:
        Int array [tokens], the number of each token's action. If the tree has another number of
        tokens, every token is an action of its own.

    >>> parse([[1, 1], [2, 1, 3]], 8, cutoff=3).tolist()
    [0, 0, 1, 1, 1, 2, 2, 3]
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
    number[-1:] += 1  # the last token is an action of its own
    return number


def _separate_last(number, mask):
    """The numbering with the last policy token as an action of its own, and -1 off the mask."""
    return jnp.where(mask, number + is_last(mask), -1)
