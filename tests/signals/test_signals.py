"""Learned signals, and training on a bandit: a small transformer learns with every objective."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import micro_experiment
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxcredit import credit, losses, signals
from jaxcredit.collect.single_turn import single_turn
from jaxcredit.parallel import mesh, params
from jaxcredit.policy import sampler as decode
from jaxcredit.policy import transformer
from jaxcredit.rollout import Rollout
from jaxcredit.signals.value_model import value_loss
from jaxcredit.train.update import TrainState, make_update

CFG = transformer.Config(vocab=8, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=32)
N, G, P, S = 4, 8, 2, 3
PROMPT = jnp.array([[6, 7], [7, 6], [6, 6], [0, 7]], jnp.int32)  # the last prompt is padded
VALID = PROMPT > 0


def logprob(weights, rollout):
    return transformer.logprob(weights, rollout.tokens, rollout.token_mask, CFG, prompt=P)


@jax.jit
def play(weights, key):
    """Bandit: reward 1 if the first token is arm 1; two more tokens are noise."""
    out = decode.sample(weights, PROMPT, VALID, key, CFG, rows=G, max_new_tokens=S, stop=())
    left = jnp.zeros((N, G, P))
    tokens = jnp.concatenate([jnp.broadcast_to(PROMPT[:, None], (N, G, P)), out["tokens"]], -1)
    mask = jnp.concatenate([left > 0, out["mask"]], -1)
    return Rollout(
        tokens=tokens,
        action_mask=mask,
        logp=jnp.concatenate([left, out["logp"]], -1),
        segment=jnp.where(mask, 0, -1),
        reward=(out["tokens"][:, :, :1] == 1).astype(jnp.float32),
        segment_mask=jnp.ones((N, G, 1), bool),
        token_mask=jnp.concatenate([jnp.broadcast_to(VALID[:, None], (N, G, P)), out["mask"]], -1),
    )


@functools.cache
def weights():
    return jax.jit(lambda key: params.init(transformer.specs(CFG), key))(jax.random.key(0))


def learn(objective, method, *, make=None, steps=25, aggregate=losses.token_mean, **knobs):
    """Mean reward of the last rollouts, and metrics of the last step."""
    optimizer = optax.adam(1e-2)
    update = make_update(logprob, objective, aggregate, optimizer, **knobs)
    signal = make(CFG, logprob) if make else None
    tree = jax.tree.map(jnp.copy, weights())
    aux = {"signal": signal.init(jax.random.key(1), tree)} if make else {}
    state = TrainState(
        tree, optimizer.init(tree), aux, jax.random.key_data(jax.random.key(2)), jnp.int32(0)
    )
    judge = jax.jit(lambda rollout: credit.columns(method(rollout), rollout))
    for step in range(steps):
        rollout = play(state.params, jax.random.fold_in(jax.random.key(3), step))
        rollout = signal.annotate(state.aux["signal"], state, rollout, None) if make else rollout
        columns = judge(rollout)
        told = {}
        if make:
            remembered, told = signal.update(state.aux["signal"], state, rollout, columns)
            state = TrainState(
                state.params, state.opt_state, {"signal": remembered}, state.key, state.step
            )
        state, metrics = update(state, rollout, columns)
    return float(play(state.params, jax.random.key(9)).reward.mean()), {**metrics, **told}


def test_the_bandit_is_not_won_before_training():
    assert float(play(weights(), jax.random.key(9)).reward.mean()) < 0.4


SLOW = {
    "gmpo": losses.gmpo,
    "reinforce": losses.reinforce,
    "cispo": losses.cispo,
    "sapo": losses.sapo,
    "truncated": losses.truncated_importance(losses.ppo_clip),
}


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(losses.ppo_clip, id="ppo_clip"),
        pytest.param(losses.gspo, id="gspo", marks=pytest.mark.slow),
        *(
            pytest.param(objective, id=name, marks=pytest.mark.slow)
            for name, objective in SLOW.items()
        ),
    ],
)
def test_a_transformer_learns_a_bandit_with_every_objective(objective):
    reward, metrics = learn(objective, credit.grpo)
    assert reward > 0.9 and metrics["skipped"] == 0
    assert metrics["sampler_logp_diff_max"] < 1e-3, "sampler and trainer disagree"


@pytest.mark.slow
def test_it_learns_from_a_critic_by_minibatches_and_epochs():
    reward, metrics = learn(
        losses.ppo_clip,
        credit.ppo,
        make=signals.critic(width=16),
        minibatch=2,
        epochs=2,
        micro_batch=1,
    )
    assert (
        reward > 0.9 and np.isfinite(metrics["loss"]) and np.isfinite(metrics["explained_variance"])
    )


@pytest.mark.slow
def test_shuffled_signs_do_not_teach_it():
    """Control: with credit that is independent of the reward the policy stays near its start."""

    def noise(rollout):
        return jnp.where(
            rollout.action_mask, jax.random.normal(jax.random.key(4), rollout.action_mask.shape), 0
        )  # noqa: E731

    assert learn(losses.ppo_clip, noise, steps=10)[0] < 0.6


def test_the_reference_is_the_start_and_stays_so():
    make = signals.reference()
    signal = make(CFG, logprob)
    frozen = signal.init(jax.random.key(0), weights())
    rollout = play(weights(), jax.random.key(1))
    moved = SimpleNamespace(params=jax.tree.map(lambda w: w + 0.1, weights()))
    marked = signal.annotate(frozen, moved, rollout, None)
    assert make.provides == ("ref_logp",)
    np.testing.assert_allclose(marked["ref_logp"], rollout.logp, atol=1e-4)
    np.testing.assert_array_equal(
        np.asarray(marked["ref_logp"])[~np.asarray(rollout.action_mask)], 0
    )
    same, told = signal.update(frozen, moved, rollout, {})
    assert told == {} and same is frozen
    jax.tree.map(np.testing.assert_array_equal, frozen, weights())


@pytest.mark.slow
def test_a_strong_kl_holds_the_policy_at_the_reference():
    held, metrics = learn(
        losses.ppo_clip, credit.grpo, make=signals.reference(), beta=30.0, kl=losses.k2, steps=15
    )
    assert held < 0.5 and 0 < metrics["kl"] < 0.05


def test_entropy_is_that_of_the_policy_that_chose():
    signal = signals.entropy()(CFG, logprob)
    rollout = play(weights(), jax.random.key(1))
    marked = signal.annotate({}, SimpleNamespace(params=weights()), rollout, None)
    flat = jax.nn.log_softmax(
        transformer.logits(weights(), rollout.tokens[0], rollout.token_mask[0], CFG)
    )[:, P - 1 : -1]
    np.testing.assert_allclose(
        marked["entropy"][0, :, P:], -(jnp.exp(flat) * flat).sum(-1), atol=1e-4
    )


# The critic


def test_value_loss_by_hand():
    """Squared error within the clip range, and the larger of the two errors beyond it."""
    V, old, R = jnp.array([0.6, 1.0, 1.0]), jnp.array([0.5, 0.5, 0.5]), jnp.array([1.0, 1.0, 0.0])
    np.testing.assert_allclose(value_loss(V, old, R, clip=0.2), [0.08, 0.045, 0.5], rtol=1e-6)


def test_the_critic_learns_a_known_value_and_touches_nothing_else():
    """Features h with known V = h_0 - h_1 / 2, targets V plus noise, and junk in masked columns."""
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(N, G, S, 4)), jnp.float32)
    V = h[..., 0] - h[..., 1] / 2
    mask = jnp.asarray(np.pad(rng.random((N, G, S)) < 0.8, ((0, 0), (0, 0), (P, 0))))
    rollout = Rollout(
        tokens=jnp.zeros((N, G, P + S), jnp.int32),
        action_mask=mask,
        logp=jnp.zeros((N, G, P + S)),
        segment=jnp.where(mask, 0, -1),
        reward=jnp.zeros((N, G, 1)),
        segment_mask=jnp.ones((N, G, 1), bool),
    )
    noise = jnp.asarray(rng.normal(0, 0.1, (N, G, S)), jnp.float32)
    target = jnp.where(mask, jnp.pad(V + noise, ((0, 0), (0, 0), (P, 0))), jnp.nan)

    def zero(params, rollout):
        return {"logp": jnp.zeros((N, G, S)), "entropy": jnp.zeros((N, G, S))}

    make = signals.critic(
        width=0, optimizer=optax.adam(0.05), features=lambda params, rollout, cfg, S: params * h
    )
    signal = make(SimpleNamespace(width=4, layout=None), zero)
    state = SimpleNamespace(params=jnp.float32(1))
    aux = signal.init(jax.random.key(0), state.params)
    variances = []
    for _ in range(30):
        rollout = signal.annotate(aux, state, rollout, None)
        aux, told = signal.update(aux, state, rollout, {"target": target})
        variances.append(float(told["explained_variance"]))
    assert variances[0] == pytest.approx(0, abs=1e-6) and variances[-1] > 0.95
    values = np.asarray(signal.annotate(aux, state, rollout, None)["token_value"])
    on = np.asarray(mask)
    np.testing.assert_allclose(values[..., P:][on[..., P:]], np.asarray(V)[on[..., P:]], atol=0.15)
    assert (values[~on] == 0).all()
    same, told = signal.update(
        aux, state, rollout, {"advantage": target}
    )  # without a column `target` the state does not change
    assert same is aux and told == {}


def test_the_critic_lies_whole_on_every_device_after_an_update_too():
    """Features sharded by width would shard the head; the state must be replicated."""
    devices = mesh.make({"fsdp": 8})
    cut, whole = (
        NamedSharding(devices, PartitionSpec(None, None, None, "fsdp")),
        NamedSharding(devices, PartitionSpec()),
    )
    h = jax.device_put(jax.random.normal(jax.random.key(0), (N, G, S, 16)), cut)
    answers = dataclasses.replace(
        play(weights(), jax.random.key(0)), signals={"token_value": jnp.zeros((N, G, P + S))}
    )
    make = signals.critic(
        width=16,
        features=lambda params, rollout, cfg, S: jax.lax.with_sharding_constraint(params * h, cut),
    )
    signal = make(
        dataclasses.replace(CFG, layout=mesh.Layout(devices, ())),
        lambda params, rollout: {"logp": jnp.zeros((N, G, S))},
    )
    state = SimpleNamespace(params=jax.device_put(jnp.float32(1), whole))
    aux = jax.device_put(signal.init(jax.random.key(0), state.params), whole)
    moved, _ = signal.update(
        aux, state, *jax.device_put((answers, {"target": jnp.ones((N, G, P + S))}), whole)
    )
    mesh.assert_placed(moved, jax.tree.map(lambda _: whole, moved))


def test_greedy_reward_is_what_the_greedy_answer_earns():
    """Greedy rewards of a micro policy equal those of single scoring; remax reads them."""
    exp = micro_experiment.experiment()
    exp = dataclasses.replace(
        exp,
        signals={
            "greedy": signals.greedy(exp.task, exp.tokenizer, max_new_tokens=exp.max_new_tokens)
        },
        credit=credit.remax,
    ).check()
    programs = micro_experiment.build(exp)
    weights = jax.jit(lambda key: params.init(transformer.specs(exp.policy), key))(
        jax.random.key(5)
    )
    collect = single_turn(
        programs.sample, exp.tokenizer, exp.task, group_size=exp.group_size, buckets=exp.buckets
    )
    collected = collect(weights, jax.random.key(1), np.arange(exp.prompts_per_step))()
    state = SimpleNamespace(params=weights)
    rollout = programs.learned["greedy"].annotate({}, state, collected.rollout, collected.metas)
    prompt, valid = (
        rollout.tokens[:, 0, : -exp.max_new_tokens],
        rollout.token_mask[:, 0, : -exp.max_new_tokens],
    )
    drawn = programs.greedy(weights, prompt, valid, jax.random.key(7))
    want = [
        exp.task.reward(meta, exp.tokenizer.decode(ids[kept].tolist()), ids[kept].tolist())
        for meta, ids, kept in zip(
            collected.metas,
            np.asarray(drawn["tokens"])[:, 0],
            np.asarray(drawn["mask"])[:, 0],
            strict=True,
        )
    ]
    np.testing.assert_allclose(rollout["greedy_reward"], want, rtol=1e-6)
    A = credit.remax(rollout)
    np.testing.assert_allclose(
        np.asarray(A)[..., exp.buckets[0]],
        np.asarray(rollout.reward)[..., 0] - np.asarray(want)[:, None],
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="remax needs the signal greedy_reward"):
        dataclasses.replace(exp, signals={}).check()
