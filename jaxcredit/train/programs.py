"""The compiled programs of an experiment: begin, sample, greedy, credit, update, and where their arrays lie."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxcredit import losses
from jaxcredit.credit import columns
from jaxcredit.parallel import mesh, params
from jaxcredit.policy import lora, transformer
from jaxcredit.policy import sampler as decode
from jaxcredit.policy.fused_attention import choose_attention
from jaxcredit.rollout import FilledRollout
from jaxcredit.train.experiment import Experiment, Warmup
from jaxcredit.train.update import TrainState, make_update


def compiler_options() -> dict | None:
    """Of programs for the devices that meshes are made of. A CPU's are compiled by LLVM's second level instead of its third, which is
    quicker (random weights above all) and gives the same numbers but for a last bit here and there, as fast. What XLA_FLAGS says of the
    level, goes."""
    level = "xla_backend_optimization_level"
    if mesh.available()[0].platform != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return None
    return {level: 2}


class Programs(NamedTuple):
    """What `train`, `eval` and `plan` share."""

    state: TrainState  # shapes, on a mesh with their shardings: to plan with, or to restore into
    batch: jax.sharding.NamedSharding | None  # of arrays [N, ...]; None on one device
    init: Callable  # key -> TrainState
    begin: Callable  # params, key -> TrainState: from weights that exist
    settle: Callable | None  # params -> the same where they lie to sample; None: they stay
    draw: Callable  # settled params, prompt, valid, key, rows, temperature, .. -> tokens, logp, mask, done
    sample: Callable  # params, prompt, valid, key -> tokens, logp, mask, done
    greedy: Callable  # params, prompt, valid, key -> the same, one row a prompt
    logprob: Callable  # params, rollout -> logp, entropy of the response columns
    credit: Callable  # rollout -> columns
    update: Callable  # state, rollout, columns -> state, metrics
    learned: dict  # annotators by name
    attention: str  # which kernel, and why not the device's own


def build(exp: Experiment) -> Programs:
    """Nothing is compiled or placed yet; every program compiles at its first call."""
    cfg = exp.policy
    specs, jit = (
        transformer.specs(cfg),
        functools.partial(jax.jit, compiler_options=compiler_options()),
    )
    adapters = {"lora": lora.specs(specs, exp.lora)} if exp.lora else {}
    lies = beside = batch = settle = None
    if exp.mesh:
        devices = mesh.make(exp.mesh)
        lies, beside = (
            mesh.shardings(specs, exp.rules, devices),
            mesh.shardings(adapters, exp.rules, devices),
        )
        batch = mesh.batch_sharding(exp.prompts_per_step, exp.rules, devices)
        mesh.assert_local_batch(batch, exp.prompts_per_step)
        cfg = dataclasses.replace(
            cfg, layout=mesh.Layout(devices, tuple(sorted(exp.rules.items())))
        )
    attention, why = choose_attention(cfg)
    drawing = cfg = dataclasses.replace(
        cfg, attention=attention
    )  # a part of what is compiled, not of where it was asked for
    if exp.mesh and exp.sampling_rules is not None:
        drawing = dataclasses.replace(
            cfg, layout=mesh.Layout(devices, tuple(sorted(exp.sampling_rules.items())))
        )
        there = mesh.shardings(specs | adapters, exp.sampling_rules, devices)
        settle = jit(lambda weights: transformer.cast(weights, cfg), out_shardings=there)

    def logprob(weights, rollout: FilledRollout, temperature: float = exp.temperature):
        P = rollout.tokens.shape[-1] - exp.max_new_tokens
        return transformer.logprob(
            weights, rollout.tokens, rollout.token_mask, cfg, prompt=P, temperature=temperature
        )

    learned = {name: make(cfg, logprob) for name, make in exp.signals.items()}
    shapes = params.abstract(specs, cfg.param_dtype, lies) | params.abstract(
        adapters, shardings=beside
    )  # adapters are float32
    begin, state, where = _start(shapes, exp.optimizer, learned)

    def init(key) -> TrainState:
        weights_key, key = jax.random.split(key)
        make = functools.partial(params.init, specs, dtype=cfg.param_dtype)
        weights = (
            exp.load_params(lies) if exp.load_params else jit(make, out_shardings=lies)(weights_key)
        )
        if adapters:
            weights |= jit(functools.partial(params.init, adapters), out_shardings=beside)(
                jax.random.fold_in(weights_key, 0)
            )
        state = begin(weights, key)
        if where is not None:
            mesh.assert_placed(state, where)
        return state

    objective = (
        losses.truncated_importance(exp.objective, sequence=True)
        if exp.sample_ahead
        else exp.objective
    )
    draw = jit(
        functools.partial(
            decode.sample,
            cfg=drawing,
            max_new_tokens=exp.max_new_tokens,
            stop=tuple(exp.tokenizer.stop_ids),
        ),
        static_argnames=("rows", "temperature", "top_k", "top_p"),
        out_shardings=batch,
    )

    def drawn(weights, *asked, **how):
        return draw(settle(weights) if settle else weights, *asked, **how)

    return Programs(
        state=state,
        batch=batch,
        init=init,
        begin=begin,
        settle=settle,
        draw=draw,
        sample=functools.partial(
            drawn,
            rows=exp.group_size,
            temperature=exp.temperature,
            top_k=exp.top_k,
            top_p=exp.top_p,
        ),
        greedy=functools.partial(drawn, rows=1, temperature=0.0),
        logprob=logprob,
        credit=jit(lambda rollout: columns(exp.credit(rollout), rollout), out_shardings=batch),
        update=make_update(
            logprob,
            objective,
            exp.aggregate,
            exp.optimizer,
            kl=exp.kl,
            beta=exp.beta,
            minibatch=exp.minibatch,
            micro_batch=exp.micro_batch,
            epochs=exp.epochs,
            sharding=batch,
            where=where,
            compiler_options=compiler_options(),
        ),
        learned=learned,
        attention=f"{attention} ({why})" if why else attention,
    )


def steps_of(exp: Experiment, programs: Programs) -> dict:
    """annotate, credit and update of the loop."""
    learned = programs.learned

    def annotate(state, collected):
        rollout = collected.rollout
        for name, signal in learned.items():
            rollout = signal.annotate(state.aux[name], state, rollout, collected.metas)
        return rollout

    def update(state, rollout, columns):
        facts, aux = {}, {}
        for name, signal in learned.items():
            aux[name], told = signal.update(state.aux[name], state, rollout, columns)
            facts |= {f"{name}/{key}": value for key, value in told.items()}
        state, metrics = programs.update(dataclasses.replace(state, aux=aux), rollout, columns)
        return state, {**metrics, **facts}

    return {"annotate": annotate, "credit": programs.credit, "update": update}


def supervise(plan: Warmup, programs: Programs) -> tuple[Callable, Callable]:
    """begin and update of the warm-up: the log-likelihood of demonstrations, by the same program as the policy's update."""
    begin, _, where = _start(programs.state.params, plan.optimizer, {})
    logprob = functools.partial(programs.logprob, temperature=1.0)
    how = {"sharding": programs.batch, "where": where, "compiler_options": compiler_options()}
    return begin, make_update(logprob, losses.nll, losses.token_mean, plan.optimizer, **how)


def _start(
    weights: PyTree, optimizer: optax.GradientTransformation, learned: Mapping[str, Any]
) -> tuple[Callable, TrainState, Any]:
    """The program (params, key) -> TrainState, the shapes of that state, and where each array lies (None on one device)."""

    def begin(weights, key) -> TrainState:
        aux = {
            name: signal.init(jax.random.fold_in(key, i), weights)
            for i, (name, signal) in enumerate(sorted(learned.items()))
        }
        return TrainState(
            weights,
            optimizer.init(lora.split(weights)[1]),
            aux,
            jax.random.key_data(key),
            jnp.int32(0),
        )

    state = jax.eval_shape(begin, weights, jax.random.key(0))
    place = jax.tree.leaves(weights)[0].sharding
    if place is None:
        return jax.jit(begin, donate_argnums=0), state, None
    lies = jax.tree.map(lambda x: x.sharding, weights)
    where = mesh.state_shardings(state, weights, lies, place.mesh)
    if "lora" in weights:  # what is shaped like the adapters, their moments, lies as they do
        like = mesh.state_shardings(state, lora.split(weights)[1], lora.split(lies)[1], place.mesh)
        where = dataclasses.replace(like, params=where.params)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
    )
    return jax.jit(begin, out_shardings=where, donate_argnums=0), state, where
