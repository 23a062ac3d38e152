"""Rollouts of one turn: a group of answers is sampled for each prompt, and each is scored once."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcredit.collect.batches import bucketed
from jaxcredit.parallel.processes import local_rows, local_slice, to_global_array
from jaxcredit.rollout import Rollout
from jaxcredit.tasks import Task
from jaxcredit.tasks.answers import decode_and_score


class Collected(NamedTuple):
    """A rollout and the host's data about it. Lists hold the prompts of this process."""

    rollout: Rollout
    metas: list[dict]  # [N]: metadata of each prompt's problem
    texts: list[list[str]]  # [N][R]: decoded answers
    metrics: dict[str, Any]  # number of sampled tokens and durations in seconds


def single_turn(
    sample: Callable,
    tokenizer,
    task: Task,
    *,
    group_size: int,
    buckets: Sequence[int],
    sharding=None,
    timeout_s: float = 10.0,
    workers: int = 1,
) -> Callable[..., Callable[[], Collected]]:
    """Collector of rollouts with one answer (K = 1 segment) and one reward per row.

    The result is `collect(params, key, indices)`. It dispatches the sampling to the device and
    returns a function. Calling that function waits for the answers, scores them and returns a
    `Collected`. An answer that the reward leaves unscored (None) has a false `segment_mask` and an
    empty `action_mask`, so that neither group statistics nor the loss count it.

    Args:
        sample: compiled sampler, `sample(params, prompt, valid, key)`.
        tokenizer: encodes prompts with `chat` and decodes answers.
        task: gives the problems (`task.train`) and the reward.
        group_size: answers per prompt, as `sample` draws them.
        buckets: prompt lengths for which programs are compiled.
        sharding: sharding of arrays [N, ...]; None on one device.
        timeout_s: longest duration of one call of the reward in seconds.
        workers: number of processes that score; 0: this process.
    """

    def collect(params, key, indices) -> Callable[[], Collected]:
        """Dispatch sampling for the prompts of all processes; each process feeds its own share."""
        items = [task.train[int(i)] for i in indices]
        own = local_slice(len(indices))
        # The bucket depends on the longest prompt of all processes, so the global batch is padded
        # before it is cut.
        tokens, valid = bucketed(
            [tokenizer.chat(item["prompt"]) for item in items], buckets, pad=tokenizer.pad_id
        )
        prompt, prompt_valid = (to_global_array(x[own], sharding) for x in (tokens, valid))
        drawn = sample(params, prompt, prompt_valid, key)
        index = to_global_array(np.asarray(indices[own], np.int32), sharding)
        return lambda: finish(params, items[own], prompt, prompt_valid, drawn, index)

    def finish(params, items, prompt, prompt_valid, drawn, index) -> Collected:
        """Wait for the answers, score them and assemble the rollout."""
        start = time.perf_counter()
        # The update that made these parameters ends before their sampling begins, and counts as
        # update time. Deleted parameters were donated to a later update, so their own update has
        # ended.
        jax.block_until_ready(
            [
                x
                for x in jax.tree.leaves(params)
                if not (isinstance(x, jax.Array) and x.is_deleted())
            ]
        )
        updated = time.perf_counter()
        tokens, mask = local_rows(drawn["tokens"]), local_rows(drawn["mask"])
        sampled = time.perf_counter()
        texts, rewards = decode_and_score(
            task, tokenizer, tokens, mask, items, timeout_s=timeout_s, workers=workers
        )
        metrics = {
            "tokens": drawn["mask"].sum(),
            "time/update_s": updated - start,
            "time/sample_s": sampled - updated,
            "time/reward_s": time.perf_counter() - sampled,
        }
        rewards = rewards.reshape(len(items), group_size, 1)
        scored = ~np.isnan(rewards)
        reward = to_global_array(np.where(scored, rewards, 0).astype(np.float32), sharding)
        rollout = assemble(
            prompt,
            prompt_valid,
            drawn,
            reward,
            to_global_array(scored, sharding),
            sharding=sharding,
        ).with_signals(prompt=index)
        return Collected(rollout, [item["meta"] for item in items], texts, metrics)

    return collect


@functools.partial(jax.jit, static_argnames="sharding")
def assemble(prompt, prompt_valid, drawn, reward, scored, sharding=None) -> Rollout:
    """Rollout of prompts [N, P] and sampled answers [N, R, S], as rows of T = P + S tokens.

    Args:
        prompt: token ids, left-padded.
        prompt_valid: true for the prompt's tokens, false for padding.
        drawn: output of the sampler: `tokens`, `logp`, `mask` [N, R, S] and `done` [N, R].
        reward: [N, R, 1].
        scored: [N, R, 1], false for answers without a reward; the policy is not trained on them.
        sharding: sharding of the result along N; None on one device.
    """
    N, R, _ = drawn["tokens"].shape

    def concat_prompt_response(left, right):
        rows = jnp.broadcast_to(left[:, None], (N, R, left.shape[-1]))
        return jnp.concatenate([rows.astype(right.dtype), right], -1)

    no_prompt = jnp.zeros(prompt.shape, bool)
    action_mask = concat_prompt_response(no_prompt, drawn["mask"] & scored)
    rollout = Rollout(
        tokens=concat_prompt_response(prompt, drawn["tokens"]),
        action_mask=action_mask,
        logp=concat_prompt_response(no_prompt, drawn["logp"]),
        segment=jnp.where(action_mask, jnp.int32(0), jnp.int32(-1)),
        reward=reward,
        segment_mask=scored,
        token_mask=concat_prompt_response(prompt_valid, drawn["mask"]),
        done=drawn["done"],
    )
    return rollout if sharding is None else jax.lax.with_sharding_constraint(rollout, sharding)
