"""Checks of a rollout's values, on the host in numpy.

Each raises a ValueError with the field, the index and the fix.
"""

import numpy as np

# Largest sum of a trajectory's reward magnitudes: sums over a batch then fit in float32.
LARGEST_RETURN = 1e30


def check_rewards(reward, segment_mask):
    """Check that rewards are finite and that their sums over a batch do not overflow in float32.

    Args:
        reward: [N, G, K] rewards.
        segment_mask: [N, G, K] segments that took place.
    """
    bad = np.argwhere(~np.isfinite(reward) & segment_mask)
    if len(bad):
        n, g, k = bad[0]
        raise ValueError(
            f"reward[{n}, {g}, {k}] is {reward[n, g, k]}: {len(bad)} rewards are not finite; "
            "fix the reward function, or set segment_mask=False on segments that did not happen"
        )
    total = np.where(segment_mask, np.abs(reward), 0).sum(-1)
    if total.size and total.max() > LARGEST_RETURN:
        n, g = np.unravel_index(total.argmax(), total.shape)
        raise ValueError(
            f"the magnitudes of reward[{n}, {g}] add up to {total.max():.3g}, beyond "
            f"{LARGEST_RETURN:g}: sums over a batch would overflow in float32; divide all rewards "
            "by a constant"
        )


def check_rows(tokens, action_mask, row, token_mask, G):
    """Check that rows are contiguous after left padding, and that token and row numbers are valid.

    Args:
        tokens: [N, R, T] token ids.
        action_mask: [N, R, T] tokens that the policy sampled.
        row: [N, R] trajectory of each row.
        token_mask: [N, R, T] tokens that are not padding.
        G: number of trajectories.
    """
    if len(bad := np.argwhere(action_mask & ~token_mask)):
        raise ValueError(
            f"action_mask{bad[0].tolist()} is True where token_mask is False: "
            "a token that the policy sampled is not padding"
        )
    starts = token_mask & ~np.concatenate(
        [np.zeros_like(token_mask[..., :1]), token_mask[..., :-1]], -1
    )
    if len(bad := np.argwhere(starts & (starts.cumsum(-1) > 1))):
        n, r, t = bad[0].tolist()
        raise ValueError(
            f"token_mask[{n}, {r}] has a hole before column {t}: rows are contiguous after left "
            "padding (False.. True.. False..), since the policy counts positions from the first "
            "True column; move the tokens together, and set action_mask=False on those that the "
            "policy did not sample"
        )
    if len(bad := np.argwhere(token_mask & (tokens < 0))):
        n, r, t = bad[0].tolist()
        raise ValueError(
            f"tokens[{n}, {r}, {t}] is {tokens[n, r, t]}: token ids are not negative; set "
            "token_mask=False on padding"
        )
    if len(bad := np.argwhere(((row < 0) | (row >= G)) & action_mask.any(-1))):
        n, r = bad[0].tolist()
        raise ValueError(
            f"row[{n}, {r}] is {row[n, r]}, but there are {G} trajectories: "
            f"numbers are 0 to {G - 1}"
        )


def check_segments(segment, K):
    """Check that segment numbers are from -1 to K - 1.

    Args:
        segment: [N, R, T] segment of each token.
        K: number of segments.
    """
    if segment.max(initial=-1) >= K or segment.min(initial=-1) < -1:
        raise ValueError(
            f"segment holds {segment.min()}..{segment.max()}, but reward has K = {K} segments: "
            f"numbers are -1 (none) to {K - 1}"
        )


def check_earned(reward, segment_mask, action_mask, segment, row):
    """Check that no reward precedes the first token that the policy sampled in its trajectory.

    No token could be credited with such a reward.

    Args:
        reward: [N, G, K] rewards.
        segment_mask: [N, G, K] segments that took place.
        action_mask: [N, R, T] tokens that the policy sampled.
        segment: [N, R, T] segment of each token.
        row: [N, R] trajectory of each row.
    """
    G, K = reward.shape[1:]
    # The first segment in which the policy sampled a token of the trajectory.
    first = np.full((len(reward), G + 1), K)
    chosen = np.where(action_mask & (segment >= 0), segment, K).min(-1, initial=K)
    np.minimum.at(first, (np.arange(len(reward))[:, None], np.clip(row, 0, G)), chosen)
    first = first[:, :G, None]
    bad = np.argwhere(segment_mask & (reward != 0) & (np.arange(K) < first) & (first < K))
    if len(bad):
        n, g, k = bad[0].tolist()
        raise ValueError(
            f"reward[{n}, {g}, {k}] is {reward[n, g, k]:g}, but the policy sampled its first token "
            f"of that trajectory in segment {first[n, g, 0]}, after this reward; give the reward "
            "to that segment or a later one, or make it 0"
        )
