"""The training loop: sample, assign credit, update, evaluate, record and save, once per step."""

import functools
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from jaxcredit.collect.batches import Batches
from jaxcredit.kernels import masked_mean
from jaxcredit.rollout import Rollout, diagnostics, outcome, trajectory_mask
from jaxcredit.train.evaluation import evaluate_greedy
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.failures import (
    Diverged,
    FlatRewards,
    explain_nonfinite,
    no_implicit_transfers,
    skipped_steps,
    with_oom_advice,
)
from jaxcredit.train.planning.flops import step_flops
from jaxcredit.train.programs import Programs, compose_step, make_collector
from jaxcredit.train.runs.checkpoint import Checkpoints
from jaxcredit.train.runs.folder import BucketRunFolder, RunFolder
from jaxcredit.train.runs.host_log import HostLog
from jaxcredit.train.runs.lock import Lock
from jaxcredit.train.runs.metrics import MetricsWriter
from jaxcredit.train.runs.preemption import Preemption, StopRequested
from jaxcredit.train.runs.profiling import Profiler
from jaxcredit.train.runs.timing import StepTimer
from jaxcredit.train.update import TrainState


class Stopped(SystemExit):
    """Exit after a request to stop.

    Attributes:
        code: exit status.
        step: last step.
        saved: description of the saved state.
    """

    def __init__(self, code: int, step: int, saved: str = ""):
        super().__init__(code)
        self.step, self.saved = step, saved or f"step {step} is saved"


class RunServices(NamedTuple):
    """Open files and handlers of a run, for the training loop."""

    folder: RunFolder
    lock: Lock | None  # None in all processes but the first
    preemption: Preemption
    checkpoints: Checkpoints
    metrics: MetricsWriter
    host: HostLog
    profiler: Profiler


def train(
    exp: Experiment,
    programs: Programs,
    state: TrainState,
    batches: Batches,
    run: RunServices,
    *,
    start: int = 0,
) -> TrainState:
    """Train from step `start` + 1 to step `exp.steps` and return the last state.

    With `exp.sample_ahead`, answers are sampled before the update of the step before and scored
    during it. A request to stop interrupts sampling; at other times the step is completed first.

    Raises:
        Stopped: SIGTERM or Ctrl-C ended the run after saving.
        Diverged: `exp.max_skipped_steps` steps in a row had no finite gradient.
        OutOfMemory: a device ran out of memory.
    """
    named = functools.partial(with_oom_advice, exp, programs)
    annotate, credit, update = map(
        named, ("signals", "credit", "update"), compose_step(exp, programs)
    )
    sample = named("sample", make_collector(exp, programs, batches))
    evaluate = named("evaluate", evaluate_greedy)
    timer, flat_rewards, pending = StepTimer(), FlatRewards(), None

    for step in range(start + 1, exp.steps + 1):
        run.profiler.before_step(step)
        timer.start()

        # Sample and score, unless the step before has dispatched the sampling.
        position = batches.get_state()
        try:
            with run.preemption.interruptible(not exp.sample_ahead):
                if pending is None:
                    pending = sample(state.params, _sampling_key(state, step), next(batches))
                collected = named("sample", pending)()
        except StopRequested:
            _save(run, step - 1, state, position, stopping=True)
            _stop(run, step - 1)

        # Assign credit.
        rollout = annotate(state, collected)
        with no_implicit_transfers("credit"):
            columns = credit(rollout)

        # Sample ahead, but not of a checkpoint: pending rollouts are not saved.
        last, stopping = step == exp.steps, run.preemption.should_stop(step)
        saving = last or stopping or run.checkpoints.due(step)
        pending = None
        if exp.sample_ahead and not saving:
            pending = sample(state.params, _sampling_key(state, step + 1), next(batches))

        # Update.
        with no_implicit_transfers("update"):
            state, update_metrics = update(state, rollout, columns)
        run.profiler.after_step(step, state)
        if run.lock and not _is_remote(run):
            run.lock.check()

        # Evaluate and record.
        metrics = collected.metrics | update_metrics | rollout_metrics(rollout, columns)
        metrics["flops"] = step_flops(exp, collected.rollout, metrics["tokens"])
        metrics["time/work_s"] = timer.stop()
        evaluating = last or step % exp.eval_every == 0
        if evaluating:
            eval_metrics, examples = evaluate(exp, programs, state.params)
            metrics |= eval_metrics
            run.metrics.log_samples(step, examples)
        _record(run, step, metrics)

        # Save.
        if saving:
            _save(run, step, state, batches.get_state(), stopping=stopping)
        elif evaluating:
            _publish(run)

        # Warn or stop, if nothing is learned or a stop was requested.
        flat_rewards.check(run.metrics.recent)
        _check_finite(exp, programs, run, state, rollout, columns)
        if stopping and not last:
            _stop(run, step)
    return state


@jax.jit
def rollout_metrics(rollout: Rollout, columns: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Metrics of a rollout (rewards, lengths, signal, shared prefixes) and of its credit's size.

    Answers that the reward left unscored are counted in `unscored` and in no mean.
    `groups_unscored` counts groups without a scored answer; they have no weight in the loss.
    """
    rollout = rollout.filled()
    R, scored, mask = outcome(rollout), trajectory_mask(rollout), rollout.action_mask
    length, answered = mask.sum(-1, dtype=jnp.float32), mask.any(-1)
    highest = jnp.where(scored, R, -jnp.inf).max(-1)
    lowest = jnp.where(scored, R, jnp.inf).min(-1)
    return {
        "reward": masked_mean(R, scored),
        "reward_range": jnp.maximum(highest.max() - lowest.min(), 0),
        "unscored": (~scored).sum(),
        "groups_unscored": (~scored.any(-1)).sum(),
        "length": length.sum() / jnp.maximum(answered.sum(), 1),
        "truncated": 1 - masked_mean(rollout.done.astype(jnp.float32), scored),
        "signal_group_fraction": (highest > lowest).mean(),
        "credit_rms": jnp.sqrt(masked_mean(columns["advantage"] ** 2, mask)),
        **diagnostics.step_metrics(rollout),
    }


def _sampling_key(state: TrainState, step: int) -> jax.Array:
    """Random key of a step's sampling, a function of the run's key and the step only."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), step - 1)


def _record(run: RunServices, step: int, metrics: dict) -> None:
    """Write the metrics of a step, and the durations of this process to its own log."""
    run.metrics.log(step, metrics)
    durations = ("work_s", "update_s", "sample_s", "reward_s")
    run.host.log_step(step, **{name: metrics[f"time/{name}"] for name in durations})


def _publish(run: RunServices) -> None:
    """Write pending metrics, and upload the run folder if it is in a bucket."""
    run.metrics.flush()
    run.folder.push()


def _save(
    run: RunServices, step: int, state: TrainState, position: dict, *, stopping: bool
) -> None:
    """Publish the metrics, then start a save; `position` is the state of the batch iterator."""
    if run.lock and _is_remote(run):
        run.lock.check()
    _publish(run)
    run.checkpoints.save(step, state, {"batches": position})
    requested = stopping or run.preemption.stop_requested
    run.host.log(f"save step {step}{', asked to stop' if requested else ''}")


def _check_finite(
    exp: Experiment,
    programs: Programs,
    run: RunServices,
    state: TrainState,
    rollout: Rollout,
    columns: dict,
) -> None:
    """Raise Diverged, with a diagnosis of this step, after too many steps without an update."""
    skipped = skipped_steps(exp, run.metrics.recent)
    if skipped >= exp.max_skipped_steps:
        run.checkpoints.wait()
        saved = run.checkpoints.steps()
        raise Diverged(
            explain_nonfinite(exp, programs, state.params, rollout, columns, skipped, saved)
        )


def _stop(run: RunServices, step: int) -> NoReturn:
    """Finish pending saves and exit."""
    run.checkpoints.wait()
    raise Stopped(run.preemption.code, step) from None


def _is_remote(run: RunServices) -> bool:
    """Whether the run folder is in a bucket, where each check of the lock is a request."""
    return isinstance(run.folder, BucketRunFolder)
