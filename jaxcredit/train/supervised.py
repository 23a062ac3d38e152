"""Supervision before reinforcement: demonstrations become rollouts of one row whose loss is -log p."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcredit.collect.batches import Batches, bucketed
from jaxcredit.parallel.processes import local_slice, to_global_array
from jaxcredit.rollout import Rollout
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.programs import Programs, supervise
from jaxcredit.train.runs.checkpoint import Checkpoints
from jaxcredit.train.runs.preemption import Preemption, StopRequested
from jaxcredit.train.update import TrainState


def demonstrations(
    tokenizer, items: Sequence[dict], buckets: Sequence[int], new: int, sharding=None
) -> Rollout:
    """Prompts and the answers shown to them, each answer ended by the stop token, laid out as the sampler would have."""
    answers = [[*tokenizer.encode(item["answer"]), tokenizer.stop_ids[0]] for item in items]
    longest = max(answers, key=len)
    if len(longest) > new:
        raise ValueError(
            f"a demonstration has {len(longest)} tokens and answers may have new = {new}: raise new, or shorten it"
        )
    prompt, prompt_valid = bucketed(
        [tokenizer.chat(item["prompt"]) for item in items], buckets, pad=tokenizer.pad_id
    )
    own = local_slice(len(items))
    mask = np.arange(new) < np.asarray([len(a) for a in answers])[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(answers)

    def columns(left, right):
        return to_global_array(np.concatenate([left, right], -1)[own, None], sharding)

    nothing = np.zeros(prompt.shape, bool)
    chosen = columns(nothing, mask)
    one = (own.stop - own.start, 1, 1)
    return Rollout(
        tokens=columns(prompt, tokens),
        action_mask=chosen,
        logp=columns(np.zeros(prompt.shape, np.float32), np.zeros(mask.shape, np.float32)),
        segment=columns(nothing * 0 - 1, mask * 1 - 1).astype(jnp.int32),
        reward=to_global_array(np.zeros(one, np.float32), sharding),
        segment_mask=to_global_array(np.ones(one, bool), sharding),
        token_mask=columns(prompt_valid, mask),
    )


class Interrupted(Exception):
    """The warm-up was interrupted and saved after `step` steps."""

    def __init__(self, step: int):
        super().__init__(f"the warm-up stopped as asked after step {step}")
        self.step = step


def warm_up(
    exp: Experiment,
    programs: Programs,
    state: TrainState,
    accuracy: Callable,
    say: Callable[[str], None],
    *,
    saves: Checkpoints | None = None,
    stop: Preemption | None = None,
) -> tuple[TrainState, int]:
    """Supervise until `accuracy(params)` reaches the target. The run proper begins fresh from there: its optimizer, and its reference, if
    it has one. Returns the steps it took.

    With `saves` the warm-up's own state is saved every `saves.every` steps, at its end and at a request to stop (`stop`, which ends it with
    Interrupted), and a later call goes on from there with the same numbers.
    """
    plan = exp.warmup
    assert plan is not None, "the experiment has no warmup"
    stop = stop or Preemption()
    begin, update = supervise(plan, programs)
    batches = Batches(len(exp.task.demos), min(plan.batch, len(exp.task.demos)), exp.seed)
    key = jax.random.wrap_key_data(state.key)
    inner = begin(state.params, key)
    step, ended, looked = 0, plan.steps < 1, True
    if saves and (saved := saves.restore(inner)):
        inner, side, step = saved
        batches.set_state(side["batches"])
        ended, looked = side["ended"], side["looked"]
        say(f"warm-up goes on from step {step} of {plan.steps}")

    def save() -> None:
        if saves:
            saves.save(
                step, inner, {"batches": batches.get_state(), "ended": ended, "looked": looked}
            )

    def leave() -> Interrupted:
        if step:
            save()
        if saves:
            saves.wait()
        return Interrupted(step)

    loss = float("nan")
    while not ended:
        if looked:
            items = [exp.task.demos[int(i)] for i in next(batches)]
            rollout = demonstrations(
                exp.tokenizer, items, exp.buckets, exp.max_new_tokens, programs.batch
            )
            weight = rollout.action_mask.astype(jnp.float32)
            inner, metrics = update(
                inner, rollout, {"advantage": weight, "weight": weight, "clip": weight}
            )
            step, looked, loss = step + 1, False, metrics["loss"]
        if step % plan.every == 0 or step == plan.steps:
            try:
                with stop.interruptible():
                    reached = accuracy(inner.params)
            except StopRequested:
                raise leave() from None
            shown = f"loss {float(loss):.3f}  " if np.isfinite(loss) else ""
            say(
                f"warm-up {step}/{plan.steps}  {shown}greedy accuracy {reached:.3f} (until {plan.until:g})"
            )
            ended = reached >= plan.until or step == plan.steps
        looked = True
        if stop.should_stop(step):
            raise leave()
        if saves and (ended or saves.due(step)):
            save()
    return programs.begin(inner.params, key), step
