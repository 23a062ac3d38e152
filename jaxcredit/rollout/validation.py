"""Checks of the values of a rollout, on the host in numpy. Each raises a ValueError with the field, the index and the fix."""

import numpy as np

LARGEST_RETURN = 1e30  # largest sum of a trajectory's reward magnitudes, so that sums over a batch do not overflow in float32


def check_rewards(reward, real):
    """Check that rewards are finite and that sums over a batch do not overflow.  reward, real [N, G, K]"""
    bad = np.argwhere(~np.isfinite(reward) & real)
    if len(bad):
        n, g, k = bad[0]
        raise ValueError(
            f"reward[{n}, {g}, {k}] is {reward[n, g, k]}: {len(bad)} rewards are not finite; "
            "fix the reward function, or set segment_mask=False for segments that did not take place"
        )
    total = np.where(real, np.abs(reward), 0).sum(-1)
    if total.size and total.max() > LARGEST_RETURN:
        n, g = np.unravel_index(total.argmax(), total.shape)
        raise ValueError(
            f"the magnitudes of reward[{n}, {g}] add up to {total.max():.3g}, beyond {LARGEST_RETURN:g}: sums over a batch would overflow "
            "in float32; divide all rewards by a constant"
        )


def check_rows(tokens, mask, row, valid, G):
    """Check that rows are contiguous after left padding and that tokens and trajectory numbers are in range.

    Args:
        tokens, mask, valid: [N, R, T].
        row: [N, R] trajectory of each row.
        G: number of trajectories.
    """
    if len(bad := np.argwhere(mask & ~valid)):
        raise ValueError(
            f"mask{bad[0].tolist()} is True where valid is False: a token that the policy chose is not padding"
        )
    starts = valid & ~np.concatenate([np.zeros_like(valid[..., :1]), valid[..., :-1]], -1)
    if len(bad := np.argwhere(starts & (starts.cumsum(-1) > 1))):
        n, r, t = bad[0].tolist()
        raise ValueError(
            f"valid[{n}, {r}] has a hole before column {t}: rows are contiguous behind their left padding (False.. True.. False..), since "
            "the policy counts positions from the first valid column; move the tokens together, and take those that the policy did not "
            "choose out of `mask` instead"
        )
    if len(bad := np.argwhere(valid & (tokens < 0))):
        n, r, t = bad[0].tolist()
        raise ValueError(
            f"tokens[{n}, {r}, {t}] is {tokens[n, r, t]}: tokens on valid columns are not negative; set token_mask=False on padding"
        )
    if len(bad := np.argwhere(((row < 0) | (row >= G)) & mask.any(-1))):
        n, r = bad[0].tolist()
        raise ValueError(
            f"row[{n}, {r}] is {row[n, r]}, but there are {G} trajectories: numbers are 0 to {G - 1}"
        )


def check_segments(segment, K):
    """Check that segment numbers are from -1 to K - 1."""
    if segment.max(initial=-1) >= K or segment.min(initial=-1) < -1:
        raise ValueError(
            f"segment holds {segment.min()}..{segment.max()}, but reward has K = {K} segments: numbers are -1 (none) to {K - 1}"
        )


def check_earned(reward, real, mask, segment, row):
    """Check that no reward precedes the first policy token of its trajectory, since no token could be credited with it."""
    G, K = reward.shape[1:]
    first = np.full(
        (len(reward), G + 1), K
    )  # the first segment in which the trajectory chose a token
    chosen = np.where(mask & (segment >= 0), segment, K).min(-1, initial=K)
    np.minimum.at(first, (np.arange(len(reward))[:, None], np.clip(row, 0, G)), chosen)
    first = first[:, :G, None]
    bad = np.argwhere(real & (reward != 0) & (np.arange(K) < first) & (first < K))
    if len(bad):
        n, g, k = bad[0].tolist()
        raise ValueError(
            f"reward[{n}, {g}, {k}] is {reward[n, g, k]:g}, but the policy chose its first token of that trajectory in segment "
            f"{first[n, g, 0]}: nothing it did came before this reward; give it to that segment or a later one, or make it 0"
        )
