"""Schedules, answer budgets, the exposure controller, teacher and preference objectives."""

import doctest
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from scipy.special import softmax
from scipy.stats import beta

from jaxcredit import losses
from jaxcredit.kernels.value_learning import distilled_advantage, two_path_weights
from jaxcredit.losses import Batch, preferences
from jaxcredit.signals import budgets, exposure, macro, schedules, stratification, tree_labels


@pytest.mark.parametrize(
    ("module", "examples"),
    [(schedules, 3), (budgets, 1), (macro, 2), (stratification, 2), (tree_labels, 6)],
)
def test_doctests(module, examples):
    assert doctest.testmod(module) == (0, examples)


# ---------------------------------------------------------------- schedules


def test_length_budget_example():
    B = [schedules.length_budget(step) for step in (0, 149, 150, 300, 450)]
    assert pytest.approx([256, 256, 179.2, 125.44, 87.808]) == B
    path = [schedules.length_budget(step, start=20, every=3) for step in range(60)]
    assert path == sorted(path, reverse=True) and path[-1] == 1


def test_zero_search_example():
    p = [schedules.noisy_documents(x) for x in (0, 0.25, 0.5, 0.75, 1)]
    assert p == pytest.approx([0, 0.0690, 0.1667, 0.3047, 0.5], abs=5e-5)


def test_zero_search_is_monotone_convex_and_a_line_at_base_one():
    x = np.linspace(0, 1, 21)
    for base in (1.5, 4, 100):
        p = np.array([schedules.noisy_documents(v, start=0.1, end=0.9, base=base) for v in x])
        assert p[0] == pytest.approx(0.1) and p[-1] == pytest.approx(0.9)
        assert (np.diff(p) > 0).all() and (np.diff(p, 2) > 0).all()
    for base in (1.0, 1 + 1e-9, 1 - 1e-9, 1 + 1e-15):
        assert_close([schedules.noisy_documents(v, end=1.0, base=base) for v in x], x, 1e-8)
    assert schedules.noisy_documents(2.0) == 0.5
    with pytest.raises(ValueError, match="base"):
        schedules.noisy_documents(0.5, base=0)


# ---------------------------------------------------------------- knapsack


def test_knapsack_example():
    p = np.array([0.1, 0.5, 0.9])
    n = budgets.knapsack(p, 12, low=2, high=8)
    assert n.tolist() == [5, 5, 2]
    assert budgets.rollout_value(n, p).sum() == pytest.approx(0.151977, abs=1e-6)
    assert budgets.rollout_value(4, p) == pytest.approx([0.027848, 0.109375, 0.003094], abs=1e-6)
    assert budgets.rollout_value(4, p).sum() == pytest.approx(0.140317, abs=1e-6)
    assert (
        budgets.information(1 / 3)
        == pytest.approx(0.148148, abs=1e-6)
        == budgets.information(np.linspace(0, 1, 301)).max()
    )
    assert budgets.mixed_chance(21.9, 0.1) == pytest.approx(0.9, abs=1e-3)


def test_knapsack_is_optimal():
    rng = np.random.default_rng(0)
    for _ in range(60):
        p = rng.choice([0, 0.1, 0.3, 0.5, 0.77, 1, *rng.random(2)], 3)
        low, high = 2, int(rng.integers(3, 8))
        total = int(rng.integers(3 * low, 3 * high + 1))
        every = [n for n in itertools.product(range(low, high + 1), repeat=3) if sum(n) == total]
        best = max(budgets.rollout_value(np.array(n), p).sum() for n in every)
        n = budgets.knapsack(p, total, low=low, high=high)
        assert n.sum() == total and n.min() >= low and n.max() <= high
        assert budgets.rollout_value(n, p).sum() == pytest.approx(best, abs=1e-12)


def test_knapsack_invariants():
    p = np.array([0.2, 0.5, 0.0, 1.0, 0.85])
    grown = [budgets.knapsack(p, total, high=12) for total in range(10, 61)]
    assert all(
        (b >= a).all() for a, b in zip(grown, grown[1:], strict=False)
    )  # grows with the budget
    assert grown[20][2] == grown[20][3] == 2  # always or never solved: the minimum
    assert budgets.knapsack(p, 40, high=12).tolist() == [12, 12, 2, 2, 12]
    assert budgets.knapsack(p, 45, high=12).tolist() == [
        12,
        12,
        7,
        2,
        12,
    ]  # the rest goes to the unsolved prompt first
    equal = budgets.knapsack([0.3] * 7, 24)
    assert np.ptp(equal) == 1 and equal.sum() == 24
    assert budgets.knapsack([0.5, math.nan], 10).tolist() == [5, 5]
    for rates, total in (([0.5, 0.5], 3), ([0.5], 200), ([1.5], 4)):
        with pytest.raises(ValueError):
            budgets.knapsack(rates, total)


def test_the_value_of_answers_is_concave():
    p, n = np.linspace(0.02, 0.98, 25)[:, None], np.arange(1, 60)
    second = np.diff(budgets.mixed_chance(n, p), 2)
    assert_close(second, -(p ** n[:-2]) * (1 - p) ** 2 - (1 - p) ** n[:-2] * p**2, 1e-12)


# ---------------------------------------------------------------- exposure


def controller(seed):
    """Controller weights whose output depends on the state."""
    weights = exposure.init(3, key=jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return {
        k: v + jnp.asarray(0.3 * rng.normal(size=v.shape), jnp.float32) for k, v in weights.items()
    }


@jax.jit
def look(weights, stats, share, reward, bonus):
    """(a, b), log-density and gradient of the loss in one program, because they compile slowly."""
    gradient = jax.grad(exposure.controller_loss)(weights, stats, share, reward, bonus=bonus)
    return (
        exposure.beta_parameters(weights, stats),
        exposure.log_prob(weights, stats, share),
        gradient,
    )


@pytest.mark.slow  # the sampler compiles for a minute on a busy machine
def test_the_exposed_share_lies_inside():
    weights, stats = (
        controller(0),
        jnp.asarray(np.random.default_rng(1).normal(size=(2000, 3)), jnp.float32),
    )
    e = np.asarray(jax.jit(exposure.sample)(weights, stats, key=jax.random.key(3)))
    a, b = exposure.beta_parameters(weights, stats)
    assert ((e > 0) & (e < 1)).all()
    assert_close((e - a / (a + b)).mean(), 0, 0.02)


def moments(weights, stats):
    """a and b for the one state of all decisions."""
    h = np.tanh(stats[0] @ weights["w1"] + weights["b1"]) @ weights["w2"] + weights["b2"]
    return 1 + np.log1p(np.exp(np.float64(h)))


def test_the_exposure_density_and_its_slope():
    weights, reward, n = controller(0), jnp.full(2000, -1.0), np.arange(2000)
    stats = np.broadcast_to(np.random.default_rng(1).normal(size=3), (2000, 3)).astype(np.float32)
    a, b = moments(weights, stats)
    share = ((n + 0.5) / 2000).astype(np.float32)
    found, log, gradient = jax.tree.map(np.asarray, look(weights, stats, share, reward, 0.0))
    assert_close([x[0] for x in found], (a, b), 1e-5)
    assert min(a, b) > 1 and abs(a - b) > 0.1
    assert_close(log, beta.logpdf(share, a, b), 1e-4)

    def numeric(f, h=1e-4):
        bias = [[weights["b2"] + d * np.eye(2)[i] for d in (h, -h)] for i in range(2)]
        ab = [[moments({**weights, "b2": x}, stats) for x in two] for two in bias]
        return [(f(*up) - f(*down)) / (2 * h) for up, down in ab]

    assert_close(gradient["b2"], numeric(lambda a, b: beta.logpdf(share, a, b).mean()), 1e-3)
    own = beta.ppf((n + 0.5) / 2000, a, b).astype(np.float32)  # quantiles of the policy
    surprise = look(weights, stats, own, jnp.zeros(2000), 1.0)[2]
    assert_close(surprise["b2"], numeric(lambda a, b: -beta.entropy(a, b)), 1e-2)


def test_exposure_is_reinforced_by_progress_alone():
    metric, follow = (
        jnp.array([3.0, 2.0, 2.5, 1.0]),
        jax.jit(lambda L, gamma: exposure.progress(L, gamma=gamma)),
    )
    assert_close(exposure.progress(metric, gamma=0.0), [1, -0.5, 1.5])  # immediate progress
    assert_close(follow(metric, 0.5), [1 - 0.25 + 0.375, -0.5 + 0.75, 1.5])
    assert_close(follow(metric, 1.0), metric[:-1] - metric[-1])  # telescoping sum
    weights, stats, share = (
        controller(1),
        np.ones((2000, 3), np.float32),
        np.full(2000, 0.9, np.float32),
    )
    still = look(weights, stats, share, jnp.zeros(2000), 0.0)[2]  # a constant metric has progress 0
    assert (
        all((g == 0).all() for g in jax.tree.leaves(still))
        and (follow(jnp.full(4, 2.0), 0.9) == 0).all()
    )
    before = look(
        weights, stats, share, jnp.ones(2000), 0.0
    )  # the loss makes a share with progress more likely
    after = look(
        jax.tree.map(lambda w, g: w - 0.1 * g, weights, before[2]),
        stats,
        share,
        jnp.ones(2000),
        0.0,
    )
    assert after[1][0] > before[1][0]
    assert_close(exposure.update_baseline(jnp.float32(1.0), jnp.array([2.0, 4.0]), decay=0.75), 1.5)


# ---------------------------------------------------------------- teachers


def test_scope_weights_example():
    logp, teacher = -np.log([1.5, 3, 1, 1]), -np.log([1, 1, 1.2, 2.4])
    correct = jnp.array([True, True, False, False])
    w = partial(two_path_weights, jnp.float32(logp), jnp.float32(teacher), correct)
    assert_close(w(), [1 / 3, 2 / 3, 2 / 3, 1 / 3], 1e-6)
    assert_close(w(to_size=True), [2 / 3, 4 / 3, 4 / 3, 2 / 3], 1e-6)
    assert_close(
        w(inverted=True), [2 / 3, 1 / 3, 2 / 3, 1 / 3], 1e-6
    )  # the release with its own settings
    assert_close(w(temperature=1e6), [0.5] * 4, 1e-5)
    assert_close(w(where=jnp.array([True, False, True, True])), [1, 0, 2 / 3, 1 / 3], 1e-6)
    assert_close(two_path_weights(jnp.full(4, -2.0), jnp.full(4, -1.0), correct), [0.5] * 4)
    assert_close(
        two_path_weights(jnp.full(2, -2.0), jnp.full(2, -1.0), jnp.array([True, True])), [0.5, 0.5]
    )


def test_scope_weights_are_positive_and_sum_to_one_on_each_path():
    rng = np.random.default_rng(0)
    logp, teacher = (jnp.asarray(-rng.exponential(size=(20, 6)) * 3, jnp.float32) for _ in range(2))
    correct, where = jnp.asarray(rng.random((20, 6)) < 0.5), jnp.asarray(rng.random((20, 6)) < 0.8)
    w = np.asarray(
        jax.jit(partial(two_path_weights, temperature=0.7))(logp, teacher, correct, where),
        np.float64,
    )
    for n, i in np.ndindex(20, 6):
        path = np.asarray(where[n] & (correct[n] == correct[n, i]))
        x = -np.asarray(logp[n]) / 0.7 if correct[n, i] else np.asarray(teacher[n]) / 0.7
        assert_close(w[n, i], softmax(x[path])[path[:i].sum()] if where[n, i] else 0, 1e-5)


def a_batch(logp, ref_logp, **fields):
    """Fields of a batch [1, R, S] whose tokens all have weight."""
    ones = jnp.ones(logp.shape)
    full = {
        "action_mask": ones > 0,
        "advantage": 0 * ones,
        "weight": ones,
        "clip": ones,
        "segment": jnp.zeros(ones.shape, int),
        **fields,
    }
    return {
        k: jnp.broadcast_to(v, ones.shape)
        for k, v in {"logp": logp, "ref_logp": ref_logp, **full}.items()
    }


def test_distillation_follows_the_slope_of_kl():
    """The expected gradient over the student's tokens is that of KL(p || p_teacher)."""
    z, teacher = jnp.array([0.3, -0.4, 1.1]), jax.nn.log_softmax(jnp.array([1.0, 0.2, -0.5]))
    own = jax.nn.log_softmax(z)

    def expected(z):
        logp = jax.nn.log_softmax(z)[:, None]  # one row for each token of the vocabulary
        batch = Batch(**a_batch(own[None, :, None], teacher[None, :, None]))
        return (jnp.exp(own)[:, None] * losses.distill(logp[None], batch)[0]).sum()

    def kl(z):
        return (jnp.exp(jax.nn.log_softmax(z)) * (jax.nn.log_softmax(z) - teacher)).sum()

    (value, g), (divergence, true) = jax.jit(
        lambda z: [jax.value_and_grad(f)(z) for f in (expected, kl)]
    )(z)
    assert_close(g, true, 1e-5)
    assert_close(value, divergence, 1e-6)


def test_scope_imitates_what_is_right_and_corrects_what_is_wrong():
    old = np.log([[[0.5, 0.2], [0.4, 0.1]]]).astype(np.float32)
    logp = old + np.float32([[[0.1, -0.2], [0.3, 0.0]]])
    teacher = np.log([[[0.6, 0.3], [0.2, 0.3]]]).astype(np.float32)
    fields = a_batch(
        old, teacher, advantage=jnp.array([[[1.0], [0.0]]]), weight=jnp.array([[[2.0], [0.5]]])
    )
    rho = np.exp(logp - old)
    imitate, correct = -rho[0, 0], (rho * (logp - teacher))[0, 1]

    @jax.jit
    def loss(logp, mask):
        batch = Batch(**{**fields, "action_mask": mask})

        def total(logp):
            numerator, rows = losses.sequence_sum(losses.scope(logp, batch), batch)
            return numerator / rows, losses.scope(logp, batch)

        return jax.value_and_grad(total, has_aux=True)(logp)

    (value, each), slope = loss(logp, fields["action_mask"])
    assert_close(each[0], [imitate, correct])
    assert_close(value, (2 * imitate.sum() + 0.5 * correct.sum()) / 2)
    assert_close(
        slope[0], [2 * imitate / 2, 0.5 * correct / 2]
    )  # gradients of the likelihood and of the teacher's term
    logp[0, 0, 1] = -np.inf
    holed = loss(logp, jnp.array([[[True, False], [True, True]]]))[1]
    assert jnp.isfinite(holed).all() and holed[0, 0, 1] == 0
    with pytest.raises(ValueError, match="teacher"):
        losses.scope(
            jnp.asarray(logp), Batch(**{k: v for k, v in fields.items() if k != "ref_logp"})
        )


def test_distillation_term_example():
    A = jnp.full((2, 2), -0.5)
    student, teacher = jnp.array([[-1.0, -2.0]] * 2), jnp.array([[-2.0, -0.5]] * 2)
    wrong = jnp.array([[True], [False]]) & jnp.ones((2, 2), bool)
    assert_close(distilled_advantage(A, student, teacher, wrong), [[-0.55, -0.425], [-0.5, -0.5]])
    assert_close(distilled_advantage(A, student, teacher, wrong, coef=0.0), A)
    assert_close(distilled_advantage(A, student, student, wrong), A)
    assert jnp.isfinite(
        distilled_advantage(A, student.at[1, 0].set(-jnp.inf), teacher, wrong)
    ).all()


# ---------------------------------------------------------------- pairs


def test_dpo_example():
    numbers = [jnp.float32(x) for x in (-3.0, -4.0, -3.5, -3.8)]
    assert_close(preferences.dpo(*numbers), 0.658760, 1e-6)
    assert_close(
        preferences.dpo(*numbers[:2], *numbers[:2]), math.log(2), 1e-6
    )  # policy = reference
    logp, ref, mask = (
        jnp.array([[-1.0, -2.0, 9.0], [-4.0, 9.0, 9.0]]),
        jnp.array([[-1.5, -2.0, 9.0], [-3.8, 9.0, 9.0]]),
        [[1, 1, 0], [1, 0, 0]],
    )
    r = preferences.implicit_reward(logp, ref, jnp.array(mask, bool))
    assert_close(r, [0.05, -0.02])
    assert_close(preferences.bradley_terry_loss(*r), 0.658760, 1e-6)
    assert jnp.isfinite(
        preferences.implicit_reward(logp.at[0, 2].set(-jnp.inf), ref, jnp.array(mask, bool))
    ).all()


def test_a_shared_beginning_does_not_move():
    """Two answers with a shared prefix: only logits after it have a gradient."""
    table = jnp.asarray(
        np.random.default_rng(0).normal(size=(6, 5)), jnp.float32
    )  # prefix numbers: 0 and 1 shared, 2-3 of the winner, 4-5 of the loser

    def loss(table):
        logp = jax.nn.log_softmax(table)
        paths = jnp.array([[0, 1, 2, 3], [0, 1, 4, 5]]), jnp.array([[1, 2, 3, 0], [1, 2, 4, 1]])
        better, worse = logp[paths].sum(-1)
        return preferences.dpo(better, worse, jnp.float32(-5.0), jnp.float32(-6.0))

    moves = jax.jit(jax.grad(loss))(table)
    assert_close(moves[:2], 0, 1e-7)
    assert (jnp.abs(moves[2:]).max(-1) > 1e-3).all()


def test_mode_loss():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)
    s = jnp.array([1.0, -1.0, 0.0])
    loss = partial(preferences.mode_loss, long=2, short=5, temperature=0.5)
    g = np.asarray(jax.jit(jax.grad(lambda z: loss(z, s).sum()))(z))
    assert (g[2] == 0).all() and (np.delete(g, [2, 5], 1) == 0).all()
    assert g[0, 2] < 0 < g[0, 5] and g[1, 5] < 0 < g[1, 2]
    assert_close(
        loss(z, s), preferences.mode_loss(z, -s, long=5, short=2, temperature=0.5)
    )  # swapped
    assert_close(loss(z, s)[2], math.log(2), 1e-6)
