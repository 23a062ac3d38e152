"""The loop: prompts, collect, annotate, credit, update, log. It is told everything and knows nothing."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcredit.kernels import masked_mean
from jaxcredit.rollout import Rollout, diagnostics, outcome, trajectory_mask
from jaxcredit.train.update import TrainState


def train(
    state: TrainState,
    batches: Iterable[Any],
    *,
    collect: Callable,
    annotate: Callable,
    credit: Callable,
    update: Callable,
    log: Callable[[TrainState, Any, dict], bool],
    ahead: Callable[[], bool] = lambda: False,
) -> TrainState:
    """One step a batch until the batches end or `log` asks to stop (it saves, evaluates and draws, and is called after every step).

    `collect(params, key, batch)` sends the sampling to the device and returns a function that waits for the answers and judges them.
    `ahead`, asked before each update: shall the next answers be sampled first? Then they are judged while the device updates, and come
    from parameters one update old.
    """
    batches, learned = iter(batches), int(state.step)

    def begin(step):
        batch = next(batches, None)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), step)
        return None if batch is None else collect(state.params, key, batch)

    waiting = begin(learned)
    while waiting:
        collected = waiting()
        rollout = annotate(state, collected)
        columns = credit(rollout)
        learned += 1
        early = ahead()
        waiting = begin(learned) if early else None
        state, metrics = update(state, rollout, columns)
        if log(state, collected, {**collected.facts, **metrics, **diagnose(rollout, columns)}):
            break
        waiting = waiting if early else begin(learned)
    return state


@jax.jit
def diagnose(rollout: Rollout, columns: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What the rollouts look like to an estimator: rewards, lengths, groups without a signal, shared prefixes, the size of the credit.

    `unscored` answers (the reward returned None) are in none of the means; `groups_unscored` have no scored answer at all, and no weight.
    """
    rollout = rollout.filled()
    R, here, mask = outcome(rollout), trajectory_mask(rollout), rollout.action_mask
    length, wrote = mask.sum(-1, dtype=jnp.float32), mask.any(-1)
    most, least = jnp.where(here, R, -jnp.inf).max(-1), jnp.where(here, R, jnp.inf).min(-1)
    mixed = most > least
    return {
        "reward": masked_mean(R, here),
        "reward_range": jnp.maximum(most.max() - least.min(), 0),
        "unscored": (~here).sum(),
        "groups_unscored": (~here.any(-1)).sum(),
        "length": length.sum() / jnp.maximum(wrote.sum(), 1),
        "truncated": 1 - masked_mean(rollout.done.astype(jnp.float32), here),
        "signal_group_fraction": mixed.mean(),
        "credit_rms": jnp.sqrt(masked_mean(columns["advantage"] ** 2, mask)),
        **diagnostics.live(rollout),
    }
