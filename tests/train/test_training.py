"""Every estimator trains: rollout, credit and update on eight devices, and it beats its own credit put on the wrong tokens."""

import functools

import jax
import jax.numpy as jnp
import key_token_world
import numpy as np
import optax
import pytest

import jaxcredit.credit as catalogue
from jaxcredit import losses
from jaxcredit.credit import columns
from jaxcredit.parallel import mesh
from jaxcredit.train.update import TrainState, make_update

N, G, P, V, STEPS = 8, 32, 2, 2, 16


@functools.cache
def world(**pay):
    """The programs that all estimators share: begin, play, update and the chance of the paid token; the batch lies over eight devices.

    The policy is a table, a distribution for each place: credit on a wrong place teaches nothing about the right one.
    """
    devices = mesh.make({"fsdp": 8})
    batch, everywhere = (
        mesh.batch_sharding(N, mesh.fsdp, devices),
        jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec()),
    )
    prompt = jax.device_put(jnp.full((N, P), V, jnp.int32), batch)

    def logprob(table, rollout):
        scores = jax.nn.log_softmax(table["logits"])
        logp = jnp.take_along_axis(scores[None, None], rollout.tokens[..., P:, None], -1)[..., 0]
        return {
            "logp": logp,
            "entropy": jnp.broadcast_to(-(jnp.exp(scores) * scores).sum(-1), logp.shape),
        }

    @functools.partial(jax.jit, out_shardings=batch)
    def play(table, key):
        tokens = jax.random.categorical(
            key, table["logits"], shape=(N, G, key_token_world.S)
        ).astype(jnp.int32)
        logp = jnp.take_along_axis(
            jax.nn.log_softmax(table["logits"])[None, None], tokens[..., None], -1
        )[..., 0]
        return key_token_world.with_true_signals(
            key_token_world.rollout(tokens, logp, prompt, **pay)
        )

    @jax.jit
    def chance(table):
        return jax.nn.softmax(table["logits"])[key_token_world.KEY, key_token_world.RIGHT]

    optimizer = optax.chain(
        optax.normalize_by_update_norm(), optax.scale(-0.3)
    )  # steps of one length, whatever the scale of the credit

    @functools.partial(jax.jit, out_shardings=everywhere)
    def begin():
        table = {"logits": jnp.zeros((key_token_world.S, V))}
        return TrainState(
            table, optimizer.init(table), {}, jax.random.key_data(jax.random.key(1)), jnp.int32(0)
        )

    place = jax.tree.map(lambda _: everywhere, jax.eval_shape(begin))
    return (
        begin,
        play,
        make_update(
            logprob,
            losses.ppo_clip,
            losses.token_mean,
            optimizer,
            sharding=batch,
            state_shardings=place,
        ),
        chance,
        batch,
    )


def elsewhere(answer, key):
    """The same credit on the wrong tokens: moved inside each trajectory or, where those have nearly one number each, between them.

    Nearly: HICRA adds a fifth on planning tokens, more praise and less blame, which in the mean is worth nothing to them; OTB's baselines
    of the places differ as little.
    """
    A = answer["advantage"]
    inside = jax.random.permutation(key, A[..., P:], axis=-1, independent=True)
    across = jax.random.permutation(key, A[..., P:], axis=1)
    flat = jnp.abs(A[..., P:] - A[..., P : P + 1]).max() < 0.25 * jnp.abs(A).max()
    return {**answer, "advantage": A.at[..., P:].set(jnp.where(flat, across, inside))}


def learn(credit, **pay):
    """Mean reward of each step, and how much more likely the paid token became by each update than by one with the credit misplaced."""
    begin, play, update, chance, batch = world(**pay)
    judge = jax.jit(lambda rollout: columns(credit(rollout), rollout), out_shardings=batch)
    move = jax.jit(elsewhere, out_shardings=batch)
    state, earned, ahead = begin(), [], []
    for step in range(STEPS):
        rollout = play(state.params, jax.random.key(100 + step))
        answer = judge(rollout)
        assert len(answer["advantage"].addressable_shards) == 8
        earned.append(
            float((rollout.tokens[..., P + key_token_world.KEY] == key_token_world.RIGHT).mean())
        )
        misled, _ = update(
            jax.tree.map(jnp.copy, state), rollout, move(answer, jax.random.key(step))
        )
        state, _ = update(state, rollout, answer)
        ahead.append(float(chance(state.params) - chance(misled.params)))
    return np.array(earned), np.array(ahead)


QUICK = ("tempo", "gigpo", "grpo")
# What a method is made for: judged turns, a best answer that is alone, a beginning that holds the decision, no hope for later gains.
WORLDS = {"scrl": {"by_turn": True}, "mars2": {"by_turn": True}, "passk": {"tie_breaker": 0.01}}
KNOBS = {"pppo": {"eta": 0.5}, "vsrm": {"gamma": 0.0}}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in catalogue.__all__],
)
def test_every_estimator_trains(name):
    earned, ahead = learn(
        functools.partial(getattr(catalogue, name), **KNOBS.get(name, {})), **WORLDS.get(name, {})
    )
    assert earned[-4:].mean() > earned[0] + 0.2, f"it does not learn: {np.round(earned, 2)}"
    assert ahead.mean() > ahead.std() / len(ahead) ** 0.5, (
        f"no better than misplaced: {np.round(ahead, 4)}"
    )
