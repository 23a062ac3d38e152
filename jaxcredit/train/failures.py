"""What to say when a run cannot go on: steps whose gradient is not finite, and memory that is not enough."""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcredit.rollout import Rollout
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning.advice import after_failure
from jaxcredit.train.programs import Programs


class OutOfMemory(RuntimeError):
    """A device's memory was not enough; the message says which knobs to turn, and how far."""


class Diverged(RuntimeError):
    """Too many steps in a row had no finite gradient; the message says where the first number that is not finite was found."""


def skipped(exp: Experiment, history: Sequence[dict]) -> int:
    """How many of the last steps, in a row, moved nothing because no gradient of theirs was finite."""
    updates = exp.epochs * exp.prompts_per_step // (exp.minibatch or exp.prompts_per_step)
    count = 0
    for line in reversed(history):
        if (line.get("skipped") or 0) < updates:
            break
        count += 1
    return count


class FlatRewards:
    """Warning, once per run, if all rewards of several steps are equal, so that no estimator has a learning signal."""

    STEPS = 5

    def __init__(self):
        self.warned = False

    def look(self, history: Iterable[dict]) -> None:
        """Check the metrics of the last steps and warn if all rewards were equal."""
        last = [line for line in [*history][-self.STEPS :] if "reward_range" in line]
        if self.warned or len(last) < self.STEPS or any(line["reward_range"] for line in last):
            return
        self.warned, reward = True, last[-1]["reward"]
        if not last[-1]["length"]:
            cause = "the reward left every answer unscored (None)"
        elif reward >= 1:
            cause = f"every answer earned {reward:g}. Take harder problems, or a reward that tells good answers apart"
        else:
            cause = (
                f"every answer earned {reward:g}. Read a few answers in samples.jsonl: if none is right, warm up, take easier problems "
                "or give a graded reward; if some are, the reward does not read them"
            )
        warnings.warn(
            f"all rewards of the last {self.STEPS} steps were equal, so nothing was learned: {cause}",
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
    """Where a step first has a number that is not finite, in the order in which they are made, and what to do."""

    @jax.jit
    def bad(x, *masks):
        where = [m for m in masks if m.shape == x.shape]  # what did not take place may be anything
        return (~jnp.isfinite(x) & (where[0] if where else True)).sum()

    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if int(bad(x)):
            found.append(
                (
                    f"the parameter {jax.tree_util.keystr(path, simple=True, separator='.')}",
                    "take an earlier checkpoint",
                )
            )
            break
    looks = [
        (
            "the sampler's log-probabilities",
            rollout.logp,
            "look at temperature, dtype and the checkpoint that was loaded",
        ),
        ("the rewards", rollout.reward, "fix the reward function"),
        *(
            (f"the signal {name}", x, "mend the annotator that provides it")
            for name, x in rollout.signals.items()
        ),
        *(
            (
                f"the credit's column {name}",
                x,
                "mend the estimator (jaxcredit check), or divide by std + eps",
            )
            for name, x in columns.items()
        ),
    ]
    for what, x, mend in looks:
        if jnp.issubdtype(x.dtype, jnp.floating) and int(
            count := bad(x, rollout.action_mask, rollout.segment_mask)
        ):
            found.append((f"{what} ({int(count):,} of {x.size:,} numbers)", mend))
    if not found:
        S = jax.eval_shape(programs.logprob, params, rollout)["logp"].shape[-1]
        logp = jax.jit(programs.logprob)(params, rollout)["logp"]
        if int(count := bad(logp, rollout.action_mask[..., -S:])):
            found.append(
                (
                    f"the trainer's log-probabilities ({int(count):,} numbers)",
                    "compute in float32 (policy dtype), lower the learning rate",
                )
            )
    what, mend = (
        found[0]
        if found
        else (
            "the gradient itself: all that goes into it is finite",
            "lower the learning rate, clip, or use float32",
        )
    )
    kept = (
        f"Nothing of these steps was learned; checkpoints of steps {', '.join(map(str, saved))} are good"
        if saved
        else "Nothing was saved yet"
    )
    told = (
        f"{steps} steps in a row had no finite gradient. First not finite: {what}. To mend: {mend}."
    )
    return f"{told} {kept}: resume from them when it is mended"


def with_oom_advice(exp: Experiment, programs: Programs, name: str, work: Callable) -> Callable:
    """The same work under a name: a profile shows it, and when it runs out of memory the error says what to change and by how much."""

    def do(*args, **kwargs):
        try:
            with jax.profiler.TraceAnnotation(name):
                return work(*args, **kwargs)
        except jax.errors.JaxRuntimeError as error:
            said = str(error)
            if "RESOURCE_EXHAUSTED" not in said and "out of memory" not in said.lower():
                raise
            # A device works behind the host's back: what it failed in may have been sent to it before. The error then names the program.
            told = next(
                (
                    other
                    for other in ("update", "sample", "credit")
                    if re.search(rf"jit[_(]{other}\b", said)
                ),
                name,
            )
            raise OutOfMemory(after_failure(exp, programs, told, said)) from error

    return do
