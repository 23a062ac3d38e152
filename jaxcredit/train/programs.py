"""Compiled programs of an experiment, and the composition of a training step from them."""

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
from jaxcredit.collect.batches import Batches
from jaxcredit.collect.dynamic import dynamic_sampling
from jaxcredit.collect.single_turn import Collected, single_turn
from jaxcredit.credit import columns
from jaxcredit.parallel import mesh, params
from jaxcredit.policy import lora, sampler, transformer
from jaxcredit.policy.config import Config
from jaxcredit.policy.fused_attention import choose_attention
from jaxcredit.rollout import FilledRollout, Rollout
from jaxcredit.train.experiment import Experiment, Warmup
from jaxcredit.train.update import TrainState, make_update


class Programs(NamedTuple):
    """Programs of an experiment, each compiled at its first call, and shapes of their arrays."""

    state: (
        TrainState  # shapes, on a mesh with shardings: to restore into, or to lower programs with
    )
    batch: jax.sharding.NamedSharding | None  # sharding of arrays [N, ...]; None on one device
    init: Callable  # key -> TrainState
    begin: Callable  # params, key -> TrainState from existing parameters, which are donated
    reshard_for_sampling: (
        Callable | None
    )  # params -> params resharded for sampling; None: as they are
    draw: Callable  # resharded params, prompt, valid, key, rows, temperature, .. -> as `sample`
    sample: Callable  # params, prompt, valid, key -> tokens, logp, mask, done
    greedy: Callable  # params, prompt, valid, key -> the same, one row per prompt
    logprob: Callable  # params, rollout -> logp, entropy of the response columns; not jitted
    credit: Callable  # rollout -> columns
    update: Callable  # state, rollout, columns -> state, metrics; the state is donated
    learned: dict  # annotators by name
    attention: str  # name of the attention kernel, and the reason if it is not the device's own


class Step(NamedTuple):
    """Functions of a training step after the collection of its rollout, in their order."""

    annotate: Callable[[TrainState, Collected], Rollout]  # the rollout with its signals
    credit: Callable[[Rollout], dict[str, jax.Array]]  # columns: advantage and weights of tokens
    update: Callable[..., tuple[TrainState, dict]]  # state, rollout, columns -> state, metrics


def compose_step(exp: Experiment, programs: Programs) -> Step:
    """Training step of an experiment: annotators, estimator, update of annotators and policy."""
    learned = programs.learned

    def annotate(state: TrainState, collected: Collected) -> Rollout:
        rollout = collected.rollout
        for name, signal in learned.items():
            rollout = signal.annotate(state.aux[name], state, rollout, collected.metas)
        return rollout

    def update(state: TrainState, rollout: Rollout, columns: dict) -> tuple[TrainState, dict]:
        aux, signal_metrics = {}, {}
        for name, signal in learned.items():
            aux[name], metrics = signal.update(state.aux[name], state, rollout, columns)
            signal_metrics |= {f"{name}/{key}": value for key, value in metrics.items()}
        state, metrics = programs.update(dataclasses.replace(state, aux=aux), rollout, columns)
        return state, metrics | signal_metrics

    return Step(annotate, programs.credit, update)


def make_collector(
    exp: Experiment, programs: Programs, batches: Batches
) -> Callable[..., Callable[[], Collected]]:
    """Collector of an experiment's rollouts, `collect(params, key, indices)() -> Collected`.

    See `single_turn`. With `exp.max_sampling_rounds` above 1, further prompts are drawn from
    `batches`: see `dynamic_sampling`.
    """
    collect = single_turn(
        programs.sample,
        exp.tokenizer,
        exp.task,
        group_size=exp.group_size,
        buckets=exp.buckets,
        sharding=programs.batch,
        timeout_s=exp.reward_timeout_s,
        workers=exp.reward_workers,
    )
    if exp.max_sampling_rounds == 1:
        return collect
    return dynamic_sampling(collect, lambda: next(batches), exp.max_sampling_rounds, programs.batch)


def build(exp: Experiment) -> Programs:
    """Programs of an experiment. Nothing is compiled and no array is allocated yet."""
    specs = transformer.specs(exp.policy)
    adapter_specs = {"lora": lora.specs(specs, exp.lora)} if exp.lora else {}
    shardings = _shardings(exp, specs, adapter_specs)
    cfg = exp.policy
    if shardings.mesh:
        cfg = dataclasses.replace(cfg, layout=_layout(shardings.mesh, exp.rules))
    attention, reason = choose_attention(cfg)
    # Stored in the config, so that it does not depend on the devices at compile time.
    cfg = dataclasses.replace(cfg, attention=attention)

    def logprob(weights, rollout: FilledRollout, temperature: float = exp.temperature):
        P = rollout.tokens.shape[-1] - exp.max_new_tokens
        return transformer.logprob(
            weights, rollout.tokens, rollout.token_mask, cfg, prompt=P, temperature=temperature
        )

    def credit(rollout):
        with jax.named_scope("credit"):
            return columns(exp.credit(rollout), rollout)

    learned = {name: make(cfg, logprob) for name, make in exp.signals.items()}
    weights = params.abstract(specs, cfg.param_dtype, shardings.params)
    weights |= params.abstract(adapter_specs, shardings=shardings.adapters)  # float32
    begin, state, state_shardings = _start(weights, exp.optimizer, learned)
    reshard_for_sampling, draw, sample, greedy = _sampler(exp, cfg, shardings)
    return Programs(
        state=state,
        batch=shardings.batch,
        init=_initializer(exp, specs, adapter_specs, shardings, begin, state_shardings),
        begin=begin,
        reshard_for_sampling=reshard_for_sampling,
        draw=draw,
        sample=sample,
        greedy=greedy,
        logprob=logprob,
        credit=_jit(credit, out_shardings=shardings.batch),
        update=_update(exp, logprob, shardings.batch, state_shardings),
        learned=learned,
        attention=f"{attention} ({reason})" if reason else attention,
    )


def supervised_programs(plan: Warmup, programs: Programs) -> tuple[Callable, Callable]:
    """Programs of the warm-up: `begin(params, key) -> TrainState`, and `update` for -log p."""
    begin, _, state_shardings = _start(programs.state.params, plan.optimizer, {})
    logprob = functools.partial(programs.logprob, temperature=1.0)
    update = make_update(
        logprob,
        losses.nll,
        losses.token_mean,
        plan.optimizer,
        sharding=programs.batch,
        state_shardings=state_shardings,
        compiler_options=compiler_options(),
    )
    return begin, update


class _Shardings(NamedTuple):
    """Mesh and shardings of an experiment; all None on one device."""

    mesh: jax.sharding.Mesh | None = None
    params: PyTree = None  # of the policy's parameters during training
    adapters: PyTree = None
    sampling: PyTree = None  # of all parameters during sampling; None: as during training
    batch: jax.sharding.NamedSharding | None = None  # of arrays [N, ...]


def _shardings(exp: Experiment, specs: PyTree, adapter_specs: PyTree) -> _Shardings:
    if not exp.mesh:
        return _Shardings()
    devices = mesh.make(exp.mesh)
    param_shardings = mesh.shardings(specs, exp.rules, devices)
    adapter_shardings = mesh.shardings(adapter_specs, exp.rules, devices)
    batch = mesh.batch_sharding(exp.prompts_per_step, exp.rules, devices)
    mesh.assert_local_batch(batch, exp.prompts_per_step)
    sampling_shardings = None
    if exp.sampling_rules is not None:
        sampling_shardings = mesh.shardings(specs | adapter_specs, exp.sampling_rules, devices)
    return _Shardings(devices, param_shardings, adapter_shardings, sampling_shardings, batch)


def _layout(devices: jax.sharding.Mesh, rules: mesh.Rules) -> mesh.Layout:
    return mesh.Layout(devices, tuple(sorted(rules.items())))


def _jit(function: Callable, **options) -> Callable:
    """`jax.jit` with the compiler options of this device."""
    return jax.jit(function, compiler_options=compiler_options(), **options)


def _sampler(exp: Experiment, cfg: Config, shardings: _Shardings) -> tuple:
    """The programs `reshard_for_sampling`, `draw`, `sample` and `greedy` of `Programs`."""
    reshard, sampling_cfg = None, cfg
    if shardings.sampling is not None:
        assert shardings.mesh is not None and exp.sampling_rules is not None
        sampling_cfg = dataclasses.replace(cfg, layout=_layout(shardings.mesh, exp.sampling_rules))

        def reshard_for_sampling(weights):
            return transformer.cast(weights, cfg)

        reshard = _jit(reshard_for_sampling, out_shardings=shardings.sampling)

    draw = _jit(
        functools.partial(
            sampler.sample,
            cfg=sampling_cfg,
            max_new_tokens=exp.max_new_tokens,
            stop=tuple(exp.tokenizer.stop_ids),
        ),
        static_argnames=("rows", "temperature", "top_k", "top_p"),
        out_shardings=shardings.batch,
    )

    def reshard_and_draw(weights, *args, **options):
        return draw(reshard(weights) if reshard else weights, *args, **options)

    sample = functools.partial(
        reshard_and_draw,
        rows=exp.group_size,
        temperature=exp.temperature,
        top_k=exp.top_k,
        top_p=exp.top_p,
    )
    greedy = functools.partial(reshard_and_draw, rows=1, temperature=0.0)
    return reshard, draw, sample, greedy


def _update(exp: Experiment, logprob: Callable, batch, state_shardings) -> Callable:
    objective = exp.objective
    if exp.sample_ahead:  # answers come from parameters that are one update old
        objective = losses.truncated_importance(objective, sequence=True)
    return make_update(
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
        state_shardings=state_shardings,
        compiler_options=compiler_options(),
    )


def _initializer(
    exp: Experiment,
    specs: PyTree,
    adapter_specs: PyTree,
    shardings: _Shardings,
    begin: Callable,
    state_shardings: PyTree,
) -> Callable:
    """Function from a random key to the first TrainState, with random or loaded parameters."""

    def init(key) -> TrainState:
        weights_key, key = jax.random.split(key)
        if exp.load_params:
            weights = exp.load_params(shardings.params)
        else:
            make = functools.partial(params.init, specs, dtype=exp.policy.param_dtype)
            weights = _jit(make, out_shardings=shardings.params)(weights_key)
        if adapter_specs:
            make = functools.partial(params.init, adapter_specs)
            weights |= _jit(make, out_shardings=shardings.adapters)(
                jax.random.fold_in(weights_key, 0)
            )
        state = begin(weights, key)
        if state_shardings is not None:
            mesh.assert_placed(state, state_shardings)
        return state

    return init


def _start(
    weights: PyTree, optimizer: optax.GradientTransformation, learned: Mapping[str, Any]
) -> tuple[Callable, TrainState, Any]:
    """Program `begin(params, key) -> TrainState`, and that state's shapes and shardings.

    The shardings are None on one device.

    Args:
        weights: shapes of the parameters, on a mesh with shardings.
        optimizer: of the policy.
        learned: annotators by name.
    """

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
    sharding = jax.tree.leaves(weights)[0].sharding
    if sharding is None:
        return jax.jit(begin, donate_argnums=0), state, None
    param_shardings = jax.tree.map(lambda x: x.sharding, weights)
    state_shardings = mesh.state_shardings(state, weights, param_shardings, sharding.mesh)
    if "lora" in weights:  # the optimizer's moments have the tree of the adapters alone
        adapters, adapter_shardings = (lora.split(x)[1] for x in (weights, param_shardings))
        like_adapters = mesh.state_shardings(state, adapters, adapter_shardings, sharding.mesh)
        state_shardings = dataclasses.replace(like_adapters, params=state_shardings.params)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, state_shardings
    )
    return jax.jit(begin, out_shardings=state_shardings, donate_argnums=0), state, state_shardings


def compiler_options() -> dict | None:
    """Compiler options of the programs for the available devices; None: the defaults.

    On a CPU, LLVM's optimization level 2 compiles faster than the default level 3. The programs are
    as fast, and their results differ at most in the last bit. An optimization level set in
    XLA_FLAGS takes precedence.
    """
    level = "xla_backend_optimization_level"
    if mesh.available()[0].platform != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return None
    return {level: 2}
