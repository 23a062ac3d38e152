"""Lowering of an experiment's programs from shapes, without arrays and without compilation."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.stages import Lowered

from jaxcredit.collect.single_turn import Collected, assemble
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning.memory import bytes_per_device
from jaxcredit.train.programs import Programs, compose_step


def lowered_programs(exp: Experiment, made: Programs) -> Iterator[tuple[str, Lowered, int]]:
    """Lower the programs of a step for the largest prompts.

    Args:
        exp: the experiment.
        made: its programs.

    Yields:
        (name, lowered program, bytes per device of the training state that are not its arguments).
    """
    N, P = exp.prompts_per_step, max(exp.buckets)
    state, key = made.state, jax.eval_shape(lambda: jax.random.key(0))

    def sharded(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=made.batch), tree
        )

    def prompts_array(n, *shape, dtype=jnp.int32):
        return sharded(jax.ShapeDtypeStruct((n, *shape), dtype))

    def annotated(state, prompt, valid, drawn, reward, index):
        scored = jnp.ones(reward.shape, bool)
        rollout = assemble(prompt, valid, drawn, reward, scored).with_signals(prompt=index)
        return compose_step(exp, made).annotate(state, Collected(rollout, [], [], {}))

    everything = bytes_per_device(state)
    weights, other = state.params, everything - bytes_per_device(state.params)
    prompts = prompts_array(N, P), prompts_array(N, P, dtype=bool)
    if made.reshard_for_sampling:
        yield "reshard", made.reshard_for_sampling.lower(weights), other
        weights, other = jax.eval_shape(made.reshard_for_sampling, weights), everything
    sampling = made.draw.lower(weights, *prompts, key, **made.sample.keywords)
    yield "sample", sampling, other
    n = exp.held_out()[1]
    yield (
        "evaluate",
        made.draw.lower(
            weights,
            prompts_array(n, P),
            prompts_array(n, P, dtype=bool),
            key,
            **made.greedy.keywords,
        ),
        other,
    )

    # Tracing made.sample would nest one jit in another, which may not have compiler options.
    drawn = sharded(sampling.out_info)
    parts = (
        state,
        *prompts,
        drawn,
        prompts_array(N, exp.group_size, 1, dtype=jnp.float32),
        prompts_array(N),
    )
    if exp.signals:
        yield "signals", jax.jit(annotated).lower(*parts), bytes_per_device(state.opt_state)
    rollout = sharded(jax.eval_shape(annotated, *parts))
    yield "credit", made.credit.lower(rollout), everything
    columns = sharded(jax.eval_shape(made.credit, rollout))
    yield "update", made.update.lower(state, rollout, columns), 0
