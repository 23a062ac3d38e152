"""Fresh rollouts of a run: sampled from one of its checkpoints, judged by its task, annotated, with its trainer's log-probabilities."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcredit.collect.batches import Batches
from jaxcredit.collect.single_turn import single_turn
from jaxcredit.rollout import Rollout
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.programs import Programs, steps_of
from jaxcredit.train.runs.checkpoint import Checkpoints
from jaxcredit.train.runs.folder import open_run_folder
from jaxcredit.train.update import TrainState


class CheckpointRollouts(NamedTuple):
    rollout: Rollout  # N >= the prompts asked for
    logp: np.ndarray  # [N, R, T], 0 on the prompt
    advantage: np.ndarray  # [N, R, T]: the credit that the run's own estimator gives
    texts: list[list[str]]
    prompts: list  # as the task tells them
    step: int


def sample_from_checkpoint(
    exp: Experiment,
    programs: Programs,
    folder: str | Path,
    *,
    prompts: int = 64,
    step: int | None = None,
    seed: int = 0,
) -> CheckpointRollouts:
    """At least `prompts` groups of training problems, as the run would see them: nothing resampled, all in the largest bucket."""
    like = {"params": programs.state.params, "aux": programs.state.aux}
    place = open_run_folder(folder)
    with Checkpoints(place.checkpoints, run=place.run_id()) as checkpoints:
        saved = checkpoints.restore(like, step=step, partial=True)
    if saved is None:
        raise FileNotFoundError(
            f"{folder} holds no usable checkpoint yet: let the run reach its first save (every {exp.save_every} steps)"
        )
    kept, _, at = saved
    key = jax.random.fold_in(jax.random.key(seed), at)
    state = TrainState(kept["params"], (), kept["aux"], jax.random.key_data(key), jnp.int32(at))
    collect = single_turn(
        programs.sample,
        exp.tokenizer,
        exp.task,
        group_size=exp.group_size,
        buckets=(max(exp.buckets),),
        sharding=programs.batch,
        timeout_s=exp.reward_timeout_s,
        workers=exp.reward_workers,
    )
    annotate, logprob = steps_of(exp, programs)["annotate"], jax.jit(programs.logprob)
    batches, parts, texts, asked = (
        Batches(len(exp.task.train), exp.prompts_per_step, seed),
        [],
        [],
        [],
    )
    for k in range(-(-prompts // exp.prompts_per_step)):
        index = next(batches)
        got = collect(state.params, jax.random.fold_in(key, k), index)()
        rollout = annotate(state, got).filled()
        S = exp.max_new_tokens
        logp = jnp.pad(
            logprob(state.params, rollout)["logp"],
            [(0, 0), (0, 0), (rollout.tokens.shape[-1] - S, 0)],
        )
        parts.append(
            (
                rollout,
                jnp.where(rollout.action_mask, logp, 0),
                programs.credit(rollout)["advantage"],
            )
        )
        texts += got.texts
        asked += [exp.task.train[int(i)]["prompt"] for i in index]
    rollout, logp, advantage = jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
    return CheckpointRollouts(rollout, np.asarray(logp), np.asarray(advantage), texts, asked, at)
