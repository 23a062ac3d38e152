"""Critic estimators: worked examples, invariants, reductions with and without their condition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from small_rollouts import jitted, one_prompt
from turn_rollouts import JUNK, G, K, assert_credit, loss_batch, play, random_turns

import jaxcredit.credit as catalogue
from jaxcredit import kernels, losses
from jaxcredit.credit import method_of
from jaxcredit.rollout import Rollout

NAMES = "archer hae masked_gae oprl ppo rloo spa".split()
C = {name: jitted(getattr(catalogue, name)) for name in NAMES}


# ---------------------------------------------------------------- HAE

PLAN, LOW, HEAD = [0.4, 0, 0.7, 0], [0.3, 0.5, 0.6, 0.8], [0.35, 0.45, 0.65, 0.75]


def hiper(r, *, subgoal=(0, 0, 1, 1), done=True, plan=PLAN, low=LOW, **more):
    """One trajectory; each turn is a subgoal token, a switch token and an action token."""
    signals = {
        "value": [low],
        "value_plan": [plan],
        "value_switch": [HEAD],
        "subgoal": [subgoal],
        "kind": [[1, 2, 3] * 4],
    }
    return play([r], per=3, done=done, **signals, **more)


def three(answer, name="advantage"):
    return np.asarray(answer[name])[0, 0, :12].reshape(4, 3)


def test_hae_examples():
    A = three(C["hae"](hiper([0, 0, 0, 1])))
    assert_close(A.T, [[0.585, 0, 0.3, 0], [0.35, 0.25, 0.35, 0.25], [0.4, 0.2, 0.4, 0.2]])
    A = three(C["hae"](hiper([0, 0, 0, 1]), gamma=0.9, lam_turn=0.5))
    assert_close(A.T, [[0.3209, 0, 0.2, 0], [0.217, 0.18, 0.25, 0.25], [0.2085, 0.13, 0.21, 0.2]])
    A = three(C["hae"](hiper([0, 0, 0, 0], done=False)))
    assert_close(A.T, [[0.3, 0, 0, 0], [0.35, 0.25, 0.05, -0.05], [0.4, 0.2, 0.2, 0]])
    A = three(C["hae"](hiper([0, 0, 0, 0], done=False), bootstrap=False))
    assert_close(A.T, [[-0.365, 0, -0.7, 0], [0.35, 0.25, -0.65, -0.75], [0.4, 0.2, -0.6, -0.8]])
    assert_close(
        three(C["hae"](hiper([0, 0, 0, 0])))[:, 2], [0.4, 0.2, -0.6, -0.8]
    )  # done: no bootstrap


def test_hae_targets_are_advantage_plus_value_where_it_was_read():
    answer = C["hae"](hiper([0, 0, 0, 1]))
    A, target = three(answer), three(answer, "target")
    assert_close(target[[0, 2], 0], A[[0, 2], 0] + np.array(PLAN)[[0, 2]])
    assert_close(target[:, 1], A[:, 1] + np.array(HEAD))
    assert_close(target[:, 2], A[:, 2] + np.array(LOW))


def test_hae_with_one_subgoal_is_flat_gae_and_with_one_a_turn_too():
    assert_close(
        three(C["hae"](hiper([0, 0, 0, 1], subgoal=(3, 3, 3, 3)), gamma=0.9, lam_turn=0.5))[:, 2],
        [0.210525, 0.1345, 0.21, 0.2],
    )
    V = [0.4, 0.5, 0.7, 0.8]
    each = hiper([0, 0, 0, 1], subgoal=(0, 1, 2, 3), plan=V, low=V)
    assert_close(
        three(C["hae"](each, gamma=0.9, lam_turn=0.5))[:, 0], [0.300776, 0.293305, 0.191, 0.2]
    )
    rollout = random_turns(3, method_of(catalogue.hae).needs)
    rollout = Rollout(**{**vars(rollout), "done": jnp.ones((64, 6), bool)}).with_signals(
        kind=jnp.full(rollout.action_mask.shape, 3)
    )

    @jax.jit
    def flat_gae(rollout):
        def one(g):
            return kernels.to_tokens(
                kernels.gae(
                    jnp.where(g.segment_mask, g.reward, 0),
                    g["value"],
                    gamma=0.9,
                    lam=0.5,
                    where=g.segment_mask,
                ),
                g,
            )

        return jnp.where(rollout.action_mask, jax.vmap(one)(rollout), 0)

    one = rollout.with_signals(subgoal=jnp.zeros_like(rollout["subgoal"]))
    assert_close(C["hae"](one, gamma=0.9, lam_turn=0.5)["advantage"], flat_gae(one))
    assert (
        jnp.abs(C["hae"](rollout, gamma=0.9, lam_turn=0.5)["advantage"] - flat_gae(rollout)) > 1e-2
    ).any()


def test_hae_of_exact_critics_is_zero_and_breaks_when_one_errs():
    V = [1.0, 1.0, 1.0, 1.0]
    exact = hiper([0, 0, 0, 1], plan=V, low=V).with_signals(value_switch=jnp.ones((64, G, K)))
    assert jnp.abs(C["hae"](exact)["advantage"]).max() < 1e-6
    wrong = exact.with_signals(value=exact["value"].at[0, 0, 1].add(0.5))
    assert_close(three(C["hae"](wrong))[:, 2], [0, -0.5, 0, 0])


def test_hae_switches_by_the_option_and_plans_on_switch_tokens():
    p = [0.9, 0.8, 0.75, 0.6]
    logp = [np.stack([np.zeros(4), np.log(p), np.zeros(4)], 1).reshape(-1)]
    rollout = hiper([0, 0, 0, 1], plan=[0.4, 0.6, 0.7, 0.9], logp=logp)
    A = three(C["hae"](rollout, switch="option"))
    # beta = P(switch), 1 - p if the option was kept. The first turn has no option to end.
    assert_close(
        A[:, 1], [0, (0 - 0.2) * (0.6 - 0.5), (1 - 0.75) * (0.7 - 0.6), (0 - 0.4) * (0.9 - 0.8)]
    )
    base, both = three(C["hae"](rollout)), three(C["hae"](rollout, plan_switch=True))
    assert_close(both[:, 1], base[:, 1] + base[:, 0])


# ---------------------------------------------------------------- SPA and OPRL


def test_spa_example():
    r = [[0, 0, 0.9]]
    signals = {
        "progress": [[0.2, 0.1, 0.5]],
        "grounded": [[1, 0, 1]],
        "token_value": [[0, 0, 0, 0]],
    }
    assert_credit(C["spa"](play(r, **signals), lam=1.0, whiten=False), r, [[1.8, 1.1, 1.0]])
    assert_credit(
        C["spa"](play(r, **signals), lam=1.0, gamma=0.0, whiten=False), r, [[0.7, 0.1, 1.0]]
    )
    assert_credit(
        C["spa"](play(r, **signals), lam=1.0, alpha=0.0, beta=0.0, whiten=False), r, [[0, 0, 0]]
    )
    assert_credit(
        C["spa"](play(r, **signals), lam=1.0, beta=0.0, whiten=False), r, [[0.8, 0.6, 0.5]]
    )


def test_progress_loss_example():
    c, real = jnp.array([[0.2, 0.1, 0.5, JUNK]]), jnp.array([[True, True, True, False]])
    (total, count), slope = (
        kernels.progress_loss(c, jnp.array([0.9]), real),
        jax.grad(lambda c: kernels.progress_loss(c, jnp.array([0.9]), real)[0])(c),
    )
    assert_close(total, 0.01, 1e-6)
    assert_close(slope, [[-0.2, -0.2, -0.2, 0]], 1e-6)
    assert count == 1
    assert_close(kernels.progress_loss(c, jnp.array([0.8]), real)[0], 0, 1e-6)


def test_spa_released_path_overwrites_progress_and_leaves_the_last_step_nothing():
    r = [[0, 0, 1.0], [0, 0]]
    signals = {
        "progress": [[5, 5, 5], [5, 5]],
        "grounded": [[1, 0, 1], [0, 1]],
        "token_value": [[0] * 4] * 2,
    }
    got = C["spa"](play(r, **signals), form="code", gamma=0.0, lam=1.0, whiten=False)
    assert_credit(got, r, [[(1 + 0.5) * 2, 1 * 1, 0], [-1 * 1, 0]])


def test_spa_is_ppo_on_the_fused_reward():
    rollout = random_turns(7, method_of(catalogue.spa).needs)
    fused = Rollout(**{**vars(rollout), "reward": rollout["progress"] + 0.5 * rollout["grounded"]})
    for name in ("advantage", "target"):
        assert_close(C["spa"](rollout)[name], C["ppo"](fused)[name])
    assert (jnp.abs(C["spa"](rollout)["advantage"] - C["ppo"](rollout)["advantage"]) > 1e-2).any()


PRM = {"prm_logp": [[0.6, 0.4], [-0.2, 0.2]], "ref_logp": [[0, 0], [0, 0]]}


def test_oprl_example():
    r = [[0, 1], [0, 0]]
    rollout = play(r, **PRM)
    assert_credit(C["oprl"](rollout), r, [[1.0233, 1.01], [-1.03, -1.0033]])
    assert_credit(C["oprl"](rollout, baseline="first"), r, [[1.04, 1.02], [-1.04, -1.0]])
    assert_credit(
        C["oprl"](play([[0, 1]], **{k: v[:1] for k, v in PRM.items()}), singleton="raw"),
        [[0, 1]],
        [[1.03, 1.02]],
    )
    assert (C["oprl"](play([[0, 1]], prm_logp=[[0.5, 0.5]], ref_logp=[[0, 0]])) == 0).all()


def test_trajectory_preference_loss_examples():
    R, there = jnp.array([1.0, 0, JUNK]), jnp.array([True, True, False])
    for Q, loss in (
        ([0.025, 0.0, JUNK], 0.680725),
        ([0.05, 0.0, JUNK], 0.668460),
        ([0.0, 0.0, JUNK], np.log(2)),
    ):
        total, pairs = kernels.trajectory_preference_loss(jnp.array(Q), R, there)
        assert pairs == 1
        assert_close(total, loss, 1e-6)
    assert kernels.trajectory_preference_loss(jnp.array([0.3, 0.1, 0.2]), jnp.ones(3), there) == (
        0,
        0,
    )
    assert (
        kernels.trajectory_preference_loss(
            jnp.zeros(4), jnp.array([1.0, 0, 2, 0]), jnp.ones(4, bool)
        )[1]
        == 5
    )


def test_oprl_without_weight_or_with_its_reference_is_rloo():
    rollout = random_turns(8, method_of(catalogue.oprl).needs)
    assert_close(C["oprl"](rollout, weight=0.0), C["rloo"](rollout))
    same = rollout.with_signals(prm_logp=rollout["ref_logp"])
    assert_close(C["oprl"](same), C["rloo"](same))
    assert (jnp.abs(C["oprl"](rollout) - C["rloo"](rollout)) > 1e-2).any()


def test_implied_rewards_sum_to_the_log_ratio_of_the_trajectory():
    rollout = random_turns(9, method_of(catalogue.oprl).needs)
    got = jax.jit(jax.vmap(kernels.implicit_step_rewards))(
        rollout["prm_logp"], rollout["ref_logp"], rollout.filled()
    )
    gap = np.where(rollout.action_mask, rollout["prm_logp"] - rollout["ref_logp"], 0).sum(-1)
    assert_close(got.sum(-1), 0.05 * gap)


# ---------------------------------------------------------------- ArCHer


def test_archer_example():
    """One turn of three tokens with Q = min(0.7, 0.5) and V = min(0.4, 0.45)."""
    rollout = play(
        [[0]], per=3, action_value=[[0.5]], value=[[0.4]], token_value=[[0.02, 0.05, 0.08]]
    )
    logp = jnp.array([[[-0.2, -0.5, -0.1]]])
    zeros = jnp.zeros((1, 1, 3))

    def loss(A, aggregate):
        return float(
            losses.divide(
                *aggregate(
                    losses.reinforce(logp, batch := loss_batch(logp, zeros, A, zeros)), batch
                )
            )
        )

    A = C["archer"](rollout)
    assert_close(A[0, 0, :3], [0.1] * 3)
    assert loss(A[:1, :1, :3], losses.sequence_sum) == pytest.approx(0.08, abs=1e-6)
    rest = C["archer"](rollout, baseline=True)
    rest, v = {name: x[:1, :1, :3] for name, x in rest.items()}, rollout["token_value"][:1, :1, :3]
    assert_close(rest["advantage"][0, 0], [0.08, 0.05, 0.02])
    assert loss(rest["advantage"], losses.sequence_sum) == pytest.approx(0.043, abs=1e-6)
    assert float(jnp.mean((rest["target"] - v) ** 2)) == pytest.approx(0.0031, abs=1e-6)


def test_archer_critics():
    assert_close(
        kernels.td_target(jnp.zeros(2), jnp.full(2, 0.8), jnp.array([False, True])), [0.76, 0]
    )
    assert_close(kernels.td_target(jnp.array([2.0]), jnp.array([0.8]), jnp.array([True])), [2.0])
    assert_close(kernels.expectile(jnp.array([0.4, -0.4])), [0.144, 0.016])
    assert_close(kernels.expectile(jnp.array([0.4, -0.4]), 0.5), [0.08, 0.08])
    old, new = {"w": jnp.array([0.8])}, {"w": jnp.array([1.0])}
    assert_close(kernels.polyak(old, new)["w"], [0.82])
    assert_close(kernels.polyak(old, new, tau=1.0)["w"], new["w"])
    assert_close(kernels.polyak(old, new, tau=0.0)["w"], old["w"])


def test_archer_of_an_exact_value_averages_to_zero_and_unequal_minima_are_biased():
    rng = np.random.default_rng(0)
    Q, pi = rng.normal(size=(2, 4)), np.full(4, 0.25)
    V = Q @ pi
    r = [[0]] * 4

    def mean(q, v):
        return float(
            C["archer"](play(r, action_value=q[:, None], value=np.full((4, 1), v)))[0, :4, 0].mean()
        )

    assert abs(mean(Q[0], V[0])) < 1e-6
    assert (
        abs(mean(Q.min(0), V.min())) > 1e-2
    )  # the mean of the smaller Q is below the smaller mean V


# ---------------------------------------------------------------- masked GAE


def test_masked_gae_example_is_gae_of_what_is_left_without_the_observations():
    tokens, segment, mask = np.zeros((1, 6)), [[0, 0, -1, -1, 1, 1]], [[1, 1, 0, 0, 1, 1]]
    V = [[0.3, 0.4, 9, 9, 0.5, 0.7]]
    rollout = one_prompt([[0.5, 1.0]], tokens, action_mask=mask, segment=segment, token_value=V)
    short = one_prompt(
        [[0.5, 1.0]], np.zeros((1, 4)), segment=[[0, 0, 1, 1]], token_value=[[0.3, 0.4, 0.5, 0.7]]
    )
    for knobs, want in (
        ({}, [1.2, 1.1, 0, 0, 0.5, 0.3]),
        ({"gamma": 0.9, "lam": 0.95}, [0.812791, 0.880457, 0, 0, 0.3865, 0.3]),
    ):
        A = C["masked_gae"](rollout, whiten=False, **knobs)["advantage"][0, 0]
        assert_close(A, want)
        assert_close(
            A[jnp.array([0, 1, 4, 5])],
            C["masked_gae"](short, whiten=False, **knobs)["advantage"][0, 0],
        )
    assert_close(C["rloo"](one_prompt([1, 0, 0, 0.5]))[0, :, 0], [0.8333, -0.5, -0.5, 0.1667], 1e-4)


def test_masked_gae_is_ppo_at_equal_knobs_and_does_not_look_at_values_off_the_mask():
    rollout = random_turns(12, ("token_value",))
    assert_close(C["masked_gae"](rollout)["advantage"], C["ppo"](rollout, lam=1.0)["advantage"])
    assert (
        jnp.abs(C["masked_gae"](rollout)["advantage"] - C["ppo"](rollout)["advantage"]) > 1e-2
    ).any()
    other = rollout.with_signals(
        token_value=jnp.where(rollout.action_mask, rollout["token_value"], 9.0)
    )
    assert_close(C["masked_gae"](other)["advantage"], C["masked_gae"](rollout)["advantage"], 1e-6)
