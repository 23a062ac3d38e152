"""Supervision before reinforcement: demonstrations become rollouts of one row whose loss is -log p."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcredit.collect import put
from jaxcredit.data import Batches, bucketed, mine
from jaxcredit.experiment import Experiment
from jaxcredit.programs import Programs, supervise
from jaxcredit.rollout import Rollout
from jaxcredit.update import TrainState


def demonstrations(tokenizer, items: Sequence[dict], buckets: Sequence[int], new: int, sharding=None) -> Rollout:
    """Prompts and the answers shown to them, each answer ended by the stop token, laid out as the sampler would have."""
    answers = [[*tokenizer.encode(item["answer"]), tokenizer.stop_ids[0]] for item in items]
    longest = max(answers, key=len)
    if len(longest) > new:
        raise ValueError(f"a demonstration has {len(longest)} tokens and answers may have new = {new}: raise new, or shorten it")
    prompt, prompt_valid = bucketed([tokenizer.chat(item["prompt"]) for item in items], buckets, pad=tokenizer.pad_id)
    own = mine(len(items))
    mask = np.arange(new) < np.asarray([len(a) for a in answers])[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(answers)

    def columns(left, right):
        return put(np.concatenate([left, right], -1)[own, None], sharding)

    nothing = np.zeros(prompt.shape, bool)
    chosen = columns(nothing, mask)
    one = (own.stop - own.start, 1, 1)
    return Rollout(
        tokens=columns(prompt, tokens),
        mask=chosen,
        logp=columns(np.zeros(prompt.shape, np.float32), np.zeros(mask.shape, np.float32)),
        segment=columns(nothing * 0 - 1, mask * 1 - 1).astype(jnp.int32),
        reward=put(np.zeros(one, np.float32), sharding),
        real=put(np.ones(one, bool), sharding),
        valid=columns(prompt_valid, mask),
    )


def warm_up(
    exp: Experiment, programs: Programs, state: TrainState, accuracy: Callable, say: Callable[[str], None]
) -> tuple[TrainState, int]:
    """Supervise until `accuracy(params)` reaches the target. The run proper begins fresh from there: its optimizer, and its reference, if
    it has one. Returns the steps it took."""
    plan = exp.warmup
    assert plan is not None, "the experiment has no warmup"
    begin, update = supervise(plan, programs)
    batches = Batches(len(exp.task.demos), min(plan.batch, len(exp.task.demos)), exp.seed)
    key = jax.random.wrap_key_data(state.key)
    inner = begin(state.params, key)
    step = 0
    for step in range(1, plan.steps + 1):
        items = [exp.task.demos[int(i)] for i in next(batches)]
        rollout = demonstrations(exp.tokenizer, items, exp.buckets, exp.new, programs.batch)
        weight = rollout.mask.astype(jnp.float32)
        inner, metrics = update(inner, rollout, {"advantage": weight, "weight": weight, "clip": weight})
        if step % plan.every == 0 or step == plan.steps:
            reached = accuracy(inner.params)
            say(f"warm-up {step}/{plan.steps}  loss {float(metrics['loss']):.3f}  greedy accuracy {reached:.3f} (until {plan.until:g})")
            if reached >= plan.until:
                break
    return programs.begin(inner.params, key), step
