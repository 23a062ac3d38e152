"""Estimators against float64 loops of their formulas, examples of their papers, reductions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from reference_loops import LOOPS
from small_rollouts import assert_matches_loop, jitted, one_prompt, random_rollout

import jaxcredit.credit as catalogue
from jaxcredit.credit import laws, method_of
from jaxcredit.rollout import Rollout

dr_grpo, grpo, opo, ppo, pure = (
    jitted(getattr(catalogue, name)) for name in ("dr_grpo", "grpo", "opo", "ppo", "pure")
)
reinforce_pp, remax, rloo, san, tempo = (
    jitted(getattr(catalogue, name)) for name in ("reinforce_pp", "remax", "rloo", "san", "tempo")
)


# One row a trajectory is the easier case of several, and a program more: the slow stage has it.
@pytest.mark.parametrize(
    "shape",
    [{"R": 7, "G": 5}, pytest.param({"R": 5}, marks=pytest.mark.slow)],
    ids=["several rows", "one row"],
)
@pytest.mark.parametrize("name", catalogue.__all__)
def test_oracle(name, shape):
    credit = getattr(catalogue, name)
    assert name in LOOPS, f"write loop_{name} or batch_{name} in tests/helpers/reference_loops"
    rollout = laws.synthetic(7, method_of(credit).needs, N=150, T=14, **shape)
    assert_matches_loop(credit, LOOPS[name], rollout)


@pytest.mark.parametrize(
    ("credit", "loop"),
    [
        (partial(reinforce_pp, gamma=0.9), partial(LOOPS["reinforce_pp"], gamma=0.9)),
        (partial(ppo, gamma=0.9, lam=0.7), partial(LOOPS["ppo"], gamma=0.9, lam=0.7)),
        (partial(tempo, gate=2), partial(LOOPS["tempo"], gate=2)),
        (partial(tempo, gate=3), partial(LOOPS["tempo"], gate=3)),
        (partial(san, alpha=1.0), partial(LOOPS["san"], alpha=1.0)),
        (partial(pure, temperature=1.0), partial(LOOPS["pure"], temperature=1.0)),
    ],
    ids=[
        "reinforce_pp gamma",
        "ppo gamma lam",
        "tempo gate 2",
        "tempo gate 3",
        "san alpha",
        "pure temperature",
    ],
)
def test_oracle_with_knobs(credit, loop):
    rollout = laws.synthetic(11, method_of(credit).needs, N=100, T=14, R=7, G=5, kinds=(0, 1, 3))
    assert_matches_loop(credit, loop, rollout, atol=3e-5)


# ---------------------------------------------------------------- worked examples

TREE = [[1, 2, 3, 4], [1, 2, 5, 6], [1, 7, 8, 9], [1, 7, 8, 10]]


def test_tempo_example():
    rollout = one_prompt([1, 0, 1, 1], TREE)
    rows = [[0.57735, 0, 1.732051, 0.57735], [-1.732051, -2.309401, -2.886751, -1.732051]] + [
        [0.57735, 1.154701, 0.57735, 0.57735]
    ] * 2
    assert_close(tempo(rollout, eps=0.0)[0], rows, 1e-5)
    sample = [[0.5, 0, 1.5, 0.5], [-1.5, -2, -2.5, -1.5]] + [[0.5, 1, 0.5, 0.5]] * 2
    assert_close(tempo(rollout, ddof=1, eps=0.0)[0], sample, 1e-5)


def test_pure_example():
    """Separators and the end are in no step (segment -1), as in the released code."""
    a = [0] * 9 + [-1] + [1] * 19 + [-1] + [2] * 9 + [-1]
    b = [0] * 19 + [-1] + [1] * 19 + [-1]
    rollout = one_prompt(
        [[0, 0, 0], [0, 1, 0]],
        np.zeros((2, 40)),
        segment=[a, b],
        segment_mask=[[1, 1, 1], [1, 1, 0]],
        process=[[0.8, -0.2, 0.6], [0.5, 0.5, 9]],
    )
    A = np.asarray(pure(rollout)[0])
    assert_close(A[0, [0, 10, 30]], [-1.662186, -1.549723, -1.112299], 1e-5)
    assert_close(A[1, [0, 20]], [1.689702, 1.344851], 1e-5)
    assert (A[0, [9, 29, 39]] == 0).all()


def test_san_example():
    r, s = [1, 0, 1, 1, 0, 0, 0.5], [0, 0, 0, 1, 1, 1, 2]
    rollout = one_prompt(r, stratum=s)
    assert_close(
        grpo(rollout, eps=0.0)[0, :, 0],
        [1.080123, -1.080123, 1.080123, 1.080123, -1.080123, -1.080123, 0],
        1e-5,
    )
    assert_close(
        san(rollout, alpha=1.0, eps=0.0)[0, :, 0],
        [0.707107, -1.414214, 0.707107, 1.414214, -0.707107, -0.707107, 0],
        1e-5,
    )
    assert_close(
        san(rollout, alpha=0.6, eps=0.0)[0, :, 0],
        [0.856313, -1.280578, 0.856313, 1.280578, -0.856313, -0.856313, 0],
        1e-5,
    )


def test_baseline_examples():
    rollout = one_prompt([1, 0, 0, 1])
    assert_close(grpo(rollout, ddof=1)[0, :, 0], [0.866024, -0.866024, -0.866024, 0.866024], 1e-5)
    assert_close(dr_grpo(rollout)[0, :, 0], [0.5, -0.5, -0.5, 0.5])
    assert_close(rloo(rollout)[0, :, 0], [0.666667, -0.666667, -0.666667, 0.666667])
    lengths = np.arange(10) < np.array([2, 4, 4, 10])[:, None]
    assert_close(
        opo(one_prompt([1, 0, 0, 1], np.zeros((4, 10)), action_mask=lengths))[0, :, 0],
        [0.4, -0.6, -0.6, 0.4],
    )
    two = one_prompt([1, 0], [[1, 1, 1], [2, 2, 0]], action_mask=[[1, 1, 1], [1, 1, 0]])
    A = reinforce_pp(two, ddof=1, eps=0.0)[0]
    assert_close(A, [[0.730297] * 3, [-1.095445, -1.095445, 0]], 1e-5)
    assert_close(
        remax(
            one_prompt(
                [[0, 1], [0.5, 0]], [[1, 2], [1, 3]], segment=[[0, 1], [0, 1]], greedy_reward=0.25
            )
        )[0],
        [[0.75, 0.75], [0.25, -0.25]],
    )


def test_ppo_example():
    rollout = one_prompt([1], [[1, 2, 3]], token_value=[[0.2, 0.5, 0.6]])
    answer = ppo(rollout, whiten=False)
    assert_close(answer["advantage"][0, 0], [0.756, 0.48, 0.4])
    assert_close(answer["target"][0, 0], [0.956, 0.98, 1])
    holes = one_prompt(
        [1],
        [[9, 1, 9, 2, 3, 9]],
        action_mask=[[0, 1, 0, 1, 1, 0]],
        token_value=[[5, 0.2, 7, 0.5, 0.6, 8]],
    )
    assert_close(ppo(holes, whiten=False)["advantage"][0, 0], [0, 0.756, 0, 0.48, 0.4, 0])


# --------------------------------------------- invariants and reductions, and cases that break them


def unshared(rollout):
    """Every row begins with a different token."""
    own = jnp.arange(rollout.tokens.shape[1])[:, None]
    return Rollout(
        **{
            **vars(rollout),
            "tokens": jnp.where(
                jnp.arange(rollout.tokens.shape[2]) == 4, 5000 + own, rollout.tokens
            ),
        }
    )


def test_tempo_gate_two_without_shared_prefixes_is_grpo():
    alone, shared = unshared(random_rollout(1)), random_rollout(1)
    assert (tempo(alone, gate=2) == grpo(alone)).all()
    assert (jnp.abs(tempo(shared, gate=2) - grpo(shared)) > 1e-3).any()
    assert (jnp.abs(tempo(alone) - grpo(alone)) > 1e-3).any()


def test_tempo_is_grpo_where_no_answers_part():
    """Value changes are on columns where another row branches off.

    With gate=1 the first unshared token has one too.
    """
    rollout = random_rollout(2)
    change = np.asarray(jnp.abs(tempo(rollout) - grpo(rollout)) > 0)
    key = np.where(rollout.token_mask, rollout.tokens, -1)
    parts = np.zeros(change.shape, bool)
    for n, i, j in np.ndindex(len(key), key.shape[1], key.shape[1]):
        differ = key[n, i] != key[n, j]
        if differ.any():
            parts[n, i, differ.argmax()] = True
    assert change.any() and not (change & ~parts).any()


def test_tempo_telescopes_and_is_zero_at_every_node():
    """sum_t TD_it = V(i, len_i) - mean r; the TDs of a node's members sum to 0."""
    rng = np.random.default_rng(0)
    tokens, r = rng.integers(0, 2, (7, 9)), rng.normal(size=7)
    tokens[:, -1] = np.arange(7)  # every answer ends in a way of its own
    rollout = one_prompt(r, tokens)
    td = np.asarray(tempo(rollout, eps=0.0) - grpo(rollout, eps=0.0))[0] * np.std(r)
    assert_close(td.sum(-1), r - r.mean(), 1e-5)
    for t in range(9):
        for node in {tuple(y[:t]) for y in tokens}:
            assert abs(sum(td[i, t] for i in range(7) if tuple(tokens[i, :t]) == node)) < 1e-5


def test_tempo_has_the_gradient_of_twice_the_reward_less_the_mean_less_the_prefix_value():
    """Exact expectation over all 512 groups of three answers of three binary tokens, in float64."""
    random = np.random.default_rng(1)
    answers = np.array(list(np.ndindex(2, 2, 2)))
    node = np.array(
        [[0, 1 + y[0], 3 + 2 * y[0] + y[1]] for y in answers]
    )  # which of the 7 prefixes each token follows
    p_one = random.uniform(0.2, 0.8, 7)[node]
    chance = np.where(answers == 1, p_one, 1 - p_one).prod(-1)
    groups = np.array(list(np.ndindex(8, 8, 8)))
    weight = chance[groups].prod(-1)
    with jax.enable_x64(True):
        r = random.normal(size=8)[groups]
        ones = jnp.ones((512, 3, 3), bool)
        reward, real = jnp.asarray(r)[..., None], jnp.ones((512, 3, 1), bool)
        rollout = Rollout(
            jnp.asarray(answers[groups]),
            ones,
            jnp.zeros(ones.shape),
            jnp.zeros(ones.shape, int),
            reward,
            real,
        )
        A, gated = (
            np.asarray(catalogue.tempo(rollout, gate=g, eps=0.0)) * r.std(-1)[:, None, None]
            for g in (1, 2)
        )
    V = np.zeros(A.shape)
    for n, i, t in np.ndindex(*A.shape):
        V[n, i, t] = np.mean(
            [
                r[n, j]
                for j in range(3)
                if (answers[groups[n, j]][:t] == answers[groups[n, i]][:t]).all()
            ]
        )
    plain = 2 * r[..., None] - r.mean(-1)[:, None, None] - V

    def gradient(A):
        """E sum_it A_it grad log pi(y_it | y_i<t), for the logit of each prefix."""
        score = weight[:, None, None] * A * (answers - p_one)[groups]
        return np.bincount(node[groups].reshape(-1), score.reshape(-1))

    assert A.dtype == np.float64
    np.testing.assert_allclose(gradient(A), gradient(plain), rtol=0, atol=1e-14)
    assert np.abs(A - plain).max() > 0.1  # the credit itself is not the same, only its gradient
    assert np.abs(gradient(gated) - gradient(plain)).max() > 1e-3


def test_tempo_credits_a_tool_token_to_nobody():
    """Where answers branch at a tool's token, the change of value is credited to no token."""
    tokens = [[1, 5, 2, 3], [1, 6, 2, 3]]
    rollout = one_prompt([1, 0], tokens, action_mask=[[1, 0, 1, 1]] * 2)
    rollout = Rollout(**{**vars(rollout), "token_mask": jnp.ones((1, 2, 4), bool)})
    assert_close(tempo(rollout)[0], grpo(rollout)[0])
    parted = tempo(one_prompt([1, 0], tokens))[0] - grpo(one_prompt([1, 0], tokens))[0]
    assert_close(parted, [[0, 1, 0, 0], [0, -1, 0, 0]])


def test_san_with_one_stratum_is_grpo():
    rollout = random_rollout(3, ("stratum",))
    one = rollout.with_signals(stratum=jnp.full_like(rollout["stratum"], 4))
    assert_close(san(one), grpo(one), 1e-6)
    assert_close(san(rollout, alpha=0.0), grpo(rollout), 1e-6)
    assert (jnp.abs(san(rollout) - grpo(rollout)) > 1e-3).any()
    apart = rollout.with_signals(stratum=jnp.broadcast_to(jnp.arange(6), (64, 6)))
    assert_close(san(apart, alpha=0.7), 0.3 * grpo(apart), 1e-6)


def test_rloo_is_dr_grpo_times_n_over_n_less_one():
    rollout = random_rollout(4)
    n = np.asarray(rollout.segment_mask.any(-1).sum(-1))[:, None, None]
    assert_close(rloo(rollout), dr_grpo(rollout) * n / np.maximum(n - 1, 1))
    assert (jnp.abs(rloo(rollout) - dr_grpo(rollout)) > 1e-3).any()


def test_ppo_with_lambda_one_is_the_return_less_the_value():
    rollout = random_rollout(5, ("token_value",), R=8, G=5)
    zero = rollout.with_signals(token_value=jnp.zeros_like(rollout["token_value"]))
    returns = ppo(zero, lam=1.0, whiten=False)["advantage"]
    value = jnp.where(rollout.action_mask, rollout["token_value"], 0)
    assert_close(ppo(rollout, lam=1.0, whiten=False)["advantage"], returns - value)
    assert_close(ppo(rollout, lam=1.0, whiten=False)["target"], returns)
    assert (
        jnp.abs(ppo(rollout, lam=0.5, whiten=False)["advantage"] - (returns - value)) > 1e-3
    ).any()


def test_pure_goes_from_the_least_step_to_the_mean_and_without_process_is_rloo():
    p = np.array([[0.8, -0.5, 0.4], [0, 0, 0]])
    rollout = one_prompt(
        np.zeros((2, 3)), np.zeros((2, 6)), segment=[[0, 0, 1, 1, 2, 2]] * 2, process=p
    )
    for T, first in ((1e-3, p[0].min()), (0.0, p[0].min()), (1e3, p[0].mean())):
        assert_close(pure(rollout, temperature=T)[0, 0, 0], first, 1e-3)
    cold = [-0.5, -0.5, 0.0]  # about the minimum up to the worst step, about 0 after it
    assert_close(pure(rollout, temperature=1e-3)[0, 0, ::2], cold, 1e-5)
    plain = random_rollout(6, ("process",))
    off = plain.with_signals(process=jnp.zeros_like(plain["process"]))
    assert_close(pure(off), rloo(off))
    assert (jnp.abs(pure(plain) - rloo(plain)) > 1e-3).any()


@pytest.mark.parametrize("credit", [grpo, dr_grpo, rloo, opo, tempo, partial(san, alpha=0.5)])
@pytest.mark.parametrize("reward", [0.7, 0.1, 1e4 + 0.3, -3.3e-5, 0.0])
@pytest.mark.parametrize("G", [2, 3, 7])
def test_equal_rewards_of_any_value_are_exactly_nothing(credit, reward, G):
    tokens = np.random.default_rng(0).integers(0, 2, (G, 5))
    assert (credit(one_prompt([reward] * G, tokens, stratum=np.arange(G) % 2)) == 0).all()
    real = np.arange(G)[:, None] == 0
    assert (
        credit(
            one_prompt(
                np.arange(1.0, G + 1),
                tokens,
                segment_mask=real,
                action_mask=np.broadcast_to(real, (G, 5)),
                stratum=[0] * G,
            )
        )
        == 0
    ).all()


@pytest.mark.parametrize("name", catalogue.__all__)
def test_bfloat16_inputs_give_float32(name):
    credit = getattr(catalogue, name)
    out = jax.eval_shape(credit, laws.synthetic(3, method_of(credit).needs, dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("float32")}


# Estimators compute in at least float32: tested for some of each scope and of several columns.
@pytest.mark.parametrize(
    "name",
    [
        "grpo",
        "reinforce_pp",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("ppo", "tempo", "pure", "hae")),
    ],
)
def test_bfloat16_inputs_are_computed_in_float32(name):
    credit = jitted(getattr(catalogue, name))
    rollout = laws.synthetic(3, method_of(credit).needs, dtype="bfloat16")
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, rollout)
    for a, b in zip(jax.tree.leaves(credit(rollout)), jax.tree.leaves(credit(wide)), strict=True):
        assert a.dtype == jnp.float32
        assert_close(a, b, 1e-6)


def test_a_missing_signal_and_a_group_of_one_are_named():
    with pytest.raises(KeyError, match="remax.*greedy_reward"):
        remax(one_prompt([1, 0]))
    with pytest.raises(ValueError, match="grpo compares"):
        grpo(one_prompt([1]))
