"""Small rollouts for tests of estimators, and the comparison of an estimator with its reference
loop.
"""

from functools import cache, partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
from reference_loops.prompt import groups

from jaxcredit.credit.laws import synthetic
from jaxcredit.rollout import SIGNALS, Rollout


def jitted(credit):
    """The estimator compiled once for each set of knobs, which is faster than a hundred single
    operations.
    """
    program = cache(lambda knobs: jax.jit(partial(credit, **dict(knobs))))
    return wraps(credit)(lambda rollout, **knobs: program(tuple(knobs.items()))(rollout))


def one_prompt(
    reward, tokens=None, action_mask=None, segment=None, segment_mask=None, row=None, **signals
):
    """A rollout of one prompt from plain lists, without the axis of prompts.

    `reward` is [G] or [G, K]. By default every trajectory has three tokens of its own, all in
    segment 0. A signal may have any name; those of SIGNALS get their dtype.
    """
    reward = np.asarray(reward, np.float32)
    reward = reward[:, None] if reward.ndim == 1 else reward
    G = len(reward)
    tokens = np.asarray(tokens if tokens is not None else [[i, i, i] for i in range(G)], np.int32)
    mask = np.ones(tokens.shape, bool) if action_mask is None else np.asarray(action_mask, bool)
    segment = np.where(mask, 0, -1) if segment is None else np.asarray(segment)
    exists = np.ones(reward.shape, bool) if segment_mask is None else np.asarray(segment_mask, bool)
    fields = {
        "tokens": tokens,
        "action_mask": mask,
        "segment": segment.astype(np.int32),
        "reward": reward,
        "segment_mask": exists,
    }
    fields = {k: jnp.asarray(v)[None] for k, v in fields.items()}
    fields |= {} if row is None else {"row": jnp.asarray(row, jnp.int32)[None]}
    logp = np.asarray(signals.pop("logp", np.zeros(tokens.shape)), np.float32)
    dtypes = {
        k: np.int32 if k in SIGNALS and SIGNALS[k].kind == "i" else np.float32 for k in signals
    }
    return Rollout(
        **fields,
        logp=jnp.asarray(logp)[None],
        signals={k: jnp.asarray(np.asarray(v, dtypes[k]))[None] for k, v in signals.items()},
    )


def random_rollout(seed, needs=(), **kw):
    """A synthetic rollout of 64 prompts whose rewards are not all equal within a prompt."""
    return synthetic(seed, needs, N=64, **{"kinds": (0, 1, 3), **kw})


def columns(credit):
    """The result of an estimator or a loop as a dict of columns."""
    return credit if isinstance(credit, dict) else {"advantage": credit}


def assert_matches_loop(credit, loop, rollout, *, rtol=2e-4, atol=2e-5):
    """Every column of the estimator equals that of its reference loop on every prompt.

    A loop whose name begins with `batch_` gets all prompts at once. `atol` grows with the largest
    reward.
    """
    actual, prompts = columns(jax.jit(lambda r: credit(r))(rollout)), groups(rollout)
    if getattr(loop, "func", loop).__name__.startswith("batch_"):
        expected = columns(loop(prompts))
    else:
        each = [columns(loop(g)) for g in prompts]
        expected = {name: [one[name] for one in each] for name in each[0]}
    assert actual.keys() == expected.keys()
    rewards = np.asarray(rollout.reward)[np.asarray(rollout.segment_mask)]
    atol *= 1 + max(float(np.abs(rewards).max()), 1.0) * 1e-1
    for column in expected:
        pairs = zip(np.asarray(actual[column]), expected[column], strict=True)
        for n, (a, b) in enumerate(pairs):
            np.testing.assert_allclose(
                a, b, rtol=rtol, atol=atol, err_msg=f"{column} of prompt {n}"
            )
