"""Parameters and rollouts from a checkpoint of a run."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcredit.collect.batches import Batches
from jaxcredit.rollout import Rollout
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.programs import Programs, build, compose_step, make_collector
from jaxcredit.train.runs.checkpoint import Checkpoints
from jaxcredit.train.runs.folder import open_run_folder
from jaxcredit.train.update import TrainState


class CheckpointRollouts(NamedTuple):
    """Rollouts of a checkpoint's policy: N groups of R rows of T tokens.

    Attributes:
        rollout: sampled rollout with its signals, optional fields filled in.
        logp: [N, R, T] log-probability under the trainer, 0 on prompt and padding.
        advantage: [N, R, T] advantage by the run's estimator.
        texts: [N][R] answers.
        prompts: [N] prompts, as in the task.
        step: step of the checkpoint.
    """

    rollout: Rollout
    logp: np.ndarray
    advantage: np.ndarray
    texts: list[list[str]]
    prompts: list
    step: int


def restore_params(
    exp: Experiment, folder: str | Path, *, step: int | None = None
) -> tuple[Programs, Any, int]:
    """Compiled programs of an experiment, the parameters of a checkpoint, and its step.

    Args:
        exp: the experiment of the run.
        folder: run folder, or gs://BUCKET/... address.
        step: step of the checkpoint; None: the newest usable one.

    Raises:
        FileNotFoundError: the run has no usable checkpoint.
        CheckpointError: the checkpoint of `step` is absent, is damaged, or does not fit the
            experiment.
    """
    programs = build(exp)
    saved, step = _restore(exp, folder, {"params": programs.state.params}, step)
    return programs, saved["params"], step


def sample_from_checkpoint(
    exp: Experiment,
    programs: Programs,
    folder: str | Path,
    *,
    prompts: int = 64,
    step: int | None = None,
    seed: int = 0,
) -> CheckpointRollouts:
    """New rollouts by the policy of a checkpoint, with the signals and the credit of its run.

    They are sampled as in training, but without dynamic sampling, and with all prompts in the
    largest bucket.

    Args:
        exp: the experiment of the run.
        programs: its compiled programs.
        folder: run folder, or gs://BUCKET/... address.
        prompts: least number of groups; rounded up to whole steps.
        step: step of the checkpoint; None: the newest usable one.
        seed: seed of the choice of problems and of the sampling.

    Raises:
        FileNotFoundError: the run has no usable checkpoint.
        CheckpointError: the checkpoint of `step` is absent, is damaged, or does not fit the
            experiment.
    """
    shapes = {"params": programs.state.params, "aux": programs.state.aux}
    saved, step = _restore(exp, folder, shapes, step)
    key = jax.random.fold_in(jax.random.key(seed), step)
    state = TrainState(saved["params"], (), saved["aux"], jax.random.key_data(key), jnp.int32(step))
    batches = Batches(len(exp.task.train), exp.prompts_per_step, seed)
    plain = dataclasses.replace(exp, buckets=(max(exp.buckets),), max_sampling_rounds=1)
    collect = make_collector(plain, programs, batches)
    annotate, credit, _ = compose_step(exp, programs)
    logprob = jax.jit(programs.logprob)
    parts, texts, prompt_texts = [], [], []
    for k in range(-(-prompts // exp.prompts_per_step)):
        indices = next(batches)
        collected = collect(state.params, jax.random.fold_in(key, k), indices)()
        rollout = annotate(state, collected).filled()
        before_answer = [(0, 0), (0, 0), (rollout.tokens.shape[-1] - exp.max_new_tokens, 0)]
        logp = jnp.pad(logprob(state.params, rollout)["logp"], before_answer)
        logp = jnp.where(rollout.action_mask, logp, 0)
        parts.append((rollout, logp, credit(rollout)["advantage"]))
        texts += collected.texts
        prompt_texts += [exp.task.train[int(i)]["prompt"] for i in indices]
    rollout, logp, advantage = jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
    return CheckpointRollouts(
        rollout, np.asarray(logp), np.asarray(advantage), texts, prompt_texts, step
    )


def _restore(
    exp: Experiment, folder: str | Path, shapes: dict, step: int | None
) -> tuple[dict, int]:
    """A part of the training state from a checkpoint, and its step."""
    run_folder = open_run_folder(folder)
    with Checkpoints(run_folder.checkpoints, run=run_folder.run_id()) as checkpoints:
        saved = checkpoints.restore(shapes, step=step, partial=True)
    if saved is None:
        raise FileNotFoundError(
            f"{folder} holds no usable checkpoint yet: let the run reach its first save (every "
            f"{exp.save_every} steps)"
        )
    return saved[0], saved[2]
