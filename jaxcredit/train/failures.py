"""Errors of a run: gradients that are not finite, too little memory, implicit transfers."""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcredit.rollout import Rollout
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning.advice import out_of_memory_message
from jaxcredit.train.programs import Programs


class OutOfMemory(RuntimeError):
    """A device ran out of memory. The message lists options to change, with values."""


class Diverged(RuntimeError):
    """Too many steps in a row had no finite gradient; the message names the first such array."""


class ImplicitTransfer(RuntimeError):
    """Credit or update copied an array between host and device in the middle of a step."""


def skipped_steps(exp: Experiment, history: Sequence[dict]) -> int:
    """Number of steps at the end of `history` without any finite gradient.

    Args:
        exp: the experiment.
        history: metrics of consecutive steps.
    """
    updates = exp.epochs * exp.prompts_per_step // (exp.minibatch or exp.prompts_per_step)
    count = 0
    for metrics in reversed(history):
        if (metrics.get("skipped") or 0) < updates:
            break
        count += 1
    return count


class FlatRewards:
    """Warning, once per run, if all rewards of several steps are equal.

    No estimator has a learning signal then.
    """

    STEPS = 5

    def __init__(self):
        self.warned = False

    def check(self, history: Iterable[dict]) -> None:
        """Warn if all rewards of the last steps in `history` (metrics by step) were equal."""
        last = [metrics for metrics in [*history][-self.STEPS :] if "reward_range" in metrics]
        if self.warned or len(last) < self.STEPS or any(m["reward_range"] for m in last):
            return
        self.warned, reward = True, last[-1]["reward"]
        if not last[-1]["length"]:
            cause = "the reward left every answer unscored (None)"
        elif reward >= 1:
            cause = (
                f"every answer earned {reward:g}. Take harder problems, or a reward that tells "
                "good answers apart"
            )
        else:
            cause = (
                f"every answer earned {reward:g}. Read a few answers in samples.jsonl: if none is "
                "right, warm up, take easier problems "
                "or give a graded reward; if some are, the reward does not read them"
            )
        warnings.warn(
            f"all rewards of the last {self.STEPS} steps were equal, so nothing was learned: "
            f"{cause}",
            stacklevel=2,
        )


def explain_nonfinite(
    exp: Experiment,
    programs: Programs,
    params: Any,
    rollout: Rollout,
    columns: dict,
    steps: int,
    saved: list[int],
) -> str:
    """Message that names the first non-finite array of a step, in order of computation, and a fix.

    Args:
        exp: the experiment.
        programs: its compiled programs.
        params: parameters before the update.
        rollout: the step's rollout with its signals.
        columns: the step's credit.
        steps: number of steps in a row without a finite gradient.
        saved: steps with a checkpoint.
    """
    array, fix = _first_nonfinite(programs, params, rollout, columns)
    if saved:
        steps_saved = ", ".join(map(str, saved))
        state = f"Nothing of these steps was learned; checkpoints of steps {steps_saved} are good"
    else:
        state = "Nothing was saved yet"
    return (
        f"{steps} steps in a row had no finite gradient. First not finite: {array}. Fix: {fix}. "
        f"{state}: resume from them afterwards"
    )


def _first_nonfinite(
    programs: Programs, params: Any, rollout: Rollout, columns: dict
) -> tuple[str, str]:
    """Description of the first array that is not finite, and a fix."""
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if int(_count_nonfinite(x)):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return f"the parameter {name}", "take an earlier checkpoint"
    arrays = [
        (
            "the sampler's log-probabilities",
            rollout.logp,
            "look at temperature, dtype and the checkpoint that was loaded",
        ),
        ("the rewards", rollout.reward, "fix the reward function"),
        *(
            (f"the signal {name}", x, "correct the annotator that provides it")
            for name, x in rollout.signals.items()
        ),
        *(
            (
                f"the credit's column {name}",
                x,
                "correct the estimator (jaxcredit check), or divide by std + eps",
            )
            for name, x in columns.items()
        ),
    ]
    for name, x, fix in arrays:
        if jnp.issubdtype(x.dtype, jnp.floating):
            count = int(_count_nonfinite(x, rollout.action_mask, rollout.segment_mask))
            if count:
                return f"{name} ({count:,} of {x.size:,} numbers)", fix
    logp = jax.jit(programs.logprob)(params, rollout)["logp"]
    count = int(_count_nonfinite(logp, rollout.action_mask[..., -logp.shape[-1] :]))
    if count:
        return (
            f"the trainer's log-probabilities ({count:,} numbers)",
            "compute in float32 (policy dtype), lower the learning rate",
        )
    return (
        "the gradient itself: all that goes into it is finite",
        "lower the learning rate, clip, or use float32",
    )


@jax.jit
def _count_nonfinite(x, *masks):
    """Number of elements that are not finite, under the first mask of the same shape."""
    mask = next((mask for mask in masks if mask.shape == x.shape), True)
    return (~jnp.isfinite(x) & mask).sum()


def with_oom_advice(exp: Experiment, programs: Programs, name: str, work: Callable) -> Callable:
    """`work` as a profiler span, with out-of-memory errors that list the options to change.

    Args:
        exp: the experiment.
        programs: its compiled programs.
        name: program that runs in `work`: init, sample, signals, credit, update or evaluate.
        work: any function.
    """

    def wrapped(*args, **kwargs):
        try:
            with jax.profiler.TraceAnnotation(name):
                return work(*args, **kwargs)
        except jax.errors.JaxRuntimeError as error:
            message = str(error)
            if "RESOURCE_EXHAUSTED" not in message and "out of memory" not in message.lower():
                raise
            # Devices work asynchronously: an earlier program may have failed, which the error then
            # names.
            failed = next(
                (
                    program
                    for program in ("update", "sample", "credit")
                    if re.search(rf"jit[_(]{program}\b", message)
                ),
                name,
            )
            raise OutOfMemory(out_of_memory_message(exp, programs, failed, message)) from error

    return wrapped


@contextlib.contextmanager
def no_implicit_transfers(name: str) -> Iterator[None]:
    """Context that refuses implicit copies between host and device, for example by `float(x)`.

    Such a copy would block the host in every step. `jax.device_put` and `jax.device_get` are
    allowed.

    Args:
        name: what runs in the context, for the message.

    Raises:
        ImplicitTransfer: an array was copied implicitly.
    """
    try:
        with jax.transfer_guard("disallow"):
            yield
    except jax.errors.JaxRuntimeError as error:
        if "Disallowed" not in str(error):
            raise
        raise ImplicitTransfer(
            f"{name} copies an array between host and device in every step ({str(error)[:200]}): "
            "compute it in a function under jax.jit, "
            "or call jax.device_put or jax.device_get if the copy is meant"
        ) from error
