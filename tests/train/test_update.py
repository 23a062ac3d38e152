"""The update: independence of shards, micro-batches and padding; number of optimizer steps; skipped
non-finite steps.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparisons import assert_trees_close
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcredit import losses
from jaxcredit.parallel import mesh
from jaxcredit.rollout import Rollout
from jaxcredit.train.update import TrainState, make_update

V, D, N, R, T, S = 11, 8, 16, 3, 9, 6
AGGREGATES = {
    "token_mean": losses.token_mean,
    "sequence_mean": losses.sequence_mean,
    "sequence_sum": losses.sequence_sum,
    "constant": losses.constant(S),
}


def logprob(params, rollout):
    """A bigram policy: log-probabilities, entropies and gradients depend on all tokens."""
    hidden = jnp.tanh(params["embed"][rollout.tokens[..., :-1]] @ params["mix"])
    logits = jax.nn.log_softmax((hidden @ params["out"]).astype(jnp.float32))[..., -S:, :]
    logp = jnp.take_along_axis(logits, rollout.tokens[..., -S:, None], -1)[..., 0]
    return {"logp": logp, "entropy": -(jnp.exp(logits) * logits).sum(-1)}


def a_policy(seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"embed": (V, D), "mix": (D, D), "out": (D, V)}
    return {
        name: jax.random.normal(k, s, dtype)
        for (name, s), k in zip(shapes.items(), keys, strict=True)
    }


def a_rollout(seed=0):
    """Ragged answers, none for one prompt. Unequal lengths expose a mean of means."""
    rng = np.random.default_rng(seed)
    length = rng.integers(0, S + 1, (N, R, 1))
    length[3] = 0
    at = np.arange(T) - (T - S)
    mask = (at >= 0) & (at < length)
    rollout = Rollout(
        tokens=jnp.asarray(rng.integers(0, V, (N, R, T)), jnp.int32),
        action_mask=jnp.asarray(mask),
        logp=jnp.asarray(rng.normal(-2, 0.5, (N, R, T)), jnp.float32),
        segment=jnp.where(jnp.asarray(mask), 0, -1),
        reward=jnp.asarray(rng.normal(size=(N, R, 1)), jnp.float32),
        segment_mask=jnp.ones((N, R, 1), bool),
        signals={"ref_logp": jnp.asarray(rng.normal(-2, 0.5, (N, R, T)), jnp.float32)},
    )
    return rollout, jnp.asarray(np.where(mask, rng.normal(size=(N, R, T)), 0), jnp.float32)


def begin(params, optimizer):
    return TrainState(
        params, optimizer.init(params), {}, jax.random.key_data(jax.random.key(5)), jnp.int32(0)
    )


def run(update, optimizer, rollout, credit, params=None, *, steps=1):
    state = begin(a_policy() if params is None else params, optimizer)
    for _ in range(steps):
        state, metrics = update(state, rollout, credit)
    return jax.tree.map(np.asarray, state), {name: float(x) for name, x in metrics.items()}


def eight():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    devices = Mesh(np.array(jax.devices()[:8]), ("fsdp",), axis_types=(AxisType.Auto,))
    cut, whole = NamedSharding(devices, P("fsdp")), NamedSharding(devices, P())
    return devices, cut, whole


@pytest.mark.parametrize(
    "aggregate",
    [
        pytest.param(f, id=name, marks=() if name == "token_mean" else pytest.mark.slow)
        for name, f in AGGREGATES.items()
    ],
)
def test_micro_batches_and_shards_change_nothing(aggregate):
    rollout, credit = a_rollout()
    make = functools.partial(
        make_update, logprob, losses.gspo, aggregate, optax.sgd(0.5), beta=0.3, entropy_bonus=0.01
    )
    whole, facts = run(make(), optax.sgd(0.5), rollout, credit)
    pieces, again = run(make(micro_batch=2), optax.sgd(0.5), rollout, credit)
    assert_trees_close(whole, pieces)
    assert_trees_close(facts, again, 1e-5)

    _, cut, everywhere = eight()
    params = {
        k: jax.device_put(x, cut if x.shape[0] % 8 == 0 else everywhere)
        for k, x in a_policy().items()
    }
    sharded, third = run(
        make(micro_batch=8, sharding=cut),
        optax.sgd(0.5),
        *jax.device_put((rollout, credit), cut),
        params,
    )
    assert_trees_close(whole, sharded)
    assert_trees_close(facts, third, 1e-5)


def test_minibatches_and_epochs_are_the_same_on_eight_devices_and_nothing_moves_or_compiles_again():
    rollout, credit = a_rollout()
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    make = functools.partial(
        make_update, logprob, losses.ppo_clip, losses.token_mean, optimizer, minibatch=8, epochs=2
    )
    one, facts = run(make(micro_batch=4), optimizer, rollout, credit, steps=2)

    devices, cut, everywhere = eight()
    lies = {k: cut if x.shape[0] % 8 == 0 else everywhere for k, x in a_policy().items()}
    state = begin(a_policy(), optimizer)
    where = mesh.state_shardings(state, a_policy(), lies, devices)
    state, data = jax.device_put(state, where), jax.device_put((rollout, credit), cut)
    update = make(sharding=cut)
    for _ in range(2):
        state, metrics = update(state, *data)
        mesh.assert_placed(state, where)
    assert update._cache_size() == 1
    assert_trees_close(one, jax.tree.map(np.asarray, state), 1e-5)
    assert_trees_close(facts, {name: float(x) for name, x in metrics.items()}, 1e-4)


def test_every_device_does_its_share_of_a_micro_batch():
    """The compiled forward of 8 prompts has 1 prompt a device: no gather by shuffling or slicing."""
    seen = []

    def watched(params, rollout):
        jax.debug.inspect_array_sharding(
            rollout.tokens, callback=lambda s: seen.append(s.shard_shape(rollout.tokens.shape)[0])
        )
        return logprob(params, rollout)

    _, cut, everywhere = eight()
    rollout, credit = jax.device_put(a_rollout(), cut)
    for minibatch, epochs in ((None, 1), (8, 2)):
        update = make_update(
            watched,
            losses.ppo_clip,
            losses.token_mean,
            optax.sgd(1.0),
            minibatch=minibatch,
            micro_batch=8,
            epochs=epochs,
            sharding=cut,
        )
        run(update, optax.sgd(1.0), rollout, credit, jax.device_put(a_policy(), everywhere))
    assert seen and set(seen) == {1}


def test_the_stated_number_of_steps_over_whole_prompts_each_once_an_epoch():
    rollout, credit = a_rollout()
    optimizer = optax.adam(1e-2)
    for minibatch, epochs, micro, steps in ((None, 3, None, 3), (8, 3, 4, 6)):
        update = make_update(
            logprob,
            losses.ppo_clip,
            losses.token_mean,
            optimizer,
            minibatch=minibatch,
            epochs=epochs,
            micro_batch=micro,
        )
        state, _ = run(update, optimizer, rollout, credit)
        assert state.opt_state[0].count == steps and state.step == 1


@pytest.mark.slow
def test_minibatches_are_a_permutation_that_changes_with_the_step():
    """With SGD and a constant gradient the parameters sum over the prompts: each is used once an
    epoch.
    """
    rollout, credit = a_rollout()

    def linear(params, rollout):
        return {
            "logp": params["w"] * rollout.tokens[..., -S:],
            "entropy": 0.0 * rollout.tokens[..., -S:],
        }  # noqa: E731

    full = dataclasses.replace(rollout, action_mask=jnp.arange(T) * jnp.ones((N, R, 1)) >= T - S)
    credit = jnp.ones((N, R, T))
    optimizer = optax.trace(1.0)  # the sum of all gradients so far, in the state
    make = functools.partial(make_update, linear, losses.reinforce, losses.token_mean, optimizer)
    whole, _ = run(make(), optimizer, full, credit, {"w": jnp.float32(1)})
    parts, _ = run(make(minibatch=2), optimizer, full, credit, {"w": jnp.float32(1)})
    assert_trees_close(parts.opt_state.trace["w"] / (N // 2), whole.opt_state.trace["w"])

    decayed = optax.trace(0.5)  # now the order shows
    make = functools.partial(
        make_update, linear, losses.reinforce, losses.token_mean, decayed, minibatch=2
    )
    traces = []
    for step in (0, 0, 1):
        state = dataclasses.replace(begin({"w": jnp.float32(1)}, decayed), step=jnp.int32(step))
        traces.append(float(make()(state, full, credit)[0].opt_state.trace["w"]))
    assert traces[0] == traces[1] != traces[2]


def test_one_step_has_ratio_one_and_several_steps_keep_the_first_log_probabilities():
    rollout, credit = a_rollout()
    update = make_update(logprob, losses.ppo_clip, losses.token_mean, optax.sgd(1.0))
    _, metrics = run(update, optax.sgd(1.0), rollout, credit)
    assert metrics["ratio_max"] == 1 and metrics["clip_fraction"] == 0

    update = make_update(
        logprob, losses.ppo_clip, losses.token_mean, optax.sgd(1.0), epochs=2, micro_batch=4
    )
    state, metrics = run(update, optax.sgd(1.0), rollout, credit)
    ones = jnp.ones((N, R, S))
    params = a_policy()
    old = logprob(params, rollout)["logp"]
    batch = losses.Batch(
        rollout.action_mask[..., -S:], old, credit[..., -S:], ones, ones, rollout.segment[..., -S:]
    )
    ratio = 1.0
    for _ in range(2):

        def loss(p, batch=batch):
            return losses.divide(
                *losses.token_mean(losses.ppo_clip(logprob(p, rollout)["logp"], batch), batch)
            )

        ratio = jnp.max(
            jnp.where(batch.action_mask, jnp.exp(logprob(params, rollout)["logp"] - old), 0)
        )
        params = jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params))
    assert_trees_close(state.params, params, 1e-5)
    assert (
        metrics["ratio_max"] == pytest.approx(float(ratio), rel=1e-4)
        and ratio > 1.05
        and metrics["clip_fraction"] > 0
    )


def test_metrics_are_what_they_are_called():
    rollout, credit = a_rollout()
    weight = jnp.asarray(np.random.default_rng(1).integers(0, 2, (N, R, T)), jnp.float32)
    update = make_update(
        logprob,
        losses.reinforce,
        losses.token_mean,
        optax.sgd(0.5),
        beta=0.2,
        kl=losses.k2,
        micro_batch=4,
    )
    state, metrics = run(update, optax.sgd(0.5), rollout, {"advantage": credit, "weight": weight})

    out = jax.tree.map(np.asarray, logprob(a_policy(), rollout))
    on = np.asarray(rollout.action_mask & (weight > 0))[..., -S:]
    logp, A, ref, sampler = (
        np.asarray(x)[..., -S:][on]
        for x in (out["logp"], credit, rollout["ref_logp"], rollout.logp)
    )
    moved = np.sqrt(
        sum(np.sum((state.params[k] - np.asarray(p)) ** 2) for k, p in a_policy().items())
    )
    expected = {
        "loss": np.mean(-A * logp + 0.2 * 0.5 * (logp - ref) ** 2),
        "entropy": out["entropy"][on].mean(),
        "kl": np.minimum(np.exp(ref - logp) - (ref - logp) - 1, 10).mean(),
        "sampler_logp_diff": np.abs(logp - sampler).mean(),
        "sampler_logp_diff_max": np.abs(logp - sampler).max(),
        "advantage_rms": np.sqrt((A**2).mean()),
        "active_token_fraction": on.sum() / np.asarray(rollout.action_mask).sum(),
        "update_norm": moved,
        "grad_norm": moved / 0.5,
        "ratio_max": 1.0,
        "clip_fraction": 0.0,
        "skipped": 0.0,
    }
    assert metrics == pytest.approx(expected, rel=1e-4)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted_and_the_run_goes_on():
    rollout, credit = a_rollout()
    optimizer = optax.adam(1e-2)
    update = make_update(logprob, losses.reinforce, losses.token_mean, optimizer)
    before = jax.tree.map(np.asarray, begin(a_policy(), optimizer))
    state, metrics = update(begin(a_policy(), optimizer), rollout, credit.at[0, 0].set(jnp.nan))
    assert metrics["skipped"] == 1 and metrics["update_norm"] == 0 and state.step == 1
    jax.tree.map(
        np.testing.assert_array_equal,
        (before.params, before.opt_state),
        (state.params, state.opt_state),
    )
    state, metrics = update(state, rollout, credit)
    assert metrics["skipped"] == 0 and metrics["update_norm"] > 0 and np.isfinite(metrics["loss"])

    minibatches = make_update(logprob, losses.reinforce, losses.token_mean, optimizer, minibatch=4)
    state, metrics = minibatches(
        begin(a_policy(), optimizer),
        rollout,
        credit.at[int(rollout.action_mask.any((1, 2)).argmax())].set(jnp.nan),
    )
    assert metrics["skipped"] == 1 and state.opt_state[0].count == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_a_change_that_is_not_finite_is_skipped_too():
    rollout, credit = a_rollout()
    optimizer = optax.chain(optax.scale(1e30), optax.scale(1e30))
    state, metrics = make_update(logprob, losses.reinforce, losses.token_mean, optimizer)(
        begin(a_policy(), optimizer), rollout, credit
    )
    assert (
        metrics["skipped"] == 1
        and metrics["update_norm"] == 0
        and np.isfinite(metrics["grad_norm"])
    )
    jax.tree.map(np.testing.assert_array_equal, state.params, a_policy())


def test_a_rollout_without_any_token_moves_nothing():
    rollout, credit = a_rollout()
    rollout = dataclasses.replace(rollout, action_mask=jnp.zeros_like(rollout.action_mask))
    state, metrics = run(
        make_update(logprob, losses.gmpo, losses.sequence_mean, optax.sgd(1.0), micro_batch=4),
        optax.sgd(1.0),
        rollout,
        credit,
    )
    jax.tree.map(np.testing.assert_array_equal, state.params, jax.tree.map(np.asarray, a_policy()))
    assert all(np.isfinite(x) for x in metrics.values()) and metrics["loss"] == 0


def test_bfloat16_parameters_keep_their_dtype_and_accumulate_in_float32():
    """One gradient of 1 and 64 of 2^-9, which a sum in bfloat16 would lose."""
    rollout, _ = a_rollout()
    tall = jax.tree.map(lambda x: jnp.concatenate([x] * 4)[:, :1], rollout)
    tall = dataclasses.replace(
        tall, action_mask=jnp.broadcast_to(jnp.arange(T) == T - 1, (64, 1, T))
    )
    credit = jnp.full((64, 1, T), 2.0**-9).at[0].set(1.0)

    def flat(params, rollout):
        ones = jnp.ones(rollout.tokens.shape)[..., -S:]
        return {"logp": params["w"] * ones, "entropy": 0 * ones}

    optimizer = optax.adam(1e-2)
    update = make_update(flat, losses.reinforce, losses.token_mean, optimizer, micro_batch=1)
    state = begin({"w": jnp.ones((), jnp.bfloat16)}, optimizer)
    for _ in range(2):
        state, metrics = update(state, tall, credit)
        assert float(metrics["grad_norm"]) == pytest.approx((1 + 63 * 2.0**-9) / 64, rel=5e-3)
    assert state.params["w"].dtype == jnp.bfloat16 and update._cache_size() == 1


def test_sizes_that_leave_prompts_over_are_named_before_anything_runs():
    rollout, credit = a_rollout()
    _, cut, _ = eight()
    for knobs, message in (
        ({"minibatch": 5}, "16 prompts a rollout, 5 a minibatch"),
        ({"micro_batch": 3}, "3 a micro-batch"),
        ({"micro_batch": 4, "sharding": cut}, "multiple of 8"),
    ):
        with pytest.raises(ValueError, match=message):
            run(
                make_update(logprob, losses.ppo_clip, losses.token_mean, optax.sgd(1.0), **knobs),
                optax.sgd(1.0),
                rollout,
                credit,
            )
