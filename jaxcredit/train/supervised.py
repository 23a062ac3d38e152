"""Supervised warm-up on demonstrations: the loss is -log p of the demonstrated answers."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcredit.collect.batches import Batches, bucketed
from jaxcredit.parallel.processes import local_slice, to_global_array
from jaxcredit.rollout import Rollout
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.programs import Programs, supervised_programs
from jaxcredit.train.runs.checkpoint import Checkpoints
from jaxcredit.train.runs.preemption import Preemption, StopRequested
from jaxcredit.train.update import TrainState


def demonstrations(
    tokenizer,
    items: Sequence[dict],
    buckets: Sequence[int],
    max_new_tokens: int,
    sharding: jax.sharding.Sharding | None = None,
) -> Rollout:
    """Rollout of demonstrated answers, one row per prompt, each ended by the stop token.

    Args:
        tokenizer: encodes prompts with `chat` and answers with `encode`.
        items: N problems with `prompt` and `answer`, the same in all processes.
        buckets: prompt lengths for which programs are compiled.
        max_new_tokens: longest answer in tokens, with the stop token.
        sharding: sharding of arrays [N, ...]; None on one device.

    Raises:
        ValueError: an answer or a prompt is too long.
    """
    answers = [[*tokenizer.encode(item["answer"]), tokenizer.stop_ids[0]] for item in items]
    longest = max(answers, key=len)
    if len(longest) > max_new_tokens:
        raise ValueError(
            f"a demonstration has {len(longest)} tokens and answers may have max_new_tokens = "
            f"{max_new_tokens}: raise max_new_tokens, "
            "or shorten the demonstration"
        )
    prompt, prompt_valid = bucketed(
        [tokenizer.chat(item["prompt"]) for item in items], buckets, pad=tokenizer.pad_id
    )
    own = local_slice(len(items))
    mask = np.arange(max_new_tokens) < np.asarray([len(a) for a in answers])[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(answers)

    def concat_prompt_response(left, right):
        return to_global_array(np.concatenate([left, right], -1)[own, None], sharding)

    no_prompt = np.zeros(prompt.shape, bool)
    per_row = (own.stop - own.start, 1, 1)
    return Rollout(
        tokens=concat_prompt_response(prompt, tokens),
        action_mask=concat_prompt_response(no_prompt, mask),
        logp=concat_prompt_response(
            np.zeros(prompt.shape, np.float32), np.zeros(mask.shape, np.float32)
        ),
        segment=concat_prompt_response(no_prompt * 0 - 1, mask * 1 - 1).astype(jnp.int32),
        reward=to_global_array(np.zeros(per_row, np.float32), sharding),
        segment_mask=to_global_array(np.ones(per_row, bool), sharding),
        token_mask=concat_prompt_response(prompt_valid, mask),
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
    """Supervised training until the held-out accuracy reaches `exp.warmup.until`.

    It takes at most `exp.warmup.steps` steps. The returned state has the trained parameters, a new
    optimizer state and new states of annotators, so that a reference policy is the policy after the
    warm-up. A resumed warm-up computes the same numbers as an uninterrupted one.

    Args:
        exp: the experiment; `exp.warmup` must be set.
        programs: its compiled programs.
        state: initial state; its arrays are donated.
        accuracy: `accuracy(params)`, the held-out accuracy in 0..1.
        say: called with lines of progress.
        saves: checkpoints of the warm-up, written every `saves.every` steps, at its end and at a
            request to stop. A warm-up that was saved there is continued.
        stop: requests to stop.

    Returns:
        The state, and the number of steps.

    Raises:
        Interrupted: a stop was requested; the warm-up is saved.
    """
    plan = exp.warmup
    assert plan is not None, "the experiment has no warmup"
    stop = stop or Preemption()
    begin, update = supervised_programs(plan, programs)
    batches = Batches(len(exp.task.demos), min(plan.batch, len(exp.task.demos)), exp.seed)
    key = jax.random.wrap_key_data(state.key)
    warm_state = begin(state.params, key)
    # `evaluated`: the accuracy of the current step is known, so training goes on.
    step, ended, evaluated = 0, plan.steps < 1, True
    if saves and (saved := saves.restore(warm_state)):
        warm_state, side, step = saved
        batches.set_state(side["batches"])
        ended, evaluated = side["ended"], side["looked"]
        say(f"warm-up goes on from step {step} of {plan.steps}")

    def save() -> None:
        if saves:
            side = {"batches": batches.get_state(), "ended": ended, "looked": evaluated}
            saves.save(step, warm_state, side)

    def interrupt() -> Interrupted:
        if step:
            save()
        if saves:
            saves.wait()
        return Interrupted(step)

    loss = float("nan")
    while not ended:
        if evaluated:
            items = [exp.task.demos[int(i)] for i in next(batches)]
            rollout = demonstrations(
                exp.tokenizer, items, exp.buckets, exp.max_new_tokens, programs.batch
            )
            weight = rollout.action_mask.astype(jnp.float32)
            columns = {"advantage": weight, "weight": weight, "clip": weight}
            warm_state, metrics = update(warm_state, rollout, columns)
            step, evaluated, loss = step + 1, False, metrics["loss"]
        if step % plan.every == 0 or step == plan.steps:
            try:
                with stop.interruptible():
                    reached = accuracy(warm_state.params)
            except StopRequested:
                raise interrupt() from None
            shown = f"loss {float(loss):.3f}  " if np.isfinite(loss) else ""
            say(
                f"warm-up {step}/{plan.steps}  {shown}greedy accuracy {reached:.3f} (until "
                f"{plan.until:g})"
            )
            ended = reached >= plan.until or step == plan.steps
        evaluated = True
        if stop.should_stop(step):
            raise interrupt()
        if saves and (ended or saves.due(step)):
            save()
    return programs.begin(warm_state.params, key), step
