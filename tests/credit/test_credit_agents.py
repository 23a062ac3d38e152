"""Agents, games and strata: worked examples, defining properties of each rule, and reductions."""

import math
from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from reference_loops import LOOPS
from reference_loops.agents import shapley_by_orders
from small_rollouts import assert_matches_loop, jitted, one_prompt, random_rollout

import jaxcredit.credit as catalogue
from jaxcredit import kernels, signals
from jaxcredit.credit import laws
from jaxcredit.rollout import Rollout

mars, dr_mas, coma, shapley = (
    jitted(getattr(catalogue, name)) for name in ("mars", "dr_mas", "coma", "shapley")
)
difference_rewards, qmix, gtalign = (
    jitted(getattr(catalogue, name)) for name in ("difference_rewards", "qmix", "gtalign")
)
grpo, san = (jitted(getattr(catalogue, name)) for name in ("grpo", "san"))


def team(reward, agent, real=None, **more):
    """One prompt; each segment of a trajectory has one token."""
    G, K = np.shape(reward)
    real = np.ones((G, K), bool) if real is None else np.asarray(real, bool)
    segment = np.where(real, np.arange(K), -1)
    return one_prompt(
        reward,
        np.zeros((G, K)),
        action_mask=real,
        segment=segment,
        segment_mask=real,
        agent=agent,
        **more,
    )


@pytest.mark.parametrize(
    ("credit", "loop"),
    [
        (
            partial(catalogue.mars, unique=True, normalize=True, whiten=True, ddof=1),
            partial(LOOPS["mars"], unique=True, normalize=True, whiten=True, ddof=1),
        ),
        (partial(catalogue.dr_mas, own=True, ddof=1), partial(LOOPS["dr_mas"], own=True, ddof=1)),
    ],
    ids=["mars as released", "dr_mas own"],
)
def test_oracle_with_knobs(credit, loop):
    rollout = laws.synthetic(11, ("agent",), N=100, T=14, R=7, G=5, kinds=(0,))
    rollout = Rollout(
        **{**vars(rollout), "reward": jnp.round(rollout.reward)}
    )  # returns are whole numbers: equal where they are equal
    assert_matches_loop(credit, loop, rollout, atol=3e-5)


# ---------------------------------------------------------------- MARS

X = team([[0, 0, 1], [0, -1, 0]], [[0] * 3] * 2, [[1, 1, 1], [1, 1, 0]])
O = team([[0, -1, 0], [0, 0.5, 0]], [[1] * 3] * 2, [[1, 1, 0]] * 2)  # noqa: E741


def test_mars_example():
    assert_close(mars(X)[0], [[0.8, 0.8, 0.8], [-1.2, -1.2, 0]])
    assert_close(mars(X, unique=True)[0], [[1, 1, 1], [-1, -1, 0]])
    for unique in (False, True):
        assert_close(mars(O, unique=unique)[0, :, :2], [[-0.75, -0.75], [0.75, 0.75]])
    assert_close(mars(O, normalize=True, eps=0.0)[0, :, :2], [[-1, -1], [1, 1]])


def test_mars_sums_before_it_normalises():
    """Normalizing each turn and then summing would reward the number of turns."""
    r = np.array([[0, -1], [0, 0.5]])
    apart = np.cumsum((r - r.mean())[:, ::-1], 1)[:, ::-1]
    assert_close(apart, [[-0.75, -0.875], [0.75, 0.625]])
    assert np.abs(np.asarray(mars(O)[0, :, :2]) - apart).max() > 0.1
    longer = team(
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]],
        [[0] * 4] * 3,
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]],
    )
    A = np.asarray(mars(longer)[0])
    assert_close(A[:, 0], A[0, 0])  # equal returns, whatever the number of turns


def test_mars_roles_have_baselines_of_their_own():
    rollout = random_rollout(1, ("agent",))
    bonus = jnp.where(rollout["agent"] == 1, 5.0, 0)
    first = (
        jnp.cumsum((rollout["agent"] == 1) & rollout.segment_mask, -1) == 1
    )  # once a trajectory, before all else the role does
    ahead = Rollout(
        **{
            **vars(rollout),
            "reward": rollout.reward + jnp.where(rollout.segment_mask & first, bonus, 0),
        }
    )
    whole = Rollout(
        **{
            **vars(rollout),
            "reward": rollout.reward
            + jnp.where(rollout.segment_mask & _last(rollout, 1), bonus, 0),
        }
    )
    assert_close(
        mars(whole), mars(rollout), 1e-4
    )  # a bonus that all of a role's turns await cancels
    assert (
        jnp.abs(mars(ahead) - mars(rollout)) > 0.1
    ).any()  # one that only its first turn awaits does not
    renamed = rollout.with_signals(agent=jnp.array([2, 0, 1])[rollout["agent"]])
    assert_close(mars(renamed), mars(rollout))


def _last(rollout, agent):
    mine = (rollout["agent"] == agent) & rollout.segment_mask
    return mine & (jnp.cumsum(mine[..., ::-1], -1)[..., ::-1] == 1)


def test_mars_swapping_players_swaps_their_credit():
    reward, agent = np.array([[0, 0, 1.0, -1], [0, 0.5, -1, 1]]), np.array([[0, 1] * 2] * 2)
    A = np.asarray(mars(team(reward, agent))[0])
    swapped = np.asarray(mars(team(reward[:, [1, 0, 3, 2]], agent))[0])
    assert_close(swapped, A[:, [1, 0, 3, 2]])
    assert_close(A[:, ::2].mean(), 0), assert_close(A[:, 1::2].mean(), 0)
    assert np.abs(A - np.asarray(mars(team(reward, agent * 0))[0])).max() > 0.1
    assert (
        mars(team([[3.0, 0.1]], [[0, 1]])) == 0
    ).all()  # each player once: nothing to compare with


def test_center_by_sorting_is_center():
    rng = np.random.default_rng(0)
    x, by, where = (
        jnp.asarray(rng.normal(size=(4, 30)) + 1e4, jnp.float32),
        jnp.asarray(rng.integers(-2, 3, (4, 30))),
        jnp.asarray(rng.random((4, 30)) < 0.7),
    )

    @jax.jit
    def both(x):
        slope = jax.grad(
            lambda x: (kernels.center_by_role(x, by, where, normalize=True, ddof=1) ** 2).sum()
        )(x)
        centered = kernels.center_by_role(x, by, where), kernels.center(x, by, where)
        return (
            *centered,
            kernels.center_by_role(x, by, where, normalize=True, ddof=1),
            kernels.standardize(x, by, where, ddof=1),
            slope,
        )

    sorted_, centered, scaled, z, _ = both(x)
    assert_close(sorted_, centered, 1e-5)
    assert_close(scaled, z, 1e-4)
    flat = both(jnp.full((4, 30), 0.7))
    assert (flat[0] == 0).all() and (flat[2] == 0).all() and jnp.isfinite(flat[4]).all()


# ---------------------------------------------------------------- Dr.MAS


def test_dr_mas_example():
    assert_close(
        dr_mas(team([[1], [0], [5], [9]], [[0], [0], [1], [1]]), eps=0.0)[0, :, 0], [1, -1, -1, 1]
    )
    apart = team(
        [[1, 5], [0, 9]], [[0, 1]] * 2
    )  # the same numbers as rewards of two agents in two trajectories
    assert_close(dr_mas(apart, own=True, eps=0.0)[0], [[1, -1], [-1, 1]])
    assert_close(dr_mas(apart, eps=0.0)[0], [[-1, -1], [1, 1]])  # the outcome is 6 and 9 for both


def test_dr_mas_of_one_agent_with_a_segment_each_is_grpo():
    one, several = random_rollout(2, ("agent",), K=1), random_rollout(2, ("agent",))
    alone = partial(Rollout.with_signals, agent=jnp.zeros_like(one["agent"]))
    assert_close(dr_mas(alone(one)), grpo(one), 1e-6)
    assert (jnp.abs(dr_mas(one) - grpo(one)) > 1e-3).any()
    assert (
        jnp.abs(
            dr_mas(several.with_signals(agent=jnp.zeros_like(several["agent"]))) - grpo(several)
        )
        > 1e-3
    ).any()


# ---------------------------------------------------------------- COMA, difference rewards, QMIX


def test_coma_example():
    Q, pi = [[[1, 2, 0]] * 3], [[[0.5, 0.25, 0.25]] * 3]
    rollout = team([[0, 0, 1]], [[0] * 3], choice=[[0, 1, 2]], choice_value=Q, choice_prob=pi)
    assert_close(coma(rollout)[0], [[0, 1, -1]])


def test_coma_is_zero_on_average_over_the_policy():
    rng = np.random.default_rng(0)
    Q, pi = rng.normal(size=(40, 5)), rng.dirichlet(np.ones(5), 40)
    A = np.stack(
        [
            kernels.choice_advantage(jnp.float32(Q), jnp.float32(pi), jnp.full(40, u))
            for u in range(5)
        ],
        1,
    )
    assert_close((pi * A).sum(1), 0, 1e-6)
    assert np.abs((A / 5).sum(1)).max() > 0.1  # and not under another policy
    shut = kernels.choice_advantage(jnp.array([1.0, -jnp.inf]), jnp.array([1.0, 0.0]), jnp.array(0))
    assert shut == 0  # a choice that cannot be made


V = [
    0,
    1,
    2,
    4,
    0,
    1,
    3,
    6,
]  # of the sets of agents 0, 1, 2: bit a of the index says whether a is in


def test_shapley_example():
    assert_close(kernels.shapley_values(jnp.float32(V)), [1.833333, 3.333333, 0.833333], 1e-6)
    assert_close(shapley_by_orders(V), [1.833333, 3.333333, 0.833333], 1e-6)
    without = [[6 - V[6], 6 - V[5], 6 - V[3]]]
    assert without == [[3, 5, 2]]
    rollout = team([[0, 0, 6]], [[0, 1, 2]], coalition=[V], counterfactual=[[V[6], V[5], V[3]]])
    assert_close(shapley(rollout)[0], [[1.833333, 3.333333, 0.833333]], 1e-6)
    assert_close(difference_rewards(rollout)[0], without)
    assert_close(shapley(rollout).sum(), 6, 1e-6)
    assert abs(float(difference_rewards(rollout).sum()) - 6) > 3  # not shared out: 10


@pytest.mark.parametrize("A", [1, 2, 4, 8])
def test_shapley_is_the_one_fair_rule(A):
    rng = np.random.default_rng(A)
    v, w = rng.normal(size=(2, 2**A))
    sets, values = np.arange(2**A), jax.jit(kernels.shapley_values)
    phi, psi = (np.asarray(values(jnp.float32(x)), np.float64) for x in (v, w))
    if A <= 4:
        assert_close(phi, shapley_by_orders(v), 1e-5)
    assert_close(phi.sum(), v[-1] - v[0], 1e-5)  # efficient
    assert_close(values(jnp.float32(2 * v - 3 * w)), 2 * phi - 3 * psi, 1e-4)  # linear
    null = v[sets & ~1]
    assert_close(values(jnp.float32(null))[0], 0, 1e-5)  # who adds nothing gets nothing
    order = rng.permutation(A)
    renamed = np.array([v[sum(1 << order[a] for a in range(A) if s >> a & 1)] for s in sets])
    assert_close(values(jnp.float32(renamed)), phi[order], 1e-5)  # names do not matter
    assert_close(values(jnp.float32(v + 1e3)), phi, 1e-2)


def test_sampled_shapley_is_exact_over_all_orders_and_efficient_over_any():
    v = jnp.float32(np.random.default_rng(0).normal(size=(3, 16)))
    every = jnp.array(list(permutations(range(4))))
    assert_close(
        kernels.sampled_shapley_values(every, v[:, kernels.coalition_prefixes(every)]),
        kernels.shapley_values(v),
        1e-5,
    )
    some = kernels.random_orders(5, 4, seed=0)
    assert (
        some.shape == (5, 4)
        and (jnp.sort(some, -1) == jnp.arange(4)).all()
        and (some[1] == some[0, ::-1]).all()
    )
    phi = kernels.sampled_shapley_values(some, v[:, kernels.coalition_prefixes(some)])
    assert_close(phi.sum(-1), v[:, -1] - v[:, 0], 1e-5)
    assert jnp.abs(phi - kernels.shapley_values(v)).max() > 0.1
    with pytest.raises(ValueError, match="2"):
        kernels.shapley_values(jnp.ones(6))


def test_shapley_of_pairs_needs_two_orders_and_of_nine_agents_is_sampled():
    """Sampled orders with their reverses are exact if only pairs of agents interact."""
    A = 9
    W = np.triu(np.random.default_rng(1).normal(size=(A, A)))
    bits = (np.arange(2**A)[:, None] >> np.arange(A)) & 1
    v = np.einsum("sa,ab,sb->s", bits, W, bits)
    rollout = team(np.zeros((1, A)), [np.arange(A)], coalition=[v])
    assert_close(
        shapley(rollout, orders=2)[0, 0],
        np.diag(W) + (np.triu(W, 1).sum(0) + np.triu(W, 1).sum(1)) / 2,
        1e-4,
    )
    assert_close(shapley(rollout), shapley(rollout, orders=2), 1e-4)


def test_qmix_example():
    q, w1, b1 = jnp.array([1, -0.5]), jnp.array([[0.5, -0.2], [-0.3, 0.8]]), jnp.array([0.1, 0.0])
    w2, b2 = jnp.array([1, -0.5]), jnp.float32(0.2)
    assert_close(kernels.monotonic_mix(q, w1, b1, w2, b2), 0.559365, 1e-6)
    slope = kernels.monotonic_mix_slope(q, w1, b1, w2, b2)
    assert_close(slope, [0.581873, 0.627494], 1e-5)
    rollout = team([[0, 1]], [[0, 1]], mixing=[slope], action_value=[[1, -0.5]], value=[[0.5, 0.5]])
    assert_close(qmix(rollout)[0], [[0.5 * 0.581873, -0.627494]], 1e-5)
    plain = rollout.with_signals(mixing=jnp.ones((1, 1, 2)))
    assert_close(qmix(plain)[0], [[0.5, -1]])


def test_what_is_best_for_each_is_best_for_the_team():
    rng = np.random.default_rng(0)
    Q = rng.normal(size=(3, 4))
    joint = np.stack(np.meshgrid(*Q, indexing="ij"), -1).reshape(-1, 3)
    n, weights = len(joint), [jnp.float32(rng.normal(size=s)) for s in ((3, 5), (5,), (5,), ())]
    w1, b1, w2, b2 = (jnp.broadcast_to(w, (n, *w.shape)) for w in weights)
    team_value, slope = jax.jit(
        lambda *a: (kernels.monotonic_mix(*a), kernels.monotonic_mix_slope(*a))
    )(jnp.float32(joint), w1, b1, w2, b2)
    assert (joint[np.argmax(team_value)] == Q.max(1)).all() and (slope >= 0).all()
    hidden = joint @ np.asarray(weights[0]) + np.asarray(weights[1])  # without |W| it need not be
    worse = (
        np.where(hidden > 0, hidden, np.expm1(np.minimum(hidden, 0))) * np.asarray(weights[2])
    ).sum(-1)
    assert (joint[np.argmax(worse)] != Q.max(1)).any()


# ---------------------------------------------------------------- GTAlign


def test_gtalign_welfare():
    u = jnp.asarray(np.random.default_rng(0).random((50, 2)), jnp.float32)
    welfare = jax.jit(kernels.nash_welfare)
    W = np.asarray(welfare(u))
    assert_close(W, np.sqrt(np.prod(np.asarray(u, np.float64), -1)), 1e-6)
    assert (W <= np.asarray(u).mean(-1) + 1e-6).all()
    assert_close(W, welfare(np.asarray(u)[:, ::-1]), 1e-7)
    edges = jnp.array([[0.0, 9.0], [-1.0, -1.0], [0.7810, 0.9196]])
    value, slope = jax.jit(jax.value_and_grad(lambda u: kernels.nash_welfare(u).sum()))(edges)
    assert_close(value, 0.84747, 1e-5)  # two of them are 0
    assert jnp.isfinite(slope).all() and (slope[:2] == 0).all()


def test_gtalign_where_all_players_want_the_outcome_is_grpo():
    rollout = random_rollout(3, ("utility",), kinds=(0,))
    shared = rollout.with_signals(
        utility=jnp.broadcast_to(
            jnp.where(rollout.segment_mask, rollout.reward, 0).sum(-1)[..., None], (64, 6, 3)
        )
    )
    assert_close(gtalign(shared), grpo(rollout), 1e-5)
    assert (jnp.abs(gtalign(rollout) - grpo(rollout)) > 1e-3).any()


def test_pareto_example():
    cells = jnp.array([[0.6, 0.5], [0.4, 0.9], [0.7, 0.7], [0.5, 0.5]])
    pareto, choice = jax.jit(kernels.pareto_front), jax.jit(kernels.pareto_choice)
    assert pareto(cells).tolist() == [False, True, True, False]
    assert choice(cells) == 2
    assert (
        choice(jnp.array([[0.4, 0.8], [0.8, 0.4], [0.6, 0.6], [0.1, 0.1]])) == 1
    )  # equal sums: the user's best
    assert pareto(jnp.ones((4, 2))).all() and choice(jnp.ones((4, 2))) == 0


# ---------------------------------------------------------------- strata

parts = jax.jit(kernels.variance_parts)
R7, S7 = [1, 0, 1, 1, 0, 0, 0.5], [0, 0, 0, 1, 1, 1, 2]


def test_variance_parts_example():
    where = jnp.arange(12) < 7
    whole, within, between = parts(jnp.float32([*R7] + [9] * 5), jnp.array(S7 + [0] * 5), where)
    assert_close([whole, within, between], [0.2142857, 0.1904762, 0.0238095], 1e-5)


def test_variance_between_strata():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, by, where = rng.normal(size=12), rng.integers(0, 4, 12), rng.random(12) < 0.8
        whole, within, between = parts(jnp.float32(x + 100), jnp.asarray(by), jnp.asarray(where))
        x, by = x[where], by[where]
        means = sum((by == k).sum() * (x[by == k].mean() - x.mean()) ** 2 for k in set(by)) / len(x)
        assert_close([whole, between], [x.var(), means], 1e-4)
        assert_close(whole - within, between, 1e-4)
        assert between >= 0 and means > 1e-4
    whole, within, between = parts(
        jnp.float32([1, 3, 0, 4, 2, 2] * 2), jnp.array([0, 0, 1, 1, 2, 2] * 2), jnp.ones(12, bool)
    )
    assert_close([whole, between], [5 / 3, 0], 1e-6)  # equal means: nothing between


def test_centered_outcomes_are_those_within_and_a_constant_of_the_stratum():
    x, by = jnp.float32(R7), jnp.array(S7)
    bias = kernels.center(x) - kernels.center(x, by)
    assert_close(bias, kernels.mean_by(x, by) - 0.5, 1e-6)
    std, within = np.asarray(kernels.std_by(x)), np.asarray(kernels.std_by(x, by))
    assert_close(
        grpo(one_prompt(R7), eps=0.0)[0, :, 0],
        within / std * san(one_prompt(R7, stratum=S7), alpha=1.0, eps=0.0)[0, :, 0] + bias / std,
        1e-5,
    )


def test_san_within_strata():
    """Mean 0 and variance 1 in each stratum whose rewards differ."""
    A = np.asarray(san(one_prompt(R7, stratum=S7), alpha=1.0, eps=0.0)[0, :, 0], np.float64)
    for k in (0, 1):
        assert_close([A[np.array(S7) == k].mean(), A[np.array(S7) == k].var()], [0, 1], 1e-5)
    assert_close([A.mean(), A.var()], [0, 1 - 1 / 7], 1e-5)
    assert_close(
        san(one_prompt(R7, stratum=range(7)), alpha=0.6, eps=0.0),
        0.4 * grpo(one_prompt(R7), eps=0.0),
        1e-5,
    )
    assert (np.asarray(san(one_prompt(R7, stratum=S7))[0, 6]) == 0).all()


def test_san_is_unchanged_by_an_affine_map_of_each_stratum():
    a, b = np.array([2, 0.5, 3])[S7], np.array([-1, 4, 7])[S7]
    mapped, plain = one_prompt(a * np.array(R7) + b, stratum=S7), one_prompt(R7, stratum=S7)
    assert_close(san(mapped, alpha=1.0, eps=0.0), san(plain, alpha=1.0, eps=0.0), 1e-5)
    assert (jnp.abs(grpo(mapped) - grpo(plain)) > 0.1).any()


def test_strata_of_calls_and_of_signals():
    real = [[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    kinds = [[2, 1, 9], [2, 8, 8], [2, 1, 7], [2, 1, 0]]
    rollout = team(np.zeros((4, 3)), kinds, real)
    assert signals.segment_counts(rollout).tolist() == [[2, 1, 2, 3]]
    assert signals.by_signal("agent")(rollout).tolist() == [
        [0, 1, 0, 3]
    ]  # what lies where nothing took place does not count
    rollout = rollout.with_signals(pair=jnp.array([[5, 6, 5, 5]]))
    assert signals.by_signal("pair")(rollout).tolist() == [[5, 6, 5, 5]]
    entry = signals.strata(signals.by_signal("agent"))
    learned = entry(None, None)
    assert entry.provides == ("stratum",) and learned.annotate({}, None, rollout, None)[
        "stratum"
    ].tolist() == [[0, 1, 0, 3]]
    ragged = random_rollout(4)
    by_calls = ragged.with_signals(stratum=signals.segment_counts(ragged))
    assert (jnp.abs(san(by_calls) - grpo(ragged)) > 1e-3).any() and math.isfinite(
        float(san(by_calls).sum())
    )
