"""Random rollouts for tests: ragged rows, padding, missing trajectories, ties, shared prefixes."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np

from jaxcredit.rollout.rollout import Rollout
from jaxcredit.rollout.signal_table import SIGNALS

# Lengths of axes that only signals have: components, dimensions, agents, sets of agents, choices.
EXTENTS = {"C": 3, "D": 2, "A": 3, "S": 8, "U": 4}


def synthetic(
    seed: int,
    needs: Iterable[str] = tuple(SIGNALS),
    *,
    N: int = 16,
    R: int = 6,
    T: int = 20,
    K: int = 3,
    G: int | None = None,
    prompt: int = 4,
    dtype: str = "float32",
    kinds: tuple[int, ...] = (0, 1, 2, 3),
) -> Rollout:
    """Random rollout with the irregularities of real ones.

    Prompts are left-padded and equal within a group. Responses have 0 to T - prompt tokens from a
    small vocabulary, so that prefixes are shared, with gaps written by tools and up to K segments.
    A group may have one existing trajectory, or none. Padding holds junk. With G < R, each row
    beyond the G-th continues a random trajectory.

    Args:
        seed: seed of the generator.
        needs: names of the signals to draw, from `SIGNALS`.
        N: number of prompts.
        R: rows per prompt.
        T: tokens per row.
        K: segments per trajectory.
        G: trajectories per prompt, at most R. None: R.
        prompt: columns of the prompt.
        dtype: dtype of rewards, log-probabilities and float signals.
        kinds: kinds of rewards, one drawn for each prompt: 0 zeros and ones, 1 normal, 2 all equal
            to one number, 3 normal with ties.

    Returns:
        A rollout with all fields written out.
    """
    # numpy, not jax.random: a random program takes longer to compile than all laws take to check.
    rng, G, S = np.random.default_rng(seed), R if G is None else G, T - prompt

    def draw(shape, low, high):
        return rng.integers(low, high, shape)

    def flip(shape, p=0.5):
        return rng.random(shape) < p

    # Number of existing trajectories of each group.
    size = np.where(flip((N, 1), 0.3), draw((N, 1), 0, 2), draw((N, 1), 2, G + 1))
    took_place = np.argsort(rng.random((N, G)), -1) < size
    row = np.sort(
        np.concatenate([np.broadcast_to(np.arange(G), (N, G)), draw((N, R - G), 0, G)], -1), -1
    )

    longest = np.where(flip((N, 1), 0.1), 0, S)
    length = np.minimum(
        np.where(flip((N, R), 0.3), S, draw((N, R), 0, S + 1)), longest
    ) * np.take_along_axis(took_place, row, -1)
    position = np.arange(T) - prompt
    answer = (position >= 0) & (position < length[..., None])
    longest_of_trajectory = np.zeros((N, G), int)
    np.maximum.at(longest_of_trajectory, (np.arange(N)[:, None], row), length)
    parts = np.clip(draw((N, G), 1, K + 1), 1, np.maximum(longest_of_trajectory, 1))
    pieces = np.maximum(length, 1)[..., None]
    segment = np.where(
        answer,
        np.clip(position * np.take_along_axis(parts, row, -1)[..., None] // pieces, 0, K - 1),
        -1,
    )
    hole = np.repeat(flip((N, R, -(-T // 2)), 0.15), 2, -1)[..., :T] & flip((N, 1, 1), 0.7)
    after_left_padding = np.arange(T) >= prompt - draw((N, 1, 1), 0, prompt + 1)
    tokens = np.where(flip((N, 1, 1), 0.2), draw((N, R, T), 0, 1000), draw((N, R, T), 0, 3))
    # Some groups have one answer, cut at different lengths.
    tokens = np.where(flip((N, 1, 1), 0.15), tokens[:, :1], tokens)
    tokens = np.where(position < 0, tokens[:, :1], tokens)

    real = took_place[..., None] & (np.arange(K) < parts[..., None])
    kind = np.asarray(kinds)[draw((N, 1, 1), 0, len(kinds))]
    normal = rng.normal(size=(N, G, K))
    last = np.arange(K) == parts[..., None] - 1
    equal = np.where(last, rng.normal(size=(N, 1, 1)) * 10.0 ** draw((N, 1, 1), -3, 4), 0)
    reward = np.select(
        [kind == 0, kind == 1, kind == 2],
        [(flip((N, G, K)) & last) * 1.0, normal, equal],
        np.round(normal),
    )
    # The first segment in which the policy sampled a token: earlier ones have no reward.
    first = np.full((N, G), K)
    np.minimum.at(first, (np.arange(N)[:, None], row), np.where(answer & ~hole, segment, K).min(-1))
    reward = np.where((np.arange(K) < first[..., None]) & (first[..., None] < K), 0, reward)

    sizes = {"N": N, "R": R, "T": T, "G": G, "K": K, "K+1": K + 1, "M": K * G + 1, **EXTENTS}
    signals = {}
    for name in needs:
        axes, kind_of_numbers, *_ = SIGNALS[name]
        shape = (N, *(sizes[a] for a in axes.split()))
        signals[name] = (
            draw(shape, 0, 3).astype(np.int32)
            if kind_of_numbers == "i"
            else rng.uniform(-1, 1, shape).astype(jnp.dtype(dtype))
        )
    if {"node", "node_parent"} & set(needs):
        signals |= {name: x for name, x in _tree(rng, real, sizes["M"]).items() if name in needs}
    rollout = Rollout(
        tokens=jnp.asarray(tokens, jnp.int32),
        action_mask=jnp.asarray(answer & ~hole),
        logp=jnp.asarray(-rng.exponential(size=(N, R, T)), dtype),
        segment=jnp.asarray(segment, jnp.int32),
        reward=jnp.asarray(np.where(real, reward, 1e3), dtype),
        segment_mask=jnp.asarray(real),
        row=jnp.asarray(row, jnp.int32),
        token_mask=jnp.asarray(answer | (after_left_padding & (position < 0))),
        done=jnp.asarray(flip((N, G), 0.7)),
    )
    return rollout.with_signals(**{name: jnp.asarray(x) for name, x in signals.items()})


def _tree(rng, real, M):
    """Random paths from a root that share prefixes: `node` [N, G, K] and `node_parent` [N, M]."""
    N, G, K = real.shape
    # Entries without a node keep junk.
    node, parent = np.full((N, G, K), M, np.int32), np.full((N, M), 7, np.int32)
    for n in range(N):
        parent[n, 0], count = -1, 1
        for g in range(G):
            current = 0
            for k in range(real[n, g].sum()):
                siblings = np.flatnonzero(parent[n, :count] == current)
                if len(siblings) and rng.random() < 0.6:
                    current = int(rng.choice(siblings))
                else:
                    parent[n, count], current, count = current, count, count + 1
                node[n, g, k] = current
    return {"node": node, "node_parent": parent}
