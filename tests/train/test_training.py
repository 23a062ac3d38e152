"""Every estimator trains on eight devices, and learns faster than with its credit on the wrong
tokens.
"""

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
    """Programs shared by all estimators: initial state, rollout, update, probability of the paid
    token.

    The policy is a table with one distribution a position, so that credit on a wrong position does
    not affect the key token. The batch is sharded over eight devices.
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


def misplaced(answer, key):
    """The columns with the advantages on wrong tokens: permuted within each row.

    Rows whose advantages are nearly constant are permuted across trajectories instead. HICRA and
    OTB, for example, vary little within a row.
    """
    A = answer["advantage"]
    inside = jax.random.permutation(key, A[..., P:], axis=-1, independent=True)
    across = jax.random.permutation(key, A[..., P:], axis=1)
    flat = jnp.abs(A[..., P:] - A[..., P : P + 1]).max() < 0.25 * jnp.abs(A).max()
    return {**answer, "advantage": A.at[..., P:].set(jnp.where(flat, across, inside))}


def learn(credit, **pay):
    """Mean reward of each step, and the gain of each update over one with misplaced credit.

    The gain is the difference in the probability of the paid token.
    """
    begin, play, update, chance, batch = world(**pay)
    judge = jax.jit(lambda rollout: columns(credit(rollout), rollout), out_shardings=batch)
    move = jax.jit(misplaced, out_shardings=batch)
    state, rewards, gains = begin(), [], []
    for step in range(STEPS):
        rollout = play(state.params, jax.random.key(100 + step))
        answer = judge(rollout)
        assert len(answer["advantage"].addressable_shards) == 8
        rewards.append(
            float((rollout.tokens[..., P + key_token_world.KEY] == key_token_world.RIGHT).mean())
        )
        other, _ = update(
            jax.tree.map(jnp.copy, state), rollout, move(answer, jax.random.key(step))
        )
        state, _ = update(state, rollout, answer)
        gains.append(float(chance(state.params) - chance(other.params)))
    return np.array(rewards), np.array(gains)


QUICK = ("tempo", "gigpo", "grpo")
# Rewards and knobs that a method needs: rewards of turns, a single best answer, a prefix that
# contains the key token, no credit for later gains.
WORLDS = {"scrl": {"by_turn": True}, "mars2": {"by_turn": True}, "passk": {"tie_breaker": 0.01}}
KNOBS = {"pppo": {"eta": 0.5}, "vsrm": {"gamma": 0.0}}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in catalogue.__all__],
)
def test_every_estimator_trains(name):
    rewards, gains = learn(
        functools.partial(getattr(catalogue, name), **KNOBS.get(name, {})), **WORLDS.get(name, {})
    )
    assert rewards[-4:].mean() > rewards[0] + 0.2, f"it does not learn: {np.round(rewards, 2)}"
    assert gains.mean() > gains.std() / len(gains) ** 0.5, (
        f"no better than misplaced: {np.round(gains, 4)}"
    )
