"""Turn estimators: worked examples, invariants, and reductions with and without their condition."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from reference_loops import LOOPS
from reference_loops.prompt import z_score
from small_rollouts import assert_matches_loop, jitted, one_prompt
from turn_rollouts import JUNK, G, K, assert_credit, flat, loss_batch, play, random_turns, shown

import jaxcredit.credit as catalogue
from jaxcredit import kernels, losses
from jaxcredit.credit import laws, method_of
from jaxcredit.rollout import Rollout

NAMES = "a2tgpo dr_grpo epo gigpo grpo hgpo igpo matchtir search_r2 siop sotopia".split()
C = {name: jitted(getattr(catalogue, name)) for name in NAMES}


# One compilation per case. The fast examples below cover both readings of the sources.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("gigpo", {"normalize": True, "pool": "steps", "singleton": "raw", "ddof": 1}),
        ("hgpo", {"history": 1, "normalize": True, "alpha": 2.0}),
        (
            "hae",
            {
                "gamma": 0.9,
                "lam_turn": 0.5,
                "bootstrap": False,
                "plan_switch": True,
                "whiten": True,
            },
        ),
        ("a2tgpo", {"gamma": 0.9}),
        ("igpo", {"kind": "prob", "pool": "joint", "gamma": 0.9}),
        ("matchtir", {"singleton": "raw", "ddof": 1}),
        ("spa", {"form": "code", "gamma": 0.9}),
        ("oprl", {"mode": "grpo", "baseline": "first", "singleton": "raw", "scale": True}),
        ("oprl", {"mode": "grpo"}),
        ("archer", {"baseline": True}),
        ("search_r2", {"form": "product"}),
        ("sotopia", {"form": "normalized"}),
        ("sotopia", {"form": "key"}),
    ],
    ids=lambda x: x if isinstance(x, str) else " ".join(map(str, x.values())),
)
def test_the_other_readings_follow_their_loops(name, knobs):
    credit = partial(getattr(catalogue, name), **knobs)
    needs = (*method_of(credit).needs, *(("token_value",) if name == "archer" else ()))
    rollout = laws.synthetic(13, needs, N=60, T=14, R=7, G=5, kinds=(0, 1, 3))
    if name == "hae":
        rollout = rollout.with_signals(kind=rollout["kind"] + 1)  # kinds 1 to 3 instead of 0 to 2
    assert_matches_loop(credit, partial(LOOPS[name], **knobs), rollout, atol=5e-5)


# ---------------------------------------------------------------- GiGPO and HGPO


def test_gigpo_examples():
    r, s = [[0, 10], [0, 0]], [[0, 1], [0, 2]]
    assert_credit(C["gigpo"](play(r, state=s), gamma=1.0), r, [[10, 5], [-10, -5]])
    normed = {"gamma": 1.0, "normalize": True, "ddof": 1}
    assert_credit(
        C["gigpo"](play(r, state=s), **normed, pool="steps"),
        r,
        [[1.573132, 0.866025], [-1.573132, -0.866025]],
    )
    assert_credit(
        C["gigpo"](play(r, state=s), **normed), r, [[1.414213, 0.707107], [-1.414213, -0.707107]]
    )
    r, s = [[0, 0, 1], [0]], [[0, 1, 2], [0]]
    assert_credit(C["gigpo"](play(r, state=s), weight=0.0, pool="steps"), r, [[0.25] * 3, [-0.75]])
    assert_credit(C["gigpo"](play(r, state=s), weight=0.0), r, [[0.5] * 3, [-0.5]])
    assert_credit(C["gigpo"](play(r, state=s)), r, [[0.95125, 0.5, 0.5], [-0.95125]])
    r, s = [[0, 0, 0, 1], [0, 0]], [[0, 1, 0, 2], [0, 2]]
    assert_credit(
        C["gigpo"](play(r, state=s), gamma=0.9), r, [[0.686, 0.5, 0.857, 1.0], [-1.043, -1.0]]
    )
    # The numbers of the released code's unit test, as the second turns of four trajectories.
    r, s = [[-10, 10], [0, 10], [0, 0], [0, 0]], [[5, 0], [6, 1], [7, 0], [8, 2]]
    assert_close(
        np.asarray(C["gigpo"](play(r, state=s), gamma=1.0))[0, :4, 1], [2.5, 7.5, -7.5, -2.5]
    )


def test_gigpo_without_weight_or_repeated_states_is_dr_grpo():
    rollout = random_turns(1, ("state",))
    own = rollout.with_signals(state=jnp.broadcast_to(jnp.arange(G * K).reshape(G, K), (64, G, K)))
    assert_close(C["gigpo"](rollout, weight=0.0), C["dr_grpo"](rollout))
    assert_close(C["gigpo"](own), C["dr_grpo"](own))
    assert (jnp.abs(C["gigpo"](rollout) - C["dr_grpo"](rollout)) > 1e-2).any()


def test_gigpo_step_terms_of_a_state_sum_to_zero_and_sparse_returns_are_outcomes():
    r, s = (
        [[0, 0, 0, 1], [0, 0, 1], [0, 0, 0, 0], [0]],
        [[0, 1, 0, 2], [0, 0, 1], [3, 1, 1, 0], [1]],
    )
    step = np.asarray(C["gigpo"](play(r, state=s)) - C["gigpo"](play(r, state=s), weight=0.0))[0]
    for state in range(3):
        assert (
            abs(sum(step[i, k] for i in range(4) for k in range(len(r[i])) if s[i][k] == state))
            < 1e-5
        )
    whole = np.asarray(
        C["gigpo"](play(r, state=s), gamma=1.0) - C["gigpo"](play(r, state=s), weight=0.0)
    )[0]
    outcome = np.array(
        [1, 1, 1, 1, 0]
    )  # outcomes of the visits of state 0: two, two and one by the three trajectories
    assert_close(
        [whole[0, 0], whole[0, 2], whole[1, 0], whole[1, 1], whole[2, 3]], outcome - outcome.mean()
    )


def test_a_lone_trajectory_gets_nothing_or_what_it_earned():
    for r in ([[0, 0, 2]], [[2]]):
        rollout = play(r, state=[list(range(len(r[0])))])
        assert (C["gigpo"](rollout) == 0).all()
        assert_credit(C["gigpo"](rollout, singleton="raw"), r, [[2.0] * len(r[0])])
    assert_credit(
        C["gigpo"](play([[0, 2]], state=[[0, 1]]), singleton="raw", pool="steps"),
        [[0, 2]],
        [[0, 0]],
    )  # the pool of turns has two entries


def test_hgpo_example_and_levels():
    r, s = [[0, 1], [0, 0], [0, 0]], [[0, 1], [0, 1], [2, 1]]
    assert_close(np.asarray(C["hgpo"](play(r, state=s)))[0, :3, 1], [5 / 9, -4 / 9, -1 / 3])
    r = [
        [0, 1],
        [0, 0],
        [0, 0.5],
    ]  # third trajectory: advantage 0 at level 0, negative at level 1
    s = [[0, 1], [2, 1], [0, 1]]
    assert_close(np.asarray(C["hgpo"](play(r, state=s)))[0, 2, 1], (0 + 2 * -0.25) / 3)
    assert_close(np.asarray(C["hgpo"](play(r, state=s), skip_zero=True))[0, 2, 1], -0.25)


def test_hgpo_without_history_is_the_step_term_of_gigpo():
    rollout = random_turns(2, ("state",))
    step = C["gigpo"](rollout) - C["dr_grpo"](rollout)
    assert_close(C["hgpo"](rollout, history=0), step)
    assert (jnp.abs(C["hgpo"](rollout) - step) > 1e-2).any()


# ---------------------------------------------------------------- A2TGPO and its objective

IG = [[0.1, 0.4, JUNK], [0.3, -0.2, JUNK], [0.2, 0.1, JUNK]]
A2 = [[0, 0, 1], [0, 0, 0], [0, 0, 1]]


def test_a2tgpo_example():
    answer = C["a2tgpo"](play(A2, gain=IG))
    assert_credit(answer, A2, [[0.7071, 1.0745, 0.7071], [-1.4142, -1.7816, -1.4142], [0.7071] * 3])
    assert_close(
        answer["clip"][0, :3, :3], [[0.8363, 1.1637, 1], [1.1637, 0.8363, 1], [1, 1, 1]], 1e-4
    )
    assert (answer["clip"][0, 3:] == 1).all()


def test_a2tgpo_without_alpha_and_kappa_is_grpo():
    rollout = random_turns(4, ("gain",))
    off = C["a2tgpo"](rollout, alpha=0.0, kappa=0.0)
    assert_close(off["advantage"], C["grpo"](rollout))
    assert (off["clip"] == 1).all()
    on = C["a2tgpo"](rollout)
    assert (jnp.abs(on["advantage"] - off["advantage"]) > 1e-2).any() and (
        jnp.abs(on["clip"] - 1) > 1e-2
    ).any()


def test_a2tgpo_gives_every_turn_one_variance_where_plain_sums_give_their_number():
    rng, many = np.random.default_rng(0), (3000, 6)
    gain = rng.normal(size=many) * rng.uniform(0.1, 5, 6)
    rollout = one_prompt(
        np.zeros(many), np.zeros(many), segment=np.broadcast_to(np.arange(6), many), gain=gain
    )
    answer = C["a2tgpo"](rollout, alpha=1.0)
    D = np.asarray(answer["advantage"])[0, :, :5]
    assert_close(D.var(0), np.ones(5), 0.08)
    assert ((D * np.sqrt([5, 4, 3, 2, 1])).var(0)[:4] > 1.5).all()
    n = (gain - gain.mean(0)) / gain.std(0)
    c = np.asarray(answer["clip"])[0]
    assert (
        (np.diff(c[np.argsort(n[:, 0]), 0]) >= 0).all()
        and (c[:, 5] == 1).all()
        and (np.abs(c - 1) < 0.3).all()
    )
    assert_close(n.mean(0), np.zeros(6), 1e-6)
    assert_close(
        np.log((c - 0.7) / (1.3 - c))[:, :5].mean(0), np.zeros(5), 1e-3
    )  # the rescaled clip is sigmoid(n), and n has mean 0


turn_clip = jax.jit(losses.turn_clip)


def test_turn_clip_example():
    """The clip range is [1 - 0.2 c, 1 + 0.28 c] with c = 0.8363 of the example above."""
    segment = [[[0, 0, 1, 1]]]
    for mean, A, expected in (
        (0.5, 1.0, -1.2342),
        (-0.5, -1.0, 0.8327),
        (0.1, 1.0, -np.exp(0.1)),
        (0.5, -1.0, np.exp(0.5)),
    ):
        logp = np.array([[[mean - 0.3, mean + 0.3, 0, 0]]])
        loss = turn_clip(
            jnp.asarray(logp),
            loss_batch(
                logp, 0 * logp, np.full((1, 1, 4), A), segment, clip=[[[0.8363, 0.8363, 1, 1]]]
            ),
        )
        assert_close(loss[0, 0], [expected, expected, -A, -A], 1e-4)


def some_turns(seed=0, N=3, R=4, S=12):
    rng = np.random.default_rng(seed)
    segment = np.sort(rng.integers(0, 4, (N, R, S)), -1)
    mask = rng.random((N, R, S)) < 0.8
    segment = np.where(rng.random((N, R, S)) < 0.1, -1, segment)
    old = rng.normal(-2, 0.5, (N, R, S))
    A = rng.normal(size=(N, R, 4))
    A = np.where(segment >= 0, np.take_along_axis(A, np.maximum(segment, 0), -1), 0.3)
    return (
        old + rng.normal(0, 0.4, (N, R, S)),
        old,
        A,
        segment,
        mask,
        rng.uniform(0.5, 1.5, (N, R, S)),
    )


def test_turn_clip_follows_its_loop():
    logp, old, A, segment, mask, clip = some_turns()
    want = np.zeros(logp.shape)
    for at in np.ndindex(*logp.shape):
        row = at[:2]
        if mask[at]:
            mine = (
                [s for s in range(12) if mask[(*row, s)] and segment[(*row, s)] == segment[at]]
                if segment[at] >= 0
                else [at[2]]
            )
            rho = np.exp(np.mean([logp[(*row, s)] - old[(*row, s)] for s in mine]))
            want[at] = max(
                -A[at] * rho, -A[at] * np.clip(rho, 1 - 0.2 * clip[at], 1 + 0.28 * clip[at])
            )
    bad = np.where(mask, logp, np.nan)
    got = turn_clip(
        jnp.asarray(bad, jnp.float32),
        loss_batch(bad, np.where(mask, old, -np.inf), A, segment, mask, clip),
    )
    assert_close(got, want, 1e-5)


def test_turn_clip_of_single_tokens_is_ppo_clip_and_of_a_whole_row_its_geometric_mean():
    logp, old, A, segment, mask, clip = some_turns(1)
    single = loss_batch(logp, old, A, np.broadcast_to(np.arange(12), logp.shape), mask, clip)
    logp = jnp.asarray(logp, jnp.float32)
    assert_close(turn_clip(logp, single), losses.ppo_clip(logp, single, high=0.28))
    real = loss_batch(logp, old, A, segment, mask, clip)
    assert (jnp.abs(turn_clip(logp, real) - losses.ppo_clip(logp, real, high=0.28)) > 1e-2).any()
    row = loss_batch(logp, old, A, np.zeros(logp.shape), mask, clip)
    assert_close(turn_clip(logp, row), losses.gspo(logp, row, low=0.2, high=0.28))


def test_turn_clip_on_policy_has_the_gradient_of_reinforce_and_nothing_off_the_mask():
    _, old, A, segment, mask, clip = some_turns(2)
    segment = np.maximum(segment, 0)
    segment = np.maximum.accumulate(segment, -1)  # contiguous turns, each with one advantage
    A = np.take_along_axis(A[..., :4], segment, -1)
    batch = loss_batch(old, old, A, segment, mask, clip)

    def gradient(objective):
        return jax.grad(lambda p: objective(p, batch).sum())(batch.logp)

    assert_close(gradient(turn_clip), gradient(losses.reinforce))
    assert (gradient(turn_clip)[~jnp.asarray(mask)] == 0).all()


# ---------------------------------------------------------------- IGPO and SIOP

GOLD = np.log([[0.2, 0.5, 0.6, 1], [0.2, 0.1, 0.3, 1]])
F1 = [[0, 0, 1], [0, 0, 0]]


def test_igpo_examples():
    rollout = play(F1, info=GOLD)
    assert_credit(
        C["igpo"](rollout, kind="prob"), F1, [[2.0142, 0.8310, 1], [-2.0142, -0.4929, -1]]
    )
    assert_credit(
        C["igpo"](rollout, kind="prob", pool="joint"),
        F1,
        [[1.8086, 1.6695, 2.0868], [-1.8086, -0.8347, -0.6956]],
    )
    assert_credit(C["igpo"](rollout), F1, [[1.4908, 0.7257, 1], [-1.4908, 0.0233, -1]])


def test_igpo_gains_telescope():
    """The first turn's sum of gains is the total change of m less the mean gains."""
    rng = np.random.default_rng(0)
    info, r = rng.normal(size=(3, 5)), [[0, 0, 0, 1.0], [0, 0, 2.0], [0, 0.5]]
    A = shown(C["igpo"](play(r, info=info)), r)
    gains = [np.diff(info[i, : len(x)]) for i, x in enumerate(r)]
    every = np.concatenate(gains)
    for i, x in enumerate(r):
        m = len(x) - 1
        assert_close(
            A[i][0] - A[i][-1], (info[i, m] - info[i, 0] - m * every.mean()) / every.std(), 1e-4
        )


def test_igpo_sums_to_zero_at_the_first_turn_unless_it_discounts():
    """The first turns' credit sums all normalized gains and outcomes: two centered pools."""
    rng = np.random.default_rng(1)
    info, even = rng.normal(size=(4, 5)), [[0, 0, x] for x in rng.normal(size=4)]
    for r in (even, [*even[:3], [0, even[3][2]]]):
        assert abs(np.asarray(C["igpo"](play(r, info=info)))[0, :, 0].sum()) < 1e-4
        assert abs(np.asarray(C["igpo"](play(r, info=info), gamma=0.9))[0, :, 0].sum()) > 1e-2


def test_igpo_of_one_turn_is_grpo_and_ignores_a_factor_of_the_gold_probability():
    rollout = random_turns(5, ("info",), K=1)
    assert_close(C["igpo"](rollout), C["grpo"](rollout))
    rollout = random_turns(5, ("info",))
    assert (jnp.abs(C["igpo"](rollout) - C["grpo"](rollout)) > 1e-2).any()
    moved = rollout.with_signals(info=rollout["info"] - 3.0)
    assert_close(C["igpo"](moved), C["igpo"](rollout), 1e-4)
    joint = {"kind": "prob", "pool": "joint"}
    assert (jnp.abs(C["igpo"](moved, **joint) - C["igpo"](rollout, **joint)) > 1e-2).any()


def test_a_gain_that_is_no_number_is_no_gain():
    broken = np.array(GOLD)
    broken[0, 1] = -np.inf
    A = np.asarray(C["igpo"](play(F1, info=broken)))
    assert np.isfinite(A).all() and A[0, 0, 2] == pytest.approx(1, abs=1e-5)


def test_answer_weights_examples_and_their_sum():
    cluster, r = jnp.array([0, 0, 0, 1]), jnp.array([0.5, 0.5, 0.5, 0.9])
    for eta, q in ((0.0, [0.75, 0.25]), (1.0, [0.66788, 0.33212]), (2.0, [0.5741, 0.4259])):
        assert_close(kernels.answer_weights(cluster, r, eta=eta), [q[0]] * 3 + [q[1]], 1e-4)
    unequal, seen = jnp.array([0.2, 0.8, JUNK, JUNK]), jnp.array([True, True, False, False])
    assert_close(
        kernels.answer_weights(cluster, unequal, observed=seen),
        [np.exp(0.5) * 3 / (np.exp(0.5) * 3 + 1)] * 3 + [1 / (3 * np.exp(0.5) + 1)],
    )
    assert_close(
        kernels.answer_weights(cluster, r, where=jnp.array([True, False, False, False])),
        [1, 0, 0, 0],
    )
    assert (kernels.answer_weights(cluster, r, where=jnp.zeros(4, bool)) == 0).all()
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 3, 7)
    q = np.asarray(
        kernels.answer_weights(jnp.asarray(cluster), jnp.asarray(rng.random(7)), eta=1.7)
    )
    assert sum({c: x for c, x in zip(cluster, q, strict=True)}.values()) == pytest.approx(
        1, abs=1e-6
    )


def test_siop_example():
    r = [[0, 0], [0, 0]]
    rollout = play(
        r, info=np.log([[0.1, 0.2, 0.5], [0.2, 0.15, 0.3]]), answer_weight=[0.66788, 0.33212]
    )
    assert_credit(C["siop"](rollout, ddof=1), r, [[1.30046, 1.21703], [-1.30046, -0.07306]])
    assert_credit(
        C["siop"](rollout), r, np.array([[1.30046, 1.21703], [-1.30046, -0.07306]]) * np.sqrt(4 / 3)
    )


def test_siop_rewards_telescope_and_do_not_look_at_the_verifier():
    """The rewards sum to q (log p_K - log p_0) + (1 - lam) q, of one turn to (1 - lam) q."""
    rng = np.random.default_rng(2)
    info, q, r = (
        np.log(rng.uniform(0.1, 1, (4, 5))),
        rng.uniform(0.1, 1, 4),
        [[0] * 4, [0] * 2, [0] * 3, [0]],
    )
    A = np.asarray(C["siop"](play(r, info=info, answer_weight=q)))
    rewards = [
        q[i] * np.diff(info[i, : len(x) + 1]) * (len(x) > 1)
        + 0.5 * q[i] * (np.arange(len(x)) == len(x) - 1)
        for i, x in enumerate(r)
    ]
    pool = np.concatenate(rewards)
    for i, x in enumerate(r):
        total = q[i] * (info[i, len(x)] - info[i, 0]) * (len(x) > 1) + 0.5 * q[i]
        assert_close(A[0, i, 0], (total - len(x) * pool.mean()) / pool.std(), 1e-4)
    assert (C["siop"](play([[5.0] * len(x) for x in r], info=info, answer_weight=q)) == A).all()


def test_siop_of_certain_answers_is_igpo_whose_answer_turn_comes_later():
    rng = np.random.default_rng(3)
    info, r = np.log(rng.uniform(0.1, 1, (3, 5))), [[0] * 3, [0] * 2, [0] * 3]
    sure, unsure = (play(r, info=info, answer_weight=q) for q in ([1.0] * 3, [1.0, 0.5, 0.2]))
    later = [[0] * (len(x) + 1) for x in r]
    want = [a[:-1] for a in shown(C["igpo"](play(later, info=info)), later)]
    assert_credit(C["siop"](sure, lam=1.0), r, want)
    assert np.abs(flat(shown(C["siop"](unsure, lam=1.0), r)) - flat(want)).max() > 1e-2
    none = shown(C["siop"](play(r, info=info, answer_weight=[1.0, 0.0, 1.0])), r)
    assert (np.array(none[1]) == 0).all() and np.abs(none[0]).max() > 0.1


# ---------------------------------------------------------------- MatchTIR and assignments

greedy, optimal, transport = (
    jax.jit(f)
    for f in (kernels.greedy_assignment, kernels.optimal_assignment, kernels.optimal_transport)
)
CALLS = jnp.array([[0.75, 0.5], [0.625, 2 / 3], [0, 0]])


def test_matchtir_example():
    r = [[0.75, 1, 1], [0, 0.5, 0], [0.75, 0.25, 1]]
    assert_credit(
        C["matchtir"](play(r), ddof=1),
        r,
        [[0.8739, 0.9479, 0.7251], [-1.0906, -1.0332, -1.1229], [0.2166, 0.0853, 0.3978]],
        2e-4,
    )


def test_matchtir_turns_that_one_trajectory_alone_has():
    r = [[0, 0, 3.0], [1.0]]
    A = shown(C["matchtir"](play(r)), r)
    assert_close(flat(A), [1, 0.5, 0.5, -1], 1e-4)
    assert_close(
        flat(shown(C["matchtir"](play(r), singleton="raw"), r)),
        [1, (1 + 2.7) / 2, (1 + 3.0) / 2, -1],
        1e-4,
    )
    assert_close(
        flat(shown(C["matchtir"](play(r[:1]), singleton="raw"), r[:1])),
        [(3 + 2.43) / 2, (3 + 2.7) / 2, 3],
        1e-4,
    )


def test_matchtir_of_one_turn_is_grpo():
    rollout = random_turns(6, K=1)
    assert_close(C["matchtir"](rollout), C["grpo"](rollout))
    rollout = random_turns(6)
    assert (jnp.abs(C["matchtir"](rollout) - C["grpo"](rollout)) > 1e-2).any()


def test_assignment_examples():
    for solve in (greedy, optimal):
        assert_close(kernels.match_rewards(solve(CALLS), CALLS), [0.75, 2 / 3, 0])
        assert_close(kernels.match_rewards(solve(CALLS), CALLS, penalty=-0.5), [0.75, 2 / 3, -0.5])
    T = transport(CALLS)
    assert_close(T, [[0.2907, 0.0427], [0.0898, 0.2435], [0.1195, 0.2138]], 2e-4)
    assert_close(kernels.match_rewards(T, CALLS), [0.2393, 0.2185, 0], 2e-4)
    S = jnp.array([[0.9, 0.8], [0.85, 0.1]])
    assert float((greedy(S) * S).sum()) == pytest.approx(1.0) and float(
        (optimal(S) * S).sum()
    ) == pytest.approx(1.65)
    assert_close(kernels.match_rewards(transport(S), S), [0.4019, 0.4110], 2e-4)


def test_optimal_is_the_best_of_all_and_greedy_at_least_half():
    rng = np.random.default_rng(0)
    S = rng.integers(0, 5, (40, 3, 4)) / 4 * (rng.random((40, 3, 4)) < 0.8)
    plans = [
        np.asarray(jax.jit(jax.vmap(f))(jnp.asarray(S, jnp.float32)))
        for f in (kernels.greedy_assignment, kernels.optimal_assignment)
    ]
    best = np.array(
        [
            max(sum(s[i, p[i]] for i in range(3)) for p in itertools.permutations(range(4), 3))
            for s in S
        ]
    )
    totals = [(plan * S).sum((1, 2)) for plan in plans]
    assert_close(totals[1], best)
    assert (
        (totals[0] <= best + 1e-6).all()
        and (totals[0] >= best / 2 - 1e-6).all()
        and (totals[0] < best - 0.1).any()
    )
    for plan in plans:
        assert (
            (plan.sum(1) <= 1).all()
            and (plan.sum(2) <= 1).all()
            and set(np.unique(plan)) == {0, 1}
            and (plan[S == 0] == 0).all()
        )


def test_assignments_follow_their_predictions_and_pay_a_duplicate_once():
    order = jnp.array([2, 0, 1])
    for solve in (greedy, optimal, transport):
        assert_close(solve(CALLS[order]), solve(CALLS)[order], 1e-5)
    perfect = jnp.eye(3)
    twice = jnp.array([[1.0, 0.2], [1.0, 0.2], [0.2, 1.0]])
    for solve in (greedy, optimal):
        assert_close(kernels.match_rewards(solve(perfect), perfect), [1, 1, 1])
        assert_close(
            np.sort(kernels.match_rewards(solve(twice), twice)),
            [0.0, 1, 1] if solve is greedy else [0, 1, 1],
        )
    assert (
        float(kernels.match_rewards(greedy(twice), twice)[1]) == 0
    )  # the first of two equal calls matches


def test_transport_keeps_its_marginals_and_padding_changes_nothing():
    rng = np.random.default_rng(1)
    S = jnp.asarray(rng.random((4, 3)), jnp.float32)
    T = transport(S)
    assert_close(T.sum(1), np.full(4, 1 / 4), 1e-5)
    assert_close(T.sum(0), np.full(3, 1 / 3), 1e-4)
    padded, rows, cols = (
        jnp.full((6, 5), 7.0).at[:4, :3].set(S),
        jnp.arange(6) < 4,
        jnp.arange(5) < 3,
    )
    for solve in (greedy, optimal, transport):
        plan = solve(padded, rows, cols)
        assert_close(plan[:4, :3], solve(S), 1e-5)
        assert float(plan.sum()) == pytest.approx(float(plan[:4, :3].sum()))
        for none in ((rows, cols & False), (rows & False, cols)):
            assert (solve(padded, *none) == 0).all()
        assert solve(jnp.zeros((0, 3))).shape == (0, 3)


# ---------------------------------------------------------------- Search-R2 and Sotopia


def test_search_r2_selection_and_correction_add_up_to_the_gain():
    """All two-token answers; 01 is right. A rejected answer is rewritten from a random cut."""
    answers = [(0, 0), (0, 1), (1, 0), (1, 1)]
    p_first, p_one = 0.6, {0: 0.5, 1: 0.8}  # P(0) first; P(1) second given the first
    pi = np.array(
        [
            (p_first if a == 0 else 1 - p_first) * (p_one[a] if b else 1 - p_one[a])
            for a, b in answers
        ]
    )
    assert_close(pi, [0.3, 0.3, 0.08, 0.32], 1e-12)
    R = np.array([float(y == (0, 1)) for y in answers])
    alpha = np.where(R > 0, 0.9, 0.3)
    anew = {
        0: np.tile(pi, (4, 1)),
        1: np.array(
            [[(p_one[a] if d else 1 - p_one[a]) * (c == a) for c, d in answers] for a, _ in answers]
        ),
    }
    q = pi * alpha + ((pi * (1 - alpha))[:, None] * (anew[0] + anew[1]) / 2).sum(0)
    assert_close(q, [0.228, 0.408, 0.0728, 0.2912], 1e-12)
    V_cut = ((anew[0] + anew[1]) / 2) @ R
    gain, mean = q @ R - pi @ R, pi @ R
    assert q.sum() == pytest.approx(1, abs=1e-12) and gain == pytest.approx(0.108, abs=1e-12)
    assert gain == pytest.approx(pi @ ((1 - alpha) * (V_cut - R)), abs=1e-12)
    selection, correction = (
        pi @ (alpha * R) - (pi @ alpha) * mean,
        pi @ ((1 - alpha) * (V_cut - mean)),
    )
    assert (selection, correction) == pytest.approx((0.126, -0.018), abs=1e-12)
    assert gain == pytest.approx(selection + correction, abs=1e-12)


def test_search_r2_rewards():
    r, d = [[1], [0], [1], [0]], [2 / 6, 2 / 6, 0, 0]
    for form, H in (
        ("gated", [7 / 6, 0, 1, 0]),
        ("weighted", [7 / 6, 1 / 6, 1, 0]),
        ("product", [1 / 3, 0, 0, 0]),
    ):
        assert_close(
            np.asarray(C["search_r2"](play(r, density=d), form=form))[0, :4, 0],
            [z_score(H, h) for h in H],
            1e-4,
        )


def test_search_r2_of_equal_density_is_grpo():
    rollout = random_turns(10, ("density",))
    assert_close(C["search_r2"](rollout, weight=0.0), C["grpo"](rollout))
    assert_close(
        C["search_r2"](rollout.with_signals(density=jnp.full_like(rollout["density"], 0.4))),
        C["grpo"](rollout),
        1e-4,
    )
    assert (jnp.abs(C["search_r2"](rollout) - C["grpo"](rollout)) > 1e-2).any()


def test_sotopia_examples():
    real = jnp.array([[True] * 4 + [False]])

    def rewards(form, marks=(3, 0, 2, 1), score=8.0):
        mark = jnp.array([[*marks, JUNK]], jnp.float32)[..., None]
        return np.asarray(kernels.utterance_rewards(mark, jnp.array([[score]]), real, form=form))[
            0, :, 0
        ]

    assert_close(rewards("scaled"), [8, 0, 5.33333, 2.66667, 0])
    assert_close(rewards("normalized"), [4, 0, 2.66667, 1.33333, 0])
    assert_close(rewards("discount"), [5.832, 6.48, 7.2, 8, 0])
    assert_close(rewards("uniform"), [8, 8, 8, 8, 0])
    assert_close(rewards("progress"), [2.4, 0, 1.6, 0.8, 0])
    assert_close(rewards("key"), [8, 0, 0, 0, 0])
    assert_close(rewards("scaled", (-1, 0, 2, 1)), [-1, 0, 5.33333, 2.66667, 0])
    assert_close(rewards("normalized", (0, -1, 0, 0)), [2, 2, 2, 2, 0])
    rng = np.random.default_rng(0)
    marks = np.sort(rng.uniform(0, 3, 4))
    assert rewards("normalized", marks).sum() == pytest.approx(8, abs=1e-5)
    assert (np.diff(rewards("scaled", marks)[:4]) > 0).all() and (
        rewards("scaled", marks) <= 8
    ).all()


def test_sotopia_dimensions_are_put_on_one_scale():
    r, score = [[0]] * 3, np.array([[8, 2, 1], [4, 4, 0], [6, 0, 3.0]])
    mark = np.zeros((3, 1, 3))
    merged = [6.1111, 3.3333, 5.0]
    want = [[z_score(merged, x)] for x in merged]
    for a, b in (
        (1, 0),
        (np.array([3.0, 0.1, 7]), np.array([5, -2, 0.0])),
    ):  # affine changes of a dimension
        assert_credit(
            C["sotopia"](play(r, attribution=mark, score=a * score + b), form="uniform"),
            r,
            want,
            2e-4,
        )
    equal = np.array(
        [[8, 5, 1], [4, 5, 0], [6, 5, 3.0]]
    )  # a dimension of equal scores counts 0, not 0/0
    two = [np.mean([a, 0, b]) for a, b in ((1, 1 / 3), (0, 0), (0.5, 1))]
    assert_credit(
        C["sotopia"](play(r, attribution=mark, score=equal), form="uniform"),
        r,
        [[z_score(two, x)] for x in two],
        2e-4,
    )


# ---------------------------------------------------------------- EPO


def test_epo_example_and_its_loss():
    r = [[1, 0, 1, 0.8], [0, 0]]
    answer = C["epo"](play(r))
    assert_credit(answer, r, [[1, 0.6436, 0.6501, 0.2902], [0, 0]])
    answer = {name: x[:1, :4, :4] for name, x in answer.items()}
    assert_close(answer["weight"][0], [[0.25] * 4, [0.5, 0.5, 0, 0], [0] * 4, [0] * 4])
    rng = np.random.default_rng(0)
    logp = -rng.random((1, 4, 4))
    batch = loss_batch(
        logp, logp, answer["advantage"], np.zeros((1, 4, 4)), mask=play(r).action_mask[:1, :4, :4]
    )
    batch = losses.Batch(**{**vars(batch), "weight": answer["weight"]})
    loss = losses.divide(*losses.token_mean(losses.reinforce(jnp.asarray(logp), batch), batch))
    A = shown(answer, r)
    assert_close(
        loss, -np.mean([np.mean(np.array(A[i]) * logp[0, i, : len(A[i])]) for i in range(2)]), 1e-5
    )


def test_epo_ignores_the_scale_of_rewards_and_its_largest_is_one():
    rollout = random_turns(11)
    A = C["epo"](rollout)["advantage"]
    assert_close(
        C["epo"](Rollout(**{**vars(rollout), "reward": 7 * rollout.reward}))["advantage"], A
    )
    moved = C["epo"](Rollout(**{**vars(rollout), "reward": rollout.reward + 1}))["advantage"]
    assert (jnp.abs(moved - A) > 1e-2).any() and jnp.abs(A).max() == pytest.approx(1, abs=1e-6)
    weight = np.asarray(C["epo"](rollout)["weight"]).sum((-1, -2)) - np.asarray(
        rollout.action_mask.any(-1)
    ).sum(-1)
    assert (
        weight < 1e-5
    ).all()  # weights of a trajectory sum to 1, or less if a turn has no policy token
