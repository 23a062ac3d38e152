"""Exact values against enumeration of all paths, metrics against numbers by hand, the matrix."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcredit import arena, credit
from jaxcredit.arena import enumerate as trees
from jaxcredit.arena import matrix, metrics
from jaxcredit.arena.world import NATURE, OVER
from jaxcredit.arena.worlds import lengths
from jaxcredit.policy import transformer

sample = jax.jit(arena.sample, static_argnames=("prompts", "group"))


@jax.jit
def solved(task, noise):
    w = task.world()
    logits = task.policy() + noise
    return w, logits, arena.solve(w, logits)


# Small members of every family, with the expected reward of a sequence of tokens in plain Python.


def hackable(tokens, _):
    good, broken = 0, False
    for a in tokens:
        if a == 3:
            return float(good >= 2 and not broken)
        good, broken = good + (a == 0), broken or a == 1
    return 0.0


def hub(tokens, _):
    progress = wait = 0
    for a in tokens:
        if wait:
            wait -= 1
        elif a == 0:
            progress += 1
            if progress == 2:
                return 1.0
        elif a == 2:
            wait = 1
    return 0.0


def search(tokens, _):
    known = len({a for a in tokens if a < 2})
    sure = 0.9**0.5 / (0.9**0.5 + 0.1**0.5)
    return sure**known * 0.5 ** (2 - known)


def repaired(tokens, _):
    state, paid = "fine" if tokens[0] == 0 else "broken", 0.0
    for act, reply in zip(tokens[1::2], tokens[2::2], strict=True):
        paid += 0.02 * (act == 0)
        if state == "broken" and act == 0 and reply == 0:
            state = "mended"
    return {"fine": 0.9, "mended": 0.7, "broken": 0.05}[state] - paid


def twin(tokens, z):
    return 0.5 - (0.4 * (tokens[0] - 0.5) - 0.5 * (z - 0.5))


SMALL = {
    "KeyBranch": (
        arena.KeyBranch(T=4, at=1, gap=2, keys=2, need=2, decoys=3, c_pre=0.8),
        lambda a, _: 0.9 if a[1] == a[3] == 0 else 0.1,
    ),
    "HackablePRM": (arena.HackablePRM(need=2, horizon=4), hackable),
    "Strata": (
        arena.Strata(mass=(0.5, 0.3, 0.2)),
        lambda a, _: 0.2 + 0.3 * a[0] + 0.1 * (a[1] == 0),
    ),
    "AnchorHub": (arena.AnchorHub(visits=2, corridor=1, horizon=5), hub),
    "PlanLag": (arena.PlanLag(subgoals=2, L=2), lambda a, _: ((a[0] == 0) + (a[2] == 0)) / 2),
    "BitSearch": (arena.BitSearch(bits=2, decoys=1, leaks=1, turns=3, eta=0.5, noise=0.1), search),
    "Team": (arena.Team(n=4), lambda a, _: (max(a[0], a[1]) + a[2] * a[3]) / 2),
    "Recovery": (arena.Recovery(attempts=2), repaired),
    "Umbrella": (arena.Umbrella(turns=3, decoys=2, at=1), lambda a, _: 0.9 if a[2] == 0 else 0.1),
    "Twin": (arena.Twin(sign=-1.0), twin),
    "ReplayNoise": (arena.ReplayNoise(T=4, at=1, decoys=2), lambda a, _: 0.9 if a[1] == 0 else 0.1),
    "Lengths": (
        arena.Lengths(short=2, long=4, T=4, fillers=2),
        lambda a, _: 0.9 if a[0] < 2 else 0.1,
    ),
}


def paths(w, logits):
    """All paths: probability, first state, steps, expected reward, and pi.

    A step is (step, state, row, token, whether the policy wrote it).
    """
    with np.errstate(over="ignore"):
        pi = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    T = w.row.shape[0]

    def walk(t, s, p, steps, earned):
        if t == T or w.actor[t, s] == OVER:
            yield p, steps, earned
            return
        row = w.row[t, s]
        for a in np.flatnonzero(pi[row] > 0):
            step = (t, s, row, int(a), w.actor[t, s] != NATURE)
            yield from walk(
                t + 1,
                w.next[t, s, a],
                p * pi[row, a],
                [*steps, step],
                earned + w.reward[t, s, a] + w.chance[t, s, a],
            )

    for s in np.flatnonzero(w.start):
        for p, steps, earned in walk(0, s, float(w.start[s]), [], 0.0):
            yield p, s, steps, earned, pi


def test_every_family_is_here():
    assert set(SMALL) == {f.__name__ for f in arena.FAMILIES} and len(SMALL) == 12


@pytest.mark.parametrize("name", SMALL)
def test_values_and_gradient_equal_a_walk_over_every_path(name):
    """Rewards, values and gradients equal a walk over all paths, to 1e-10."""
    task, rule = SMALL[name]
    with jax.enable_x64(True):
        P, A = task.policy().shape
        noise = np.random.default_rng(0).normal(size=(P, A))
        w, logits, exact = jax.tree.map(np.asarray, solved(task, jnp.asarray(noise)))
    by_score, by_advantage, J, mass, future = np.zeros((P, A)), np.zeros((P, A)), 0.0, {}, {}
    for p, start, steps, earned, pi in paths(w, logits):
        assert abs(earned - rule([a for *_, a, _ in steps], start)) < 1e-12
        J, so_far = J + p * earned, 0.0
        for t, s, row, a, ours in steps:
            mass[t, s] = mass.get((t, s), 0) + p
            future[t, s] = future.get((t, s), 0) + p * (earned - so_far)
            so_far += w.reward[t, s, a] + w.chance[t, s, a]
            if ours:
                score = np.eye(A)[a] - pi[row]
                by_score[row] += p * earned * score
                by_advantage[row] += p * exact.advantage[t, s, a] * score
    assert len(mass) > 1 and abs(exact.objective - J) < 1e-12
    for (t, s), m in mass.items():
        assert (
            abs(exact.visit[t, s] - m) < 1e-12 and abs(exact.value[t, s] - future[t, s] / m) < 1e-10
        )
    np.testing.assert_allclose(by_advantage, by_score, rtol=0, atol=1e-10)
    np.testing.assert_allclose(exact.gradient, by_score, rtol=0, atol=1e-10)
    assert np.abs(by_score).max() > 1e-4


def test_a_sweep_compiles_once():
    before = solved._cache_size()
    values = [
        solved(arena.Twin(sign=s, d=d), jnp.zeros((2, 2)))[2].advantage[0, 0, 1]
        for s in (1.0, -1.0)
        for d in (0.1, 0.4)
    ]
    assert solved._cache_size() == before + 1
    np.testing.assert_allclose(
        values, [0.09, 0.36, -0.09, -0.36], rtol=1e-5
    )  # sign d (1 - pi(1 | z = 0))


def test_a_mean_over_tokens_is_hidden_credit():
    task, _ = SMALL["Lengths"]
    with jax.enable_x64(True):
        w, logits, exact = jax.tree.map(
            np.asarray, solved(task, jnp.zeros(task.policy().shape, float))
        )
        divided = np.asarray(lengths.sequence_gradient(task, jnp.asarray(logits)))
    expected = np.zeros(logits.shape)
    for p, _, steps, _, pi in paths(w, logits):
        for t, s, row, a, _ in steps:
            expected[row] += p * exact.advantage[t, s, a] / len(steps) * (np.eye(4)[a] - pi[row])
    np.testing.assert_allclose(divided, expected, rtol=0, atol=1e-12)
    # Value is the same for short and long; with division by length, right answers become short and
    # wrong answers long.
    assert abs(exact.gradient[0, 0] - exact.gradient[0, 1]) < 1e-12
    assert divided[0, 0] > divided[0, 1] + 0.01 and divided[0, 3] > divided[0, 2] + 0.01


def test_twin_deceives_whoever_reads_the_log_alone():
    """Estimators that read the log are at chance; a replay from the hidden state is not."""
    signs = {}
    for sign in (1.0, -1.0):
        batch = sample(arena.Twin(sign=sign), prompts=2000, group=8, key=jax.random.key(3))
        a, R = np.asarray(batch.rollout.tokens)[..., 0], np.asarray(batch.rollout.reward)[..., 0]
        assert abs(R[a == 1].mean() - 0.5) < 0.025 and abs(R[a == 0].mean() - 0.5) < 0.025
        weights = metrics.resampling(2000, resamples=2)
        for f in (credit.rloo, credit.tempo, credit.difference_rewards):
            signs[f.__name__, sign] = metrics.credit_metrics(
                jax.jit(f)(batch.rollout), batch, weights
            )["sign"][0]
    for sign in (1.0, -1.0):
        assert abs(signs["rloo", sign] - 0.5) < 0.02 and abs(signs["tempo", sign] - 0.5) < 0.02
        assert signs["difference_rewards", sign] > 0.6


def test_a_seed_is_a_batch():
    draw = partial(sample, arena.Twin(), prompts=2000, group=8)
    a, b, c = draw(key=jax.random.key(0)), draw(key=jax.random.key(0)), draw(key=jax.random.key(1))
    assert all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    assert not np.array_equal(a.rollout.tokens, c.rollout.tokens)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "Lengths" else pytest.mark.slow) for n in SMALL]
)
def test_samples_are_of_the_world(name):
    """Rollouts are valid, with mean return J and the exact gradient from exact credit."""
    task = SMALL[name][0]
    batch = sample(task, prompts=2000, group=8, key=jax.random.key(5))
    rollout, mask = batch.rollout.check(), np.asarray(batch.rollout.action_mask)
    for signal in rollout.signals.values():
        assert np.isfinite(np.asarray(signal, np.float64)).all()
    R = np.asarray(rollout.reward).sum(-1)
    assert abs(R.mean() - float(batch.exact.objective)) < 4.5 * R.std() / R.size**0.5 + 1e-6
    assert (
        np.isfinite(np.asarray(rollout.logp)[mask]).all()
        and not np.asarray(batch.truth.advantage)[~mask].any()
    )
    g = np.asarray(arena.gradient(batch.truth.advantage, batch, task.policy()))
    error = np.abs(g.mean(0) - batch.exact.gradient)
    assert (error < 5 * g.std(0) / len(g) ** 0.5 + 1e-6).all()


def test_ragged_families_say_what_took_place():
    batch = sample(SMALL["Lengths"][0], prompts=2000, group=8, key=jax.random.key(5)).rollout
    length = np.where(np.asarray(batch.tokens)[..., 0] % 2 == 1, 4, 2)
    np.testing.assert_array_equal(np.asarray(batch.action_mask).sum(-1), length)


@pytest.mark.slow
def test_nature_writes_what_the_policy_is_not_credited_for():
    turns = sample(SMALL["Recovery"][0], prompts=2000, group=8, key=jax.random.key(5)).rollout
    np.testing.assert_array_equal(np.asarray(turns.action_mask)[0, 0], [1, 1, 0, 1, 0])
    np.testing.assert_array_equal(np.asarray(turns.segment)[0, 0], [0, 1, 1, 2, 2])


# Token trees.


def remembering(T, V, width=5):
    """Parameters of a recurrent policy, and a function from parameters to its table of logits."""
    rng = np.random.default_rng(4)
    params = {
        k: jnp.asarray(rng.normal(size=s))
        for k, s in {"in": (V, width), "h": (width, width), "out": (width, V)}.items()
    }

    def policy(params, tokens):
        h, out = jnp.zeros((len(tokens), width)), []
        for t in range(T):
            out.append(h @ params["out"])
            h = jnp.tanh(h @ params["h"] + params["in"][tokens[:, t]]) if t < T - 1 else h
        return jnp.stack(out, 1)

    return params, lambda params: trees.table(partial(policy, params), T, V)


def close(a, b, tol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tol)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b)) > 1e-3


def test_exact_credit_of_a_token_tree_is_the_score_function():
    with jax.enable_x64(True):
        params, make = remembering(4, 3)
        reward = jnp.asarray(np.random.default_rng(1).random(81))
        logits = jax.jit(make)(params)
        task = trees.TokenTree(logits=logits, reward=reward, T=4, V=3)
        close(
            *jax.jit(
                lambda p, r: tuple(f(make, p, r) for f in (trees.gradient, trees.score_gradient))
            )(params, task),
            1e-10,
        )
        # By hand: the value of a prefix is the mean reward of the answers that begin with it.
        exact = jax.jit(lambda task: arena.solve(task.world(), task.logits))(task)
        pi, sequences = np.exp(np.asarray(jax.nn.log_softmax(logits))), trees.answers(4, 3)
        offsets = [0, 1, 4, 13]
        P = np.ones(81)
        for t in range(4):
            prefix = sequences[:, :t] @ 3 ** np.arange(t)[::-1] if t else np.zeros(81, int)
            P *= pi[offsets[t] + prefix, sequences[:, t]]
        for t in range(4):
            prefix = sequences[:, :t] @ 3 ** np.arange(t)[::-1] if t else np.zeros(81, int)
            for s in range(3**t):
                mine = prefix == s
                assert abs(exact.value[t, s] - (P * reward)[mine].sum() / P[mine].sum()) < 1e-12


@pytest.mark.slow
def test_the_transformer_is_enumerated():
    cfg = transformer.Config(vocab=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn=8)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32),
        transformer.specs(cfg),
        is_leaf=lambda x: hasattr(x, "axes"),
    )

    def make(params):
        return trees.table(trees.of_transformer(params, cfg, jnp.array([1, 2, 0])), 4, 3, chunk=9)

    task = trees.TokenTree(
        logits=jnp.zeros((40, 3)), reward=jnp.asarray(rng.random(81), jnp.float32), T=4, V=3
    )
    logits, a, b = jax.jit(
        lambda p, task: (
            make(p),
            trees.gradient(make, p, task),
            trees.score_gradient(make, p, task),
        )
    )(params, task)
    close(
        a, b, 2e-5
    )  # norms, softmax and logits are float32: the identity itself is tested to 1e-10 above
    row = jnp.array([[1, 2, 0, 2, 1, 0]])
    plain = transformer.logits(params, row, jnp.ones(row.shape, bool), cfg)[0]
    for t, place in enumerate(
        (0, 1 + 2, 4 + 2 * 3 + 1, 13 + 2 * 9 + 1 * 3)
    ):  # after [], [2], [2, 1], [2, 1, 0]
        np.testing.assert_allclose(logits[place], plain[2 + t], atol=2e-5)


def test_a_stop_token_ends_the_answer():
    task = trees.TokenTree(logits=jnp.zeros((7, 2)), reward=jnp.arange(8.0), T=3, V=2, stop=(1,))
    w = jax.tree.map(np.asarray, task.world())
    found = {
        tuple(a for *_, a, _ in steps): (p, earned)
        for p, _, steps, earned, _ in paths(w, np.zeros((7, 2)))
    }
    assert found == {
        (1,): (0.5, 4.0),
        (0, 1): (0.25, 2.0),
        (0, 0, 0): (0.125, 0.0),
        (0, 0, 1): (0.125, 1.0),
    }


@pytest.mark.parametrize("group", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_expectations_over_every_group(group):
    """RLOO is unbiased, Dr. GRPO is (G - 1)/G of the truth, to 1e-12; TEMPO is slightly biased."""
    with jax.enable_x64(True):
        _, make = remembering(3, 2)
        logits = jnp.asarray(np.random.default_rng(8).normal(size=(7, 2)))
        task = trees.TokenTree(
            logits=logits,
            reward=jnp.asarray(np.random.default_rng(2).integers(0, 2, 8) * 1.0),
            T=3,
            V=2,
        )

        @partial(jax.jit, static_argnums=0)
        def expected(estimators, task):
            batch, p = trees.every_group(task, group)
            means = [
                jnp.einsum("n,npa->pa", p, arena.gradient(f(batch.rollout), batch, task.logits))
                for f in estimators
            ]
            return batch.exact.gradient, p.sum(), *means

        truth, mass, rloo, dr_grpo, tempo = map(
            np.asarray, expected((credit.rloo, credit.dr_grpo, credit.tempo), task)
        )
    assert abs(mass - 1) < 1e-12 and np.abs(truth).max() > 1e-2
    np.testing.assert_allclose(rloo, truth, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dr_grpo, truth * (group - 1) / group, rtol=0, atol=1e-12)
    cosine = (tempo * truth).sum() / np.linalg.norm(tempo) / np.linalg.norm(truth)
    assert 0.9 < cosine < 1 - 1e-6


# Metrics.


def test_gradient_numbers_of_known_noise():
    rng = np.random.default_rng(0)
    truth, lean = np.array([3.0, 0, 0, 0]), np.array([3.0, 4.0, 0, 0])
    g = 2 * rng.normal(size=(20000, 4)) + lean  # tr Cov = 16, |E g|^2 = 25, along the truth 9
    m = {
        k: metrics.interval(x)
        for k, x in metrics.gradient_metrics(
            g, truth, metrics.resampling(20000, resamples=100)
        ).items()
    }
    for name, expected in {
        "gsnr": 25 / 16,
        "asnr": 9 / (41 - 9),
        "cos_mean": 0.6,
        "magnitude": 5 / 3,
    }.items():
        assert abs(m[name].value / expected - 1) < 0.03 and m[name].low < expected < m[name].high, (
            name
        )
    assert (
        metrics.gradient_metrics(-g, truth, metrics.resampling(20000, resamples=2))["asnr"][0] < 0
    )
    silent = metrics.gradient_metrics(
        np.zeros((10, 3)), np.zeros(3), metrics.resampling(10, resamples=5)
    )
    assert np.isnan(silent["cos_mean"][0]) and np.isnan(silent["gsnr"][0])
    sure = metrics.gradient_metrics(
        np.ones((10, 3)), np.ones(3), metrics.resampling(10, resamples=5)
    )
    assert sure["gsnr"][0] == np.inf and metrics.interval(sure["asnr"]) == (np.inf, np.inf, np.inf)
    assert metrics.interval(np.array([1.0, 2, 3])) == (1, 2, 3)
    assert np.isnan(metrics.interval(np.array([1.0, 2, 3, np.nan])).low)


def test_the_slope_without_compiling_is_the_slope():
    task = SMALL["Lengths"][0]
    batch, rng = (
        sample(task, prompts=2000, group=8, key=jax.random.key(5)),
        np.random.default_rng(0),
    )
    credit = rng.normal(size=batch.rollout.action_mask.shape)
    np.testing.assert_allclose(
        metrics.group_gradients(credit, batch, task.policy()),
        arena.gradient(jnp.asarray(credit), batch, task.policy()),
        atol=1e-5,
    )


def test_pairs_are_told_apart_where_intervals_overlap():
    rng = np.random.default_rng(1)
    noise, w = rng.normal(size=(400, 6)), metrics.resampling(400)
    g = noise + np.array([1.0, 0, 0, 0, 0, 0])
    a, b = (
        metrics.gradient_metrics(x, np.eye(6)[0], w)["gsnr"] for x in (g, g + 0.1 * np.eye(6)[0])
    )
    assert metrics.interval(a).high > metrics.interval(b).low  # alone they overlap
    assert metrics.ratio(b, a).low > 1 and metrics.difference(b, a).low > 0  # paired they do not


def test_identification_by_hand():
    """One state with two actions (A = 1/2, -1/2), then a decoy."""
    A = np.array([[[0.5, 0.0], [-0.5, 0.0]]] * 50)
    cell = np.array([[[0, 2], [1, 2]]] * 50)
    batch = SimpleNamespace(
        rollout=SimpleNamespace(action_mask=np.ones(A.shape, bool)),
        truth=SimpleNamespace(advantage=A, cell=cell),
        exact=SimpleNamespace(advantage=np.zeros((2, 1, 2))),
    )
    w = metrics.resampling(50, resamples=20)
    m = {k: x[0] for k, x in metrics.credit_metrics(A, batch, w).items()}
    assert (
        m["sign"] == m["top1"] == m["topk"] == 1
        and m["leak"] == m["bias"] == m["deviation"] == 0
        and abs(m["error"]) < 1e-12
    )
    m = {k: x[0] for k, x in metrics.credit_metrics(-2 * A, batch, w).items()}
    assert (
        m["sign"] == 0 and m["error"] == 1 and m["pearson"] == pytest.approx(-1) and m["top1"] == 1
    )
    broadcast = np.broadcast_to(np.array([0.5, -0.5])[:, None], A.shape)
    m = {k: x[0] for k, x in metrics.credit_metrics(broadcast, batch, w).items()}
    assert m["sign"] == 1 and m["leak"] == 0.5 and m["top1"] == 0.5
    assert (
        m["error"] == pytest.approx(0.5)
        and m["bias"] == 0
        and m["deviation"] == pytest.approx(0.125**0.5)
    )
    shifted = {
        k: x[0] for k, x in metrics.credit_metrics(A + np.array([1.0, 0]), batch, w).items()
    }  # any baseline of the state is legal
    assert (
        shifted["bias"] == pytest.approx(0.5**0.5)
        and shifted["centered_bias"] < 1e-12
        and abs(shifted["error"]) < 1e-12
    )


# What the prototypes measured, loosely (slow: many programs).


def measured(task, estimators, *, prompts=1000, group=16, seed=0):
    batch = sample(task, prompts=prompts, group=group, key=jax.random.key(seed))
    weights, logits, answer = metrics.resampling(prompts, resamples=50), task.policy(), {}
    for name, f in estimators.items():
        A = jax.jit(f)(batch.rollout)
        A = A["advantage"] if isinstance(A, dict) else A
        answer[name] = metrics.measure(
            A, arena.gradient(A, batch, logits), batch, weights, task.blocks()
        )
    return batch, answer


@pytest.mark.slow
def test_strata_normalise_away_the_choice_of_the_stratum():
    _, m = measured(
        arena.Strata(offset=0.3), {"grpo": credit.grpo, "san": partial(credit.san, alpha=1.0)}
    )
    assert m["san"]["gsnr/act"][0] > 4 * m["grpo"]["gsnr/act"][0]
    assert m["san"]["magnitude/stratum"][0] < 0.05 < m["grpo"]["magnitude/stratum"][0]


@pytest.mark.slow
def test_a_critic_that_lags_gives_a_plan_lambda_to_the_length():
    batch, _ = measured(arena.PlanLag(lag=1.0, critic_sd=0.0), {}, prompts=500)
    A = np.asarray(jax.jit(partial(credit.ppo, lam=0.95, whiten=False))(batch.rollout)["advantage"])
    plan = np.asarray(batch.rollout.signals["kind"]) == 1
    truth = np.asarray(batch.truth.advantage)
    assert abs((A * truth)[plan].sum() / (truth**2)[plan].sum() - 0.95**7) < 0.03


@pytest.mark.slow
def test_shapley_values_lean_where_the_reward_is_mixed_and_counterfactuals_do_not():
    _, m = measured(
        arena.Team(p=0.8), {"coma": credit.coma, "shapley": credit.shapley}, prompts=3000
    )
    assert m["shapley"]["cos_mean"][0] < 0.85 and m["coma"]["cos_mean"][0] > 0.99


@pytest.mark.slow
def test_delay_costs_grpo_its_length():
    """gsnr falls as 1/T: the slope in log-log is within [-1.25, -0.85]."""
    g = [
        measured(arena.KeyBranch(at=2, T=T, c_pre=1.0), {"grpo": credit.grpo})[1]["grpo"]["gsnr"][0]
        for T in (8, 64)
    ]
    assert -1.25 < np.log(g[1] / g[0]) / np.log(8) < -0.85


@pytest.mark.slow
def test_ten_thousand_tokens_are_exact():
    task = arena.KeyBranch(T=10_000, at=5_000)
    _, _, exact = solved(task, jnp.zeros(task.policy().shape))
    A = np.asarray(exact.advantage)
    assert abs(A[5_000, 0, 0] - 0.7 * 0.8) < 1e-5 and not np.delete(A, 5_000, 0).any()


# The matrix.


def test_controls_are_what_they_are_called():
    batch = sample(SMALL["Lengths"][0], prompts=2000, group=8, key=jax.random.key(5))
    mask, A = np.asarray(batch.rollout.action_mask), np.asarray(batch.truth.advantage)
    made = matrix.control_credits(batch)
    assert set(made) == set(matrix.CONTROLS)
    np.testing.assert_array_equal(np.sort(made["shuffled"], -1), np.sort(A, -1))
    assert not made["shuffled"][~mask].any() and 0.3 < (made["shuffled"] != A).any(-1).mean() < 1
    np.testing.assert_array_equal(made["flipped"], -A)
    first = made["broadcast"][..., :1]
    assert ((made["broadcast"] == first) | ~mask).all() and np.abs(first.sum(1)).max() < 1e-5


def test_padding_and_costs():
    task = SMALL["Lengths"][0]
    rollout = sample(task, prompts=2000, group=8, key=jax.random.key(5)).rollout
    wide = matrix.pad(rollout, 7, 3).check()
    assert (
        wide.tokens.shape[-1] == 7
        and wide.reward.shape[-1] == 3
        and wide.signals["value"].shape[-1] == 3
    )
    assert not wide.action_mask[..., 4:].any() and not wide.segment_mask[..., 1:].any()
    own = float(np.asarray(rollout.action_mask).sum(-1).mean())
    assert matrix.tokens_per_answer(task, rollout, ()) == (own, 0) and matrix.tokens_per_answer(
        task, rollout, ("token_value",)
    ) == (own, own)
    vine = arena.ReplayNoise(T=4, continuations=3)
    full = SimpleNamespace(action_mask=np.ones((1, 2, 4)), signals={})
    assert matrix.tokens_per_answer(vine, full, ("token_value",)) == (4 + 3 * (4 + 3 + 2 + 1), 0)


def test_the_quick_list_is_of_this_library():
    assert set(matrix.QUICK) == set(SMALL) and set(sum(matrix.QUICK.values(), ())) <= set(
        credit.__all__
    )
    assert 60 <= sum(len(names) + len(matrix.CONTROLS) for names in matrix.QUICK.values()) <= 90
    with pytest.raises(ValueError, match="did you mean KeyBranch"):
        matrix.run_selected(["keybranhc"])
    with pytest.raises(ValueError, match="at least 2 groups"):
        matrix.run_selected(["Twin"], quick=True, prompts=1)


def test_groups_without_differences_are_an_error_with_the_fix():
    family = arena.HackablePRM(good=0.0, bad=0.0, filler=0.0, need=2, horizon=4)
    with pytest.raises(ValueError, match="HackablePRM: all answers .* 3 groups; sample more"):
        matrix.run([family], {}, prompts=3, group=2, resamples=5)


@pytest.mark.slow
def test_a_number_or_a_reason_in_every_cell():
    estimators = {"grpo": credit.grpo, "san": credit.san, "igpo": credit.igpo}
    told = []
    tell = lambda *said: told.append(said)  # noqa: E731
    cells = matrix.run(
        [arena.Strata(), arena.Twin()], estimators, prompts=200, group=8, resamples=50, tell=tell
    )
    assert told[0] == ("", 0, 2) and {done for what, done, of in told if of == 6} == {
        1,
        2,
        3,
        4,
        5,
        6,
    }
    assert len(cells) == 2 * (len(matrix.CONTROLS) + 3) and all(
        bool(c.numbers) != bool(c.reason) for c in cells
    )
    found = {(c.family, c.estimator): c for c in cells}
    exact, flipped, twin = (
        found["Strata", "exact"].numbers,
        found["Strata", "flipped"].numbers,
        found["Twin", "san"],
    )
    assert (
        exact["sign"].value == 1 and exact["cos_mean"].value > 0.98 and exact["versus/asnr"].low > 1
    )
    assert (
        flipped["sign"].value == 0
        and flipped["cos_mean"].value < -0.98
        and twin.reason == "needs stratum"
    )
    assert found["Strata", "broadcast"].numbers["versus/asnr"] == (1, 1, 1)
    assert len(matrix.as_json(cells)) == len(cells) and matrix.table(cells).row_count == 7
