"""What the policy's greedy answer to each prompt earns: the baseline of ReMax, at the cost of one more answer a prompt."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from jaxcredit.kernels import masked_mean
from jaxcredit.parallel.processes import local_rows, to_global_array
from jaxcredit.policy import sampler as decode
from jaxcredit.rollout import Rollout, outcome, trajectory_mask
from jaxcredit.signals.base import Learned
from jaxcredit.tasks import Task, score


def greedy(
    task: Task, tokenizer, *, max_new_tokens: int, timeout_s: float = 10.0, workers: int = 1
) -> Callable:
    """`greedy_reward`: the task's reward for the policy's greedy answer of at most `new` tokens, as the experiment has it.

    Where the reward leaves the greedy answer unscored (None), the mean of the group's scored answers takes its place. `timeout_s` and
    `workers` are those of `tasks.score`.
    """

    def make(cfg, logprob) -> Learned:
        draw = jax.jit(
            functools.partial(
                decode.sample,
                cfg=cfg,
                rows=1,
                max_new_tokens=max_new_tokens,
                stop=tuple(tokenizer.stop_ids),
                temperature=0.0,
            )
        )

        @jax.jit
        def asked(rollout: Rollout):
            P, valid = rollout.tokens.shape[-1] - max_new_tokens, rollout.filled().token_mask
            return rollout.tokens[:, 0, :P], valid[:, 0, :P]

        def annotate(aux, state, rollout, metas) -> Rollout:
            drawn = draw(
                state.params, *asked(rollout), jax.random.key(0)
            )  # greedy: the key decides nothing
            ids = [
                row[kept].tolist()
                for row, kept in zip(
                    local_rows(drawn["tokens"])[:, 0], local_rows(drawn["mask"])[:, 0], strict=True
                )
            ]
            texts = [tokenizer.decode(answer) for answer in ids]
            prompts = (
                [task.train[int(i)]["prompt"] for i in local_rows(rollout["prompt"])]
                if "prompt" in rollout.signals
                else None
            )
            earned = score(
                task, metas, texts, ids, prompts=prompts, timeout_s=timeout_s, workers=workers
            ).sum(-1)
            earned = np.where(
                np.isnan(earned),
                local_rows(masked_mean(outcome(rollout), trajectory_mask(rollout), -1)),
                earned,
            )
            lies = rollout.reward.sharding
            where = lies if isinstance(lies, jax.sharding.NamedSharding) else None
            return rollout.with_signals(
                greedy_reward=to_global_array(earned.astype(np.float32), where)
            )

        return Learned(init=lambda key, params: {}, annotate=annotate)

    make.provides = ("greedy_reward",)
    return make
