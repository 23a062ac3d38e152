"""From a rollout and its credit to the next parameters: minibatches, accumulation and one optimizer step each, as one compiled program."""

import dataclasses
import functools
from collections.abc import Callable

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
    """All that a run must remember of its learning; the data iterator's place is saved beside it."""

    params: PyTree[Array]
    opt_state: PyTree[Array]
    aux: dict[str, PyTree[Array]]  # states of learned signals, by name
    key: UInt32[
        Array, "2"
    ]  # jax.random.key_data; never changes, so that step t draws the same after a restart
    step: Int[Array, ""]  # rollouts learned from


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
    where: PyTree = None,
    compiler_options: dict | None = None,
) -> Callable[[TrainState, Rollout, Columns | Array], tuple[TrainState, dict[str, Array]]]:
    """update(state, rollout, credit) -> (state, metrics), jitted; the state given is donated, and the metrics stay on the device.

    Where the parameters have adapters (policy.lora), only these move. Rollouts are as `Rollout.check` wants them, which is not called here:
    a policy mispredicts rows whose valid columns have holes.

    theta <- optimizer(sum of gradients of aggregate's numerators / sum of its denominators), once a minibatch.

    `logprob(params, rollout)` gives {"logp", "entropy"} of the last S columns, and all else is cut to those. `minibatch`: prompts an
    optimizer step (all), shuffled every epoch; `micro_batch`: prompts a forward and backward (the minibatch), added up in float32. `sharding`
    places the prompts' axis of what a forward sees; without it the compiler follows the rollout, which is right while nothing is shuffled.
    `where`, from mesh.state_shardings, keeps the state where it lies; `compiler_options` are jax.jit's. A step whose gradient or change is
    not finite is skipped and counted. With a single optimizer step the old log-probabilities are that step's own, and the ratio is 1; with
    several they are computed once, before the first.
    """

    def place(tree):
        return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)

    def numerator(still, params, data):
        rollout, columns, old = place(data)
        out = logprob(lora.join(still, params), rollout)
        logp, entropy = out["logp"], out["entropy"]
        batch = _batch(rollout, columns, jax.lax.stop_gradient(logp) if old is None else old)
        loss = objective(logp, batch)
        if beta:
            loss = loss + beta * kl(logp, batch)
        if entropy_bonus:
            loss = loss - entropy_bonus * entropy
        total, count = aggregate(loss, batch)
        facts = _facts(objective, *jax.lax.stop_gradient((logp, entropy)), batch)
        facts["sum"] |= {"total": total, "count": count}
        return total, facts

    lies = None if where is None else lora.split(where.params)[1]

    def step(still, carry, data, pieces):
        params, opt_state = carry
        gradient, facts = _gradient(functools.partial(numerator, still), params, data, pieces, lies)
        norm = optax.tree.norm(gradient)
        change, moved = optimizer.update(gradient, opt_state, params)
        length = optax.tree.norm(change)
        good = jnp.isfinite(norm) & jnp.isfinite(length)
        size = jnp.where(good, length, 0)

        def keep(new, old):
            return jnp.where(good, new, old).astype(old.dtype)

        carry = (
            jax.tree.map(keep, optax.apply_updates(params, change), params),
            jax.tree.map(keep, moved, opt_state),
        )
        loss = divide(facts["sum"].pop("total"), facts["sum"].pop("count"))
        return carry, {
            **facts,
            "mean": {"loss": loss, "grad_norm": norm, "update_norm": size},
            "skipped": ~good,
        }

    def update(state, rollout, credit):
        N = rollout.tokens.shape[0]
        M, m = _sizes(N, minibatch, micro_batch, sharding)
        rollout = rollout.filled()
        data = (rollout, as_columns(credit, rollout), None)
        still, trained = lora.split(state.params)
        carry = trained, state.opt_state
        if epochs * N == M:
            carry, facts = step(still, carry, data, M // m)
            facts = jax.tree.map(lambda x: x[None], facts)
        else:
            old = jax.lax.map(
                lambda piece: logprob(state.params, place(piece))["logp"],
                split_strided(rollout, N // m),
            )
            data = (*data[:2], jax.lax.stop_gradient(join_strided(old, N)))
            key = jax.random.fold_in(
                jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step), 1
            )
            order = jnp.argsort(jax.random.uniform(key, (epochs, N)), axis=-1).reshape(-1, M)

            def one(carry, chosen):  # the order of a whole batch does not matter
                return step(
                    still,
                    carry,
                    data if M == N else jax.tree.map(lambda x: x[chosen], data),
                    M // m,
                )

            carry, facts = jax.lax.scan(one, carry, order)
        return dataclasses.replace(
            state, params=lora.join(still, carry[0]), opt_state=carry[1], step=state.step + 1
        ), _metrics(facts)

    return jax.jit(
        update,
        donate_argnums=0,
        out_shardings=None if where is None else (where, None),
        compiler_options=compiler_options,
    )


def _sizes(N, minibatch, micro_batch, sharding):
    M = minibatch or N
    m = micro_batch or M
    if N % M or M % m:
        raise ValueError(
            f"{N} prompts a rollout, {M} a minibatch, {m} a micro-batch: make each a multiple of the next, so that no prompt is left over"
        )
    shards = 1 if sharding is None else N // sharding.shard_shape((N,))[0]
    if m % shards:
        raise ValueError(
            f"a pass over {m} prompts leaves some of {shards} shards of the prompts without: make micro_batch a multiple of {shards}"
        )
    return M, m


def _gradient(loss, params, data, pieces, lies):
    """sum of gradients / sum of counts over the pieces of the data, added up in float32. `lies`: shardings of the parameters, or None."""

    def placed(tree):
        return tree if lies is None else jax.lax.with_sharding_constraint(tree, lies)

    def one(piece):
        g, facts = jax.grad(loss, has_aux=True)(params, piece)
        return placed(jax.tree.map(lambda g: g.astype(jnp.float32), g)), facts

    def add(total, piece):
        g, facts = one(piece)
        return jax.tree.map(jnp.add, total, g), facts

    if pieces == 1:
        total, facts = one(data)
    else:
        zero = placed(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
        total, facts = jax.lax.scan(add, zero, split_strided(data, pieces))
        facts = {
            "sum": jax.tree.map(lambda x: x.sum(0), facts["sum"]),
            "max": jax.tree.map(lambda x: x.max(0), facts["max"]),
        }
    count = facts["sum"]["count"]
    share = divide(jnp.ones_like(count), count)
    return jax.tree.map(lambda g, p: (g * share).astype(p.dtype), total, params), facts


def _batch(rollout, columns, old):
    S = old.shape[-1]
    cut = {
        name: x[..., -S:]
        for name, x in {
            **columns,
            "action_mask": rollout.action_mask,
            "segment": rollout.segment,
        }.items()
    }
    fields = {f.name for f in dataclasses.fields(Batch)}
    ref = rollout.signals.get("ref_logp")
    return Batch(
        logp=old,
        sampler_logp=rollout.logp[..., -S:],
        ref_logp=None if ref is None else ref[..., -S:],
        **{name: x for name, x in cut.items() if name in fields},
    )


def _facts(objective, logp, entropy, batch):
    """Sums and maxima over the tokens that count; the caller adds them up over micro-batches, minibatches and epochs."""
    active = batch.action_mask & (batch.weight > 0)

    def total(x):
        return jnp.sum(jnp.where(active, x, 0), dtype=jnp.float32)

    def top(x):
        return jnp.max(jnp.where(active, x, 0), initial=0).astype(jnp.float32)

    # A clipped token is one that wants to move and that the objective holds: its loss has no gradient. This asks any objective alike.
    held = (jax.grad(lambda x: jnp.sum(objective(x, batch)))(logp) == 0) & (batch.advantage != 0)
    gap = jnp.abs(batch.logp - batch.sampler_logp)
    sums = {
        "tokens": total(1),
        "mask": jnp.sum(batch.action_mask, dtype=jnp.float32),
        "entropy": total(entropy),
        "clip_fraction": total(held),
    }
    sums |= {"sampler_logp_diff": total(gap), "advantage_rms": total(batch.advantage**2)}
    if batch.ref_logp is not None:
        sums["kl"] = total(k3(logp, batch))
    return {
        "sum": sums,
        "max": {
            "sampler_logp_diff_max": top(gap),
            "ratio_max": top(jnp.exp(jnp.clip(logp - batch.logp, -20, 20))),
        },
    }


def _metrics(facts):
    """Scalars out of the facts of all optimizer steps [steps]."""
    sums = jax.tree.map(lambda x: x.sum(0), facts["sum"])
    tokens, mask = sums.pop("tokens"), sums.pop("mask")
    means = jax.tree.map(lambda x: divide(x, tokens), sums)
    return {
        **jax.tree.map(lambda x: x.mean(0), facts["mean"]),
        **means,
        **jax.tree.map(lambda x: x.max(0), facts["max"]),
        "advantage_rms": jnp.sqrt(means["advantage_rms"]),
        "active_token_fraction": divide(tokens, mask),
        "skipped": facts["skipped"].sum(dtype=jnp.float32),
    }
