"""Shared parts of the reference loops.

Every function takes one prompt as `g`: a dict of numpy arrays that holds the fields of
`FilledRollout` and the signals, without the axis of prompts, floats in float64. `groups` makes
these dicts from a rollout.
"""

import numpy as np

FIELDS = "tokens action_mask logp segment segment_mask row token_mask done reward".split()


def groups(rollout):
    """The prompts of a rollout as dicts of numpy arrays, floats in float64."""
    filled = rollout.filled()
    arrays = {name: getattr(filled, name) for name in FIELDS} | filled.signals
    arrays = {name: np.asarray(x) for name, x in arrays.items()}
    arrays = {
        name: x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x
        for name, x in arrays.items()
    }
    prompts = range(len(arrays["action_mask"]))
    return [{name: x[n] for name, x in arrays.items()} for n in prompts]


def trajectory_returns(g):
    """The trajectories with at least one segment, and their returns {trajectory: return}."""
    trajectories = [i for i, mask in enumerate(g["segment_mask"]) if mask.any()]
    return trajectories, {
        i: sum(g["reward"][i, k] for k in segments_of(g, i)) for i in trajectories
    }


def segments_of(g, i):
    """The segments of trajectory i that exist, in order of time."""
    return [k for k in range(g["reward"].shape[1]) if g["segment_mask"][i, k]]


def segments(g):
    """All segments that exist, as pairs (trajectory, segment)."""
    return [(i, k) for i in range(len(g["reward"])) for k in segments_of(g, i)]


def token_positions(g, i):
    """Positions (row, column) of the policy's tokens of trajectory i, in order of time."""
    return [
        (r, t)
        for r, owner in enumerate(g["row"])
        if owner == i
        for t in np.flatnonzero(g["action_mask"][r])
    ]


def token_rewards(g, i):
    """Positions of the policy's tokens of trajectory i, and one reward for each of these tokens.

    The reward of a segment goes to the segment's last token. A segment without tokens pays the last
    token before it.
    """
    positions = token_positions(g, i)
    rewards = np.zeros(len(positions))
    for k in segments_of(g, i):
        before = [n for n, p in enumerate(positions) if 0 <= g["segment"][p] <= k]
        inside = [n for n in before if g["segment"][positions[n]] == k]
        if before:
            rewards[(inside or before)[-1]] += g["reward"][i, k]
    return positions, rewards


def discounted_returns(g, gamma, rewards=None):
    """{(i, k): discounted sum of the rewards from segment k on}; `rewards` {(i, k): reward}
    replaces those of `g`.
    """
    rewards = g["reward"] if rewards is None else rewards
    G = {}
    for i in trajectory_returns(g)[0]:
        following = 0.0
        for k in reversed(segments_of(g, i)):
            following = G[i, k] = rewards[i, k] + gamma * following
    return G


def on_tokens(g, value):
    """`value(i, row, column)` on every token that the policy chose inside a segment of trajectory
    i; 0 on all others.
    """
    A = np.zeros(g["action_mask"].shape)
    for r, t in np.argwhere(g["action_mask"] & (g["segment"] >= 0)):
        A[r, t] = value(g["row"][r], r, t)
    return A


def on_segments(g, values):
    """`values[i, k]` on every token that the policy chose in segment k of trajectory i; 0 where
    there is no value.
    """
    return on_tokens(g, lambda i, r, t: values.get((i, g["segment"][r, t]), 0.0))


def z_score(values, own, ddof=0, eps=1e-6):
    """(own - mean) / (deviation + eps) over `values`; 0 if all values are equal or too few for the
    deviation.
    """
    values = np.array(values)
    if len(values) - ddof <= 0 or np.all(values == values[0]):
        return 0.0
    return (own - values.mean()) / (values.std(ddof=ddof) + eps)


def standardize_batch(values, masks, eps=1e-6):
    """Arrays of all prompts minus the mean and divided by the deviation over all masked entries; 0
    elsewhere.
    """
    chosen = np.concatenate([x[mask] for x, mask in zip(values, masks, strict=True)])
    if len(chosen) == 0 or np.all(chosen == chosen[0]):
        return [np.zeros(x.shape) for x in values]
    return [
        np.where(mask, (x - chosen.mean()) / (chosen.std() + eps), 0)
        for x, mask in zip(values, masks, strict=True)
    ]
