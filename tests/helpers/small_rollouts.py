"""What tests of estimators share: small rollouts from plain lists, and how a loop over one prompt sees them."""

from functools import cache, partial, wraps

import jax
import jax.numpy as jnp
import numpy as np

from jaxcredit.credit.laws import synthetic
from jaxcredit.rollout import SIGNALS, Rollout


def compiled(credit):
    """A program for each set of knobs: compiling a hundred single operations takes longer."""
    program = cache(lambda knobs: jax.jit(partial(credit, **dict(knobs))))
    return wraps(credit)(lambda rollout, **knobs: program(tuple(knobs.items()))(rollout))


def make(
    reward, tokens=None, action_mask=None, segment=None, segment_mask=None, row=None, **signals
):
    """One prompt from plain lists: reward [G] or [G, K]. A signal may have any name; those of SIGNALS get their dtype."""
    reward = np.asarray(reward, np.float32)
    reward = reward[:, None] if reward.ndim == 1 else reward
    G = len(reward)
    tokens = np.asarray(tokens if tokens is not None else [[i, i, i] for i in range(G)], np.int32)
    mask = np.ones(tokens.shape, bool) if action_mask is None else np.asarray(action_mask, bool)
    segment = np.where(mask, 0, -1) if segment is None else np.asarray(segment)
    real = np.ones(reward.shape, bool) if segment_mask is None else np.asarray(segment_mask, bool)
    fields = {
        "tokens": tokens,
        "action_mask": mask,
        "segment": segment.astype(np.int32),
        "reward": reward,
        "segment_mask": real,
    }
    fields = {k: jnp.asarray(v)[None] for k, v in fields.items()}
    fields |= {} if row is None else {"row": jnp.asarray(row, jnp.int32)[None]}
    logp = np.asarray(signals.pop("logp", np.zeros(tokens.shape)), np.float32)
    kinds = {
        k: np.int32 if k in SIGNALS and SIGNALS[k].kind == "i" else np.float32 for k in signals
    }
    return Rollout(
        **fields,
        logp=jnp.asarray(logp)[None],
        signals={k: jnp.asarray(np.asarray(v, kinds[k]))[None] for k, v in signals.items()},
    )


def near(x, y, tol=2e-5):
    np.testing.assert_allclose(
        np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=tol, atol=tol
    )


def random(n, needs=(), **kw):
    """64 random prompts whose rewards differ."""
    return synthetic(n, needs, N=64, **{"kinds": (0, 1, 3), **kw})


# What a loop is written with. `g` is one prompt as a dict of numpy arrays.


def basics(g):
    G, K = g["reward"].shape
    there = [i for i in range(G) if g["segment_mask"][i].any()]
    R = {i: sum(g["reward"][i, k] for k in range(K) if g["segment_mask"][i, k]) for i in there}
    return there, R


def by_trajectory(g, number):
    A = np.zeros(g["action_mask"].shape)
    for r, i in enumerate(g["row"]):
        for t in range(A.shape[1]):
            if g["action_mask"][r, t] and 0 <= g["segment"][r, t]:
                A[r, t] = number(i, r, t)
    return A


def z(values, own, ddof=0, eps=1e-6):
    values = np.array(values)
    if len(values) - ddof <= 0 or np.all(values == values[0]):
        return 0.0
    return (own - values.mean()) / (values.std(ddof=ddof) + eps)


def tokens(g, i):
    """The policy's tokens of a trajectory, in order: (row, column)."""
    return [
        (r, t)
        for r, j in enumerate(g["row"])
        if j == i
        for t in range(g["action_mask"].shape[1])
        if g["action_mask"][r, t]
    ]


def earned(g, i):
    """The trajectory's tokens, and each one's reward: a segment's on its last token, or on the last before it where it has none."""
    at = tokens(g, i)
    r = np.zeros(len(at))
    for k in range(g["reward"].shape[1]):
        before = [n for n, place in enumerate(at) if 0 <= g["segment"][place] <= k]
        mine = [n for n in before if g["segment"][at[n]] == k] or before
        if mine and g["segment_mask"][i, k]:
            r[mine[-1]] += g["reward"][i, k]
    return at, r


def groups(rollout):
    """The prompts of a rollout as dicts of numpy arrays, floats in float64."""
    f = rollout.filled()
    names = (
        "tokens",
        "action_mask",
        "logp",
        "segment",
        "segment_mask",
        "row",
        "token_mask",
        "done",
        "reward",
    )
    fields = {n: np.asarray(x) for n, x in ({n: getattr(f, n) for n in names} | f.signals).items()}
    fields = {
        n: x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x
        for n, x in fields.items()
    }
    return [{k: v[n] for k, v in fields.items()} for n in range(len(fields["action_mask"]))]


def columns(answer):
    """A credit's answer, or a loop's, as columns."""
    return answer if isinstance(answer, dict) else {"advantage": answer}


def compare(credit, loop, rollout, *, whole_batch=False, rtol=2e-4, atol=2e-5):
    """Every column of the credit, on every prompt, against the loop's."""
    got, prompts = columns(jax.jit(lambda r: credit(r))(rollout)), groups(rollout)
    if whole_batch:
        want = columns(loop(prompts))
    else:
        each = [columns(loop(g)) for g in prompts]
        want = {name: [one[name] for one in each] for name in each[0]}
    assert got.keys() == want.keys()
    scale = (
        1
        + max(
            float(np.abs(np.asarray(rollout.reward)[np.asarray(rollout.segment_mask)]).max()), 1.0
        )
        * 1e-1
    )
    for column in want:
        for n, (a, b) in enumerate(zip(np.asarray(got[column]), want[column], strict=True)):
            np.testing.assert_allclose(
                a, b, rtol=rtol, atol=atol * scale, err_msg=f"{column} of prompt {n}"
            )
