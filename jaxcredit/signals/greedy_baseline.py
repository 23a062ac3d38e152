"""Greedy-decoding baseline of ReMax: the reward of the policy's greedy answer to each prompt."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from jaxcredit.kernels import masked_mean
from jaxcredit.parallel.processes import local_rows, to_global_array
from jaxcredit.policy import sampler
from jaxcredit.rollout import Rollout, outcome, trajectory_mask
from jaxcredit.signals.base import Learned
from jaxcredit.tasks import Task
from jaxcredit.tasks.answers import decode_and_score


def greedy(
    task: Task, tokenizer, *, max_new_tokens: int, timeout_s: float = 10.0, workers: int = 1
) -> Callable:
    """Annotator of `greedy_reward` [N], the reward of the policy's greedy answer to each prompt.

    This is the baseline of ReMax (arXiv 2310.10505). It costs one more sampled answer per prompt.
    If the reward leaves the greedy answer unscored (None), the mean over the scored answers of the
    group takes its place.

    Args:
        task: the experiment's task.
        tokenizer: the experiment's tokenizer.
        max_new_tokens: longest answer in tokens, as in the experiment.
        timeout_s: longest duration of one call of the reward in seconds.
        workers: number of processes that score; 0: this process. See `tasks.score`.
    """

    def make(cfg, logprob) -> Learned:
        draw = jax.jit(
            functools.partial(
                sampler.sample,
                cfg=cfg,
                rows=1,
                max_new_tokens=max_new_tokens,
                stop=tuple(tokenizer.stop_ids),
                temperature=0.0,
            )
        )

        @jax.jit
        def prompts_of(rollout: Rollout):
            P, token_mask = rollout.tokens.shape[-1] - max_new_tokens, rollout.filled().token_mask
            return rollout.tokens[:, 0, :P], token_mask[:, 0, :P]

        def annotate(aux, state, rollout, metas) -> Rollout:
            # Greedy decoding does not use its random key.
            drawn = draw(state.params, *prompts_of(rollout), jax.random.key(0))
            prompts = (task.train[int(i)]["prompt"] for i in local_rows(rollout["prompt"]))
            rewards = decode_and_score(
                task,
                tokenizer,
                local_rows(drawn["tokens"]),
                local_rows(drawn["mask"]),
                [
                    {"prompt": prompt, "meta": meta}
                    for prompt, meta in zip(prompts, metas, strict=True)
                ],
                timeout_s=timeout_s,
                workers=workers,
            ).rewards[:, 0]
            group_mean = local_rows(masked_mean(outcome(rollout), trajectory_mask(rollout), -1))
            rewards = np.where(np.isnan(rewards), group_mean, rewards).astype(np.float32)
            sharding = rollout.reward.sharding
            return rollout.with_signals(
                greedy_reward=to_global_array(
                    rewards, sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
                )
            )

        return Learned(init=lambda key, params: {}, annotate=annotate)

    make.provides = ("greedy_reward",)
    return make
