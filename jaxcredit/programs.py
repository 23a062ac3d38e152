"""The compiled programs of an experiment: init, sample, greedy, credit, update, and where their arrays lie."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcredit import losses, mesh, params
from jaxcredit.credit import columns
from jaxcredit.experiment import Experiment
from jaxcredit.policy import decode, transformer
from jaxcredit.rollout import Rollout
from jaxcredit.update import TrainState, make_update


class Programs(NamedTuple):
    """What `train`, `eval` and `plan` share."""

    where: TrainState | None  # shardings of the state; None on one device
    batch: jax.sharding.Sharding | None  # of arrays [N, ...]
    shapes: Any  # of the parameters, with their shardings: to plan with, or to restore into
    init: Callable  # key -> TrainState
    sample: Callable  # params, prompt, valid, key -> tokens, logp, mask, done
    greedy: Callable  # params, prompt, valid, key -> the same, one row a prompt
    logprob: Callable  # params, rollout -> logp, entropy of the response columns
    credit: Callable  # rollout -> columns
    update: Callable  # state, rollout, columns -> state, metrics
    learned: dict  # annotators by name


def build(exp: Experiment) -> Programs:
    """Nothing is compiled or placed yet; every program compiles at its first call."""
    cfg = exp.policy
    specs = transformer.specs(cfg)
    stop = tuple(exp.tokenizer.stop_ids)
    sample = functools.partial(decode.sample, cfg=cfg, new=exp.new, stop=stop)

    def logprob(weights, rollout: Rollout, temperature: float = exp.temperature):
        P = rollout.tokens.shape[-1] - exp.new
        return transformer.logprob(weights, rollout.tokens, rollout.valid, cfg, prompt=P, temperature=temperature)

    def begin(weights, key) -> TrainState:
        aux = {name: signal.init(jax.random.fold_in(key, i), weights) for i, (name, signal) in enumerate(sorted(learned.items()))}
        return TrainState(weights, exp.optimizer.init(weights), aux, jax.random.key_data(key), jnp.int32(0))

    learned = {name: make(cfg, logprob) for name, make in exp.signals.items()}
    shapes = params.abstract(specs, cfg.param_dtype)
    where = batch = None
    if exp.mesh:
        devices = mesh.make(dict(exp.mesh))
        lies = mesh.shardings(specs, exp.rules, devices)
        state = jax.eval_shape(begin, shapes, jax.random.key(0))
        where = mesh.state_shardings(state, shapes, lies, devices)
        batch = mesh.batch(exp.prompts, exp.rules, devices)
    begin = jax.jit(begin, out_shardings=where, donate_argnums=0)

    def init(key) -> TrainState:
        weights_key, key = jax.random.split(key)
        lies = where.params if where else None
        if exp.weights:
            weights = exp.weights(lies)
        else:
            weights = jax.jit(functools.partial(params.init, specs, dtype=cfg.param_dtype), out_shardings=lies)(weights_key)
        return begin(weights, key)

    return Programs(
        where=where,
        batch=batch,
        shapes=params.abstract(specs, cfg.param_dtype, where.params if where else None),
        init=init,
        sample=functools.partial(sample, rows=exp.group, temperature=exp.temperature, top_k=exp.top_k, top_p=exp.top_p),
        greedy=functools.partial(sample, rows=1, temperature=0.0),
        logprob=logprob,
        credit=jax.jit(lambda rollout: columns(exp.credit(rollout), rollout)),
        update=make_update(
            logprob,
            exp.objective,
            exp.aggregate,
            exp.optimizer,
            kl=exp.kl,
            beta=exp.beta,
            minibatch=exp.minibatch,
            micro=exp.micro,
            epochs=exp.epochs,
        ),
        learned=learned,
    )


def supervise(exp: Experiment, logprob: Callable) -> Callable:
    """The update of the warm-up: the log-likelihood of demonstrations, by the same program as the policy's update."""
    return make_update(functools.partial(logprob, temperature=1.0), losses.nll, losses.token_mean, exp.warmup.optimizer)
