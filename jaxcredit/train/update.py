"""Policy update: gradient accumulation over microbatches, one optimizer step per minibatch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, UInt32

from jaxcredit.credit import Columns
from jaxcredit.credit import columns as as_columns
from jaxcredit.losses import Aggregate, Batch, Objective, divide, k3
from jaxcredit.parallel.chunks import join_strided, split_strided
from jaxcredit.policy import lora
from jaxcredit.rollout import FilledRollout, Rollout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Training state of a run. A checkpoint stores it, with the position of the batch iterator."""

    params: PyTree[Array]
    opt_state: PyTree[Array]
    aux: dict[str, PyTree[Array]]  # states of annotators, by name
    key: UInt32[Array, "2"]  # jax.random.key_data of the run's key, which does not change
    step: Int[Array, ""]  # number of updates so far


class Stats(NamedTuple):
    """Statistics of tokens, by metric, to be reduced over microbatches, minibatches and epochs."""

    sums: dict[str, Array]
    maxima: dict[str, Array]

    def reduce(self) -> "Stats":
        """Sums and maxima over the leading axis."""
        return Stats(
            jax.tree.map(lambda x: x.sum(0), self.sums),
            jax.tree.map(lambda x: x.max(0), self.maxima),
        )


class _Moments(NamedTuple):
    """Scalars of one optimizer step."""

    loss: Array
    grad_norm: Array
    update_norm: Array
    skipped: Array  # true if a gradient or update was not finite


def make_update(
    logprob: Callable[[PyTree, FilledRollout], dict[str, Float[Array, "N R S"]]],
    objective: Objective,
    aggregate: Aggregate,
    optimizer: optax.GradientTransformation,
    *,
    kl: Objective = k3,
    beta: float = 0.0,
    entropy_bonus: float = 0.0,
    minibatch: int | None = None,
    micro_batch: int | None = None,
    epochs: int = 1,
    sharding: jax.sharding.NamedSharding | None = None,
    state_shardings: PyTree = None,
    compiler_options: dict | None = None,
) -> Callable[[TrainState, Rollout, Columns | Array], tuple[TrainState, dict[str, Array]]]:
    """Compiled policy update, `update(state, rollout, credit) -> (state, metrics)`.

    For each minibatch, the gradient is the sum of the gradients of the aggregate's numerators,
    divided by the sum of its denominators. A step whose gradient or update is not finite changes
    nothing and is counted in the metric `skipped`. With LoRA adapters (policy.lora), only the
    adapters are trained. With a single optimizer step, the old log-probabilities are those of that
    step, so that the importance ratio is 1. With several, they are computed once, before the first.

    The argument `state` is donated. The metrics are arrays on the device. The rollout must satisfy
    `Rollout.check`, which is not called here: a policy mispredicts rows with holes in their
    `token_mask`.

    Args:
        logprob: `logprob(params, rollout)` gives `logp` and `entropy` of the last S columns; the
            loss uses these columns only.
        objective: loss of a token.
        aggregate: reduction of the losses to a numerator and a denominator.
        optimizer: an optax transformation.
        kl: estimator of the KL divergence from the reference policy, weighted by `beta`.
        beta: weight of `kl`, at least 0; above 0, the rollout must have the signal `ref_logp`.
        entropy_bonus: weight of the entropy, at least 0.
        minibatch: prompts per optimizer step, shuffled in every epoch; None: all.
        micro_batch: prompts per forward and backward pass; None: the minibatch. Gradients are
            accumulated in float32.
        epochs: passes over the rollout.
        sharding: sharding of arrays [N, ...] in the forward pass; None: chosen by the compiler,
            which is right without shuffling.
        state_shardings: shardings of the TrainState, from `mesh.state_shardings`; None on one
            device.
        compiler_options: those of `jax.jit`.
    """
    param_shardings = None if state_shardings is None else lora.split(state_shardings.params)[1]

    def constrain(tree):
        return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)

    def numerator(frozen, trainable, data):
        """Sum of the losses over a microbatch, with (that sum, its denominator, statistics)."""
        rollout, columns, old = constrain(data)
        with jax.named_scope("forward"):
            out = logprob(lora.join(frozen, trainable), rollout)
        with jax.named_scope("loss"):
            logp, entropy = out["logp"], out["entropy"]
            batch = _batch(rollout, columns, jax.lax.stop_gradient(logp) if old is None else old)
            loss = objective(logp, batch)
            if beta:
                loss = loss + beta * kl(logp, batch)
            if entropy_bonus:
                loss = loss - entropy_bonus * entropy
            total, count = aggregate(loss, batch)
            stats = _token_stats(objective, *jax.lax.stop_gradient((logp, entropy)), batch)
        return total, (total, count, stats)

    def optimizer_step(frozen, carry, data, pieces):
        trainable, opt_state = carry
        with jax.named_scope("gradient"):
            gradient, loss, stats = _gradient(
                functools.partial(numerator, frozen), trainable, data, pieces, param_shardings
            )
        with jax.named_scope("optimizer"):
            grad_norm = optax.tree.norm(gradient)
            change, new_opt_state = optimizer.update(gradient, opt_state, trainable)
            update_norm = optax.tree.norm(change)
            finite = jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)

            def select_if_finite(new, old):
                return jnp.where(finite, new, old).astype(old.dtype)

            carry = (
                jax.tree.map(select_if_finite, optax.apply_updates(trainable, change), trainable),
                jax.tree.map(select_if_finite, new_opt_state, opt_state),
            )
        moments = _Moments(loss, grad_norm, jnp.where(finite, update_norm, 0), ~finite)
        return carry, (moments, stats)

    def update(state, rollout, credit):
        N = rollout.tokens.shape[0]
        M, m = _sizes(N, minibatch, micro_batch, sharding)
        rollout = rollout.filled()
        columns = as_columns(credit, rollout)
        frozen, trainable = lora.split(state.params)
        carry = trainable, state.opt_state
        if epochs * N == M:
            carry, outputs = optimizer_step(frozen, carry, (rollout, columns, None), M // m)
            outputs = jax.tree.map(lambda x: x[None], outputs)
        else:
            with jax.named_scope("old_logp"):
                old = jax.lax.map(
                    lambda piece: logprob(state.params, constrain(piece))["logp"],
                    split_strided(rollout, N // m),
                )
                old = jax.lax.stop_gradient(join_strided(old, N))
            data = rollout, columns, old
            key = jax.random.wrap_key_data(state.key)
            key = jax.random.fold_in(jax.random.fold_in(key, state.step), 1)
            order = jnp.argsort(jax.random.uniform(key, (epochs, N)), axis=-1).reshape(-1, M)

            def step_on(carry, prompts):
                if M == N:  # the order within a whole batch does not matter
                    return optimizer_step(frozen, carry, data, M // m)
                shuffled = jax.tree.map(lambda x: x[prompts], data)
                return optimizer_step(frozen, carry, shuffled, M // m)

            carry, outputs = jax.lax.scan(step_on, carry, order)
        trainable, opt_state = carry
        moments, stats = outputs
        state = dataclasses.replace(
            state,
            params=lora.join(frozen, trainable),
            opt_state=opt_state,
            step=state.step + 1,
        )
        return state, _metrics(moments, stats)

    return jax.jit(
        update,
        donate_argnums=0,
        out_shardings=None if state_shardings is None else (state_shardings, None),
        compiler_options=compiler_options,
    )


def _sizes(N, minibatch, micro_batch, sharding):
    """Prompts per minibatch and per microbatch, or a ValueError if they do not fit N."""
    M = minibatch or N
    m = micro_batch or M
    if N % M or M % m:
        raise ValueError(
            f"{N} prompts a rollout, {M} a minibatch, {m} a micro-batch: make each a multiple of "
            "the next, so that no prompt is left over"
        )
    shards = 1 if sharding is None else N // sharding.shard_shape((N,))[0]
    if m % shards:
        raise ValueError(
            f"a pass over {m} prompts leaves some of {shards} shards of the prompts without: make "
            f"micro_batch a multiple of {shards}"
        )
    return M, m


def _gradient(numerator, params, data, pieces, param_shardings):
    """Gradient, loss and statistics of a minibatch, accumulated over microbatches in float32.

    Gradient and loss are sums of numerators over the sum of the denominators.
    """

    def constrain(tree):
        if param_shardings is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, param_shardings)

    def piece_gradient(piece):
        gradient, outputs = jax.grad(numerator, has_aux=True)(params, piece)
        return constrain(jax.tree.map(lambda g: g.astype(jnp.float32), gradient)), outputs

    def accumulate(total, piece):
        gradient, outputs = piece_gradient(piece)
        return jax.tree.map(jnp.add, total, gradient), outputs

    if pieces == 1:
        gradient, (total, count, stats) = piece_gradient(data)
    else:
        zeros = constrain(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
        gradient, (total, count, stats) = jax.lax.scan(
            accumulate, zeros, split_strided(data, pieces)
        )
        total, count, stats = total.sum(0), count.sum(0), stats.reduce()
    scale = divide(jnp.ones_like(count), count)
    gradient = jax.tree.map(lambda g, p: (g * scale).astype(p.dtype), gradient, params)
    return gradient, divide(total, count), stats


def _batch(rollout, columns, old):
    """Last S columns of rollout and credit, with the old log-probabilities [N, R, S]."""
    S = old.shape[-1]
    fields = {
        **columns,
        "action_mask": rollout.action_mask,
        "segment": rollout.segment,
    }
    known = {field.name for field in dataclasses.fields(Batch)}
    ref_logp = rollout.signals.get("ref_logp")
    return Batch(
        logp=old,
        sampler_logp=rollout.logp[..., -S:],
        ref_logp=None if ref_logp is None else ref_logp[..., -S:],
        **{name: x[..., -S:] for name, x in fields.items() if name in known},
    )


def _token_stats(objective, logp, entropy, batch) -> Stats:
    """Sums and maxima over the tokens with a positive weight in the loss."""
    active = batch.action_mask & (batch.weight > 0)

    def total(x):
        return jnp.sum(jnp.where(active, x, 0), dtype=jnp.float32)

    def largest(x):
        return jnp.max(jnp.where(active, x, 0), initial=0).astype(jnp.float32)

    # A token counts as clipped if its advantage is non-zero but its loss has no gradient. This
    # definition holds for any objective.
    gradient = jax.grad(lambda x: jnp.sum(objective(x, batch)))(logp)
    clipped = (gradient == 0) & (batch.advantage != 0)
    gap = jnp.abs(batch.logp - batch.sampler_logp)
    sums = {
        "tokens": total(1),
        "mask": jnp.sum(batch.action_mask, dtype=jnp.float32),
        "entropy": total(entropy),
        "clip_fraction": total(clipped),
        "sampler_logp_diff": total(gap),
        "advantage_rms": total(batch.advantage**2),
    }
    if batch.ref_logp is not None:
        sums["kl"] = total(k3(logp, batch))
    ratio = jnp.exp(jnp.clip(logp - batch.logp, -20, 20))
    return Stats(sums, {"sampler_logp_diff_max": largest(gap), "ratio_max": largest(ratio)})


def _metrics(moments: _Moments, stats: Stats) -> dict[str, Array]:
    """Metrics of an update, from the scalars and statistics of its optimizer steps [steps]."""
    sums, maxima = stats.reduce()
    tokens, mask = sums["tokens"], sums["mask"]
    means = {name: divide(x, tokens) for name, x in sums.items() if name not in ("tokens", "mask")}
    return {
        "loss": moments.loss.mean(0),
        "grad_norm": moments.grad_norm.mean(0),
        "update_norm": moments.update_norm.mean(0),
        **means,
        **maxima,
        "advantage_rms": jnp.sqrt(means["advantage_rms"]),
        "active_token_fraction": divide(tokens, mask),
        "skipped": moments.skipped.sum(dtype=jnp.float32),
    }
