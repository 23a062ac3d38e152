"""Small rollouts of several turns, and assertions about credit on their tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from comparisons import assert_close
from small_rollouts import one_prompt, random_rollout

from jaxcredit import losses
from jaxcredit.rollout import SIGNALS, Rollout

JUNK, G, K, T = 9, 6, 4, 20
random_turns = partial(random_rollout, K=K)


def play(reward, *, per=1, done=True, **signals):
    """A rollout whose first prompt has these rewards, one per turn, and `per` tokens a turn.

    It has the shape of `random_turns`, so that both share compiled programs. Junk off the masks.
    """
    real = np.zeros((G, K), bool)
    for i, r in enumerate(reward):
        real[i, : len(r)] = True
    sizes = {"G": G, "R": G, "K": K, "K+1": K + 1, "T": T}

    def pad(x, axes):
        width = [*np.shape(x[0])[1:]] if len(axes) > 1 else []
        out = np.full(
            [
                sizes.get(a, n)
                for a, n in zip(axes, [G, len(x[0]) if len(axes) > 1 else 0, *width], strict=False)
            ],
            float(JUNK),
        )
        for i, one in enumerate(x):
            out[(i, slice(len(one))) if len(axes) > 1 else i] = one
        return out

    mask = np.pad(np.repeat(real, per, 1), ((0, 0), (0, T - K * per)))
    segment = np.where(mask, np.arange(T) // per, -1)
    signals = {
        name: pad(x, ["R", "T"] if name == "logp" else SIGNALS[name].axes.split())
        for name, x in signals.items()
    }
    rollout = one_prompt(
        pad(reward, ["G", "K"]),
        np.zeros((G, T)),
        action_mask=mask,
        segment=segment,
        segment_mask=real,
        **signals,
    ).filled()
    rollout = Rollout(**{**vars(rollout), "done": jnp.full((1, G), done)})
    return jax.tree.map(lambda x: jnp.repeat(x, 64, 0), rollout)


def shown(answer, reward, per=1):
    """Credit on the policy's tokens of each trajectory."""
    A = np.asarray(answer["advantage"] if isinstance(answer, dict) else answer)[0]
    return [a[: len(r) * per].tolist() for a, r in zip(A, reward, strict=False)]


def flat(x):
    """Ragged lists as one array."""
    return np.concatenate([np.asarray(row, np.float64).reshape(-1) for row in x])


def assert_credit(answer, reward, expected, tol=1e-4, per=1):
    """The policy's tokens of each trajectory have the expected credit."""
    assert_close(flat(shown(answer, reward, per)), flat(expected), tol)


def loss_batch(logp, old, advantage, segment, mask=None, clip=None):
    ones = jnp.ones(np.shape(logp))
    as_f = partial(jnp.asarray, dtype=jnp.float32)
    mask = ones > 0 if mask is None else jnp.asarray(mask)
    clip = ones if clip is None else as_f(clip)
    return losses.Batch(
        action_mask=mask,
        logp=as_f(old),
        advantage=as_f(advantage),
        weight=ones,
        clip=clip,
        segment=jnp.asarray(segment, jnp.int32),
    )
