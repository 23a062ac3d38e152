"""Valid rollouts with extreme contents: huge, tiny and canceling rewards, labels of any int32,
token holes, silent and scattered segments.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxcredit.credit.laws import synthetic
from jaxcredit.rollout import Rollout

# Signals whose numbers are labels: only their equality matters.
LABELS = ("state", "subgoal", "stratum", "turn_parent", "macro", "agent")
LABEL_VALUES = np.array(
    [-(2**31), 1 - 2**31, -(2**24) - 1, -1, 0, 1, 2**24, 2**24 + 1, 2**31 - 2, 2**31 - 1]
)
# Signals in the unit of the rewards.
IN_REWARD_UNITS = ("components", "score", "utility", "greedy_reward", "counterfactual")
SHAPE = {"R": 10, "G": 8, "K": 4, "T": 22}
PLAIN, SCALED, CANCELING, EQUAL, MIXED, DENORMAL = range(6)


def extreme_rollout(seed: int, needs, N: int, *, together: bool = False) -> Rollout:
    """N groups of 8 trajectories in 10 rows, each group with its own kind and size of rewards.

    `together`: one kind and size for all groups, for estimators with statistics of the whole batch.
    """
    rng, base = np.random.default_rng(seed), synthetic(seed, needs, N=N, **SHAPE)
    real, row = np.asarray(base.segment_mask), np.asarray(base.row)
    count = 1 if together else N
    kind = np.broadcast_to(rng.integers(0, 6, (count, 1, 1)), (N, 1, 1))
    size = np.broadcast_to(10.0 ** rng.uniform(-44, 28, (count, 1, 1)), (N, 1, 1))
    normal = rng.normal(size=real.shape)
    by_kind = {
        PLAIN: np.asarray(base.reward),
        SCALED: normal * size,
        CANCELING: equal_returns(rng, real, 0, np.clip(size, 1e-3, 1e20)),
        EQUAL: equal_returns(rng, real, 1, np.clip(size, 1e-3, 1e20)),
        MIXED: normal * 10.0 ** rng.uniform(-44, 28, real.shape),
        DENORMAL: normal * 1e-42,
    }
    reward = np.select([kind == k for k in by_kind], list(by_kind.values()))
    mask, segment, valid = (np.array(x) for x in (base.action_mask, base.segment, base.token_mask))
    parts = np.take_along_axis(real.sum(-1), row, 1)[..., None]
    scattered = rng.random((N, 1, 1)) < 0.3
    segment = np.where(
        scattered & (segment >= 0),
        rng.integers(0, 1 << 30, segment.shape) % np.maximum(parts, 1),
        segment,
    )
    silent = rng.integers(0, SHAPE["K"], (N, 1, 1))  # the segment without tokens of the policy
    mask &= (rng.random((N, 1, 1)) < 0.7) | (segment != silent)
    valid &= mask | (rng.random((N, 1, 1)) < 0.7) | (rng.random(valid.shape) < 0.8)
    rollout = dataclasses.replace(
        base,
        reward=jnp.asarray(np.where(real, reward, np.inf), jnp.float32),
        **{
            name: jnp.asarray(x)
            for name, x in {
                "action_mask": mask,
                "segment": segment.astype(np.int32),
                "token_mask": valid,
            }.items()
        },
    )
    scale = np.where(kind == PLAIN, 1, size)
    earned = {
        s: base[s] * jnp.asarray(scale.reshape(N, *[1] * (base[s].ndim - 1)), jnp.float32)
        for s in IN_REWARD_UNITS
        if s in base.signals
    }
    return relabeled(rollout.with_signals(**earned), seed)


def equal_returns(rng, real, total: float, size):
    """Rewards that sum to `total` times `size` in every trajectory, in random order."""
    (N, _, K), whole = real.shape, real.all(-1, keepdims=True)
    parts = (
        (np.round(rng.uniform(-9, 9, (N, 1, K)), 1) * size).astype(np.float32).astype(np.float64)
    )
    parts[..., -1:] = total * size - parts[..., :-1].sum(-1, keepdims=True)
    shuffled = np.take_along_axis(
        np.broadcast_to(parts, real.shape), np.argsort(rng.random(real.shape), -1), -1
    )
    last = np.arange(K) == real.sum(-1, keepdims=True) - 1
    return np.where(whole, shuffled, np.where(last, total * size, 0))


def relabeled(rollout: Rollout, seed: int) -> Rollout:
    """The rollout with its labels 0, 1 and 2 replaced by other int32 numbers."""
    names = [
        s
        for s in LABELS
        if s in rollout.signals and not (s == "agent" and "coalition" in rollout.signals)
    ]
    numbers = {
        s: np.random.default_rng([seed, i]).permutation(LABEL_VALUES)[:3]
        for i, s in enumerate(names)
    }

    def renamed(name):
        old = np.asarray(rollout.signals[name])
        return jnp.asarray(
            numbers[name][np.unique(old, return_inverse=True)[1].reshape(old.shape)], jnp.int32
        )

    return rollout.with_signals(**{s: renamed(s) for s in names})


def with_permuted_rewards(rollout: Rollout, seed: int) -> Rollout:
    """The rollout with the rewards of each trajectory permuted among its existing segments."""
    real, reward = np.asarray(rollout.segment_mask), np.asarray(rollout.reward)
    order = np.where(
        real, np.random.default_rng(seed).random(real.shape), 2 + np.arange(real.shape[-1])
    )
    return dataclasses.replace(
        rollout, reward=jnp.asarray(np.take_along_axis(reward, np.argsort(order, -1), -1))
    )
