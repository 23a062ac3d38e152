"""Step and segment estimators: worked examples, invariants, reductions and their conditions."""

import dataclasses
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from reference_loops import LOOPS
from small_rollouts import assert_matches_loop, jitted, one_prompt, random_rollout

import jaxcredit.credit as catalogue
from jaxcredit import kernels, losses
from jaxcredit.credit import laws, method_of
from jaxcredit.rewards import oni as interest
from jaxcredit.signals.macro import ngram, parse, perplexity, randomized
from jaxcredit.signals.schedules import retention

dr_grpo, grpo, ppo, rloo, reinforce_pp = (
    jitted(getattr(catalogue, name)) for name in ("dr_grpo", "grpo", "ppo", "rloo", "reinforce_pp")
)
clip_delta, capo, tp_grpo, vsrm, scrl, brpo, ma_rlhf, poad, pppo, interventions, r3l = (
    jitted(getattr(catalogue, name))
    for name in "clip_delta capo tp_grpo vsrm scrl brpo ma_rlhf poad pppo interventions r3l".split()
)
rudder, rrd, lare, calm, potential_shaping, oni = (
    jitted(getattr(catalogue, name))
    for name in "rudder rrd lare calm potential_shaping oni".split()
)


def steps(reward, **signals):
    """A group of trajectories with one token per step."""
    reward = np.asarray(reward)
    return one_prompt(
        reward,
        np.zeros(reward.shape),
        segment=np.broadcast_to(np.arange(reward.shape[1]), reward.shape),
        **signals,
    )


def between(A):
    """Difference of two trajectories' returns, G_0k - G_1k, which no common baseline changes."""
    A = np.asarray(A)
    return A[0, 0] - A[0, 1]


def apart(a, b):
    return bool((np.abs(np.asarray(a) - np.asarray(b)) > 1e-3).any())


def at_first(A, rollout):
    """Credit on the tokens of the first segment."""
    return np.where(np.asarray(rollout.action_mask & (rollout.segment == 0)), np.asarray(A), 0)


@pytest.mark.parametrize(
    ("name", "knobs", "told"),
    [
        ("clip_delta", {"eta": None, "last_step": True, "gamma": 0.9}, {}),
        ("vsrm", {"gamma": 0.5, "Q": 1, "threshold": 0.5}, {}),
        ("brpo", {"prior": 1.0, "history": 1.0}, {"prior": "linear"}),
        ("brpo", {"prior": np.inf, "history": 0.0}, {"prior": "base"}),
        ("ma_rlhf", {"sigma": "position", "gamma": 0.9, "lam": 0.5}, {}),
        ("poad", {"gamma": 0.9, "within": 0.9, "lam": 0.7}, {}),
        ("pppo", {"eta": 0.35}, {}),
        ("r3l", {"form": "code"}, {}),
        ("rudder", {"residual": "uniform", "gamma": 0.9}, {}),
        ("potential_shaping", {"gamma": 0.9, "terminal_zero": False}, {}),
    ],
)
def test_oracle_with_knobs(name, knobs, told):
    credit = getattr(catalogue, name)
    rollout = laws.synthetic(11, method_of(credit).needs, N=60, T=14, R=7, G=5, kinds=(0, 1, 3))
    assert_matches_loop(
        partial(credit, **knobs),
        partial(LOOPS[name], **{**knobs, **told}),
        rollout,
    )


# ---------------------------------------------------------------- process scores and judges


def test_clip_delta_example():
    p = [0.6, 0.9, 0.8, 0.95, 0.7]
    zero = np.zeros((2, 5))
    clipped = clip_delta(steps(zero, process=[p, [1] * 5]), eta=0.7, delta=False)
    assert_close(between(clipped), [-0.1, 0, 0, 0, 0])
    plain = steps(zero, process=[p, [0] * 5])
    assert_close(between(clip_delta(plain, eta=None)), [0.6, 0.9, 0.8, 0.95, 0])
    assert_close(between(clip_delta(plain, eta=None, last_step=True)), [*p[:4], 0.7])
    both = clip_delta(steps(zero, process=[p, [1] * 5]), eta=0.7)
    assert_close(between(both), [-0.1, 0, 0, 0, 0])


def test_clip_delta_cannot_be_hoarded():
    """A repeated good step adds to a sum of scores, not of differences; clipped scores are <= 0."""
    zero = np.zeros((2, 5))
    once, again = ([[0.2, 0.9, 0.3, 0.3, 0.3], [0] * 5], [[0.2, 0.9, 0.9, 0.9, 0.3], [0] * 5])

    def first(p, **knobs):
        return between(clip_delta(steps(zero, process=p), eta=None, **knobs))[0]

    assert abs(first(once, last_step=True) - first(again, last_step=True)) < 1e-6
    assert first(again, delta=False) > first(once, delta=False) + 1
    assert (
        max(between(clip_delta(steps(zero, process=[again[0], [1] * 5]), eta=0.7, delta=False)))
        <= 0
    )


def test_votes_are_nested():
    marks = jnp.asarray(np.random.default_rng(0).random((4, 50)) < 0.5)
    every, most, any_ = (kernels.vote(marks, share) for share in (1.0, 0.5, 0.0))
    n = np.asarray(marks).sum(0)
    assert (
        (np.asarray(every) == (n == 4)).all()
        and (np.asarray(most) == (n >= 2)).all()
        and (np.asarray(any_) == (n >= 1)).all()
    )
    assert (
        (every <= most).all()
        and (most <= any_).all()
        and (every < most).any()
        and (most < any_).any()
    )


def test_capo_example():
    segment = [[0, 0, 1, 1], [0, 0, 1, -1]]
    rollout = one_prompt(
        [[0, 1], [0, 0]],
        np.zeros((2, 4)),
        action_mask=np.array(segment) >= 0,
        segment=segment,
        error=[[0, 1], [0, 1]],
    )
    assert_close(
        capo(rollout)[0],
        [[1.248075, 1.248075, 0.27735, 0.27735], [-0.693375, -0.693375, -1.664101, 0]],
    )
    clean = rollout.with_signals(error=jnp.zeros((1, 2, 2)))
    r = np.repeat([2.0, 0.0], [4, 3])  # grpo in which an answer counts once per token
    assert_close(capo(clean)[0, :, 0], (np.array([2.0, 0.0]) - r.mean()) / r.std())
    assert apart(capo(clean), grpo(clean))


def test_capo_keeps_a_right_answer_above_a_wrong_one():
    segment = [[0, 0, 1, 1]] * 2
    rollout = one_prompt(
        [[0, 1], [0, 0]], np.zeros((2, 4)), segment=segment, error=[[1, 0], [0, 0]]
    )
    near_right, far = np.asarray(capo(rollout)[0]), np.asarray(capo(rollout, w_proc=3.0)[0])
    assert (
        near_right[0].min() > near_right[1].max() and far[0].min() < far[1].max()
    )  # because w_whole > w_proc
    assert_close(capo(rollout, w_proc=0.0), grpo(rollout))  # answers of equal length
    everywhere = one_prompt(
        [[0, 1], [0, 1]], np.zeros((2, 4)), segment=segment, error=np.ones((2, 2))
    )
    assert (capo(everywhere) == 0).all()


def thoughts(o, penalty, wrong, labels, *, last=0.0):
    """The paper's process rewards summed from each thought on, plus the normalized outcome."""
    own = np.where(labels, o if wrong else -penalty, -o if wrong else penalty)
    own[-1] = last
    return o + np.cumsum(own[::-1])[::-1]


def test_tp_grpo_example():
    reward = np.zeros((4, 5))
    reward[:2, -1] = 1
    error = np.array([[0, 1, 0, 1, 0], [0] * 5, [1, 0, 1, 0, 1], [1] * 5])
    A = np.asarray(tp_grpo(steps(reward, error=error))[0])
    assert_close(A, [[1, 0.75, 1, 0.75, 1], [1] * 5, [-1, 0, -1, 0, -1], [-1] * 5])
    for i, wrong in ((0, False), (2, True)):
        assert_close(A[i], thoughts(-1.0 if wrong else 1.0, 0.25, wrong, error[i]))
        assert (
            np.abs(A[i] - thoughts(-1.0 if wrong else 1.0, 0.25, wrong, error[i], last=0.25)).max()
            > 0.1
        )
    broken = np.asarray(
        tp_grpo(
            steps(
                reward, error=[[0, 1, 1, 1, 0], [1, 0, 1, 0, 1], [1, 0, 0, 0, 1], [0, 1, 0, 1, 0]]
            )
        )[0]
    )
    assert (
        np.abs(broken[0] - thoughts(1.0, 0.25, False, [0, 1, 1, 1, 0])).max() > 0.1
    )  # fails if labels do not alternate
    assert (
        np.abs(broken[1] - thoughts(1.0, 0.25, False, [1, 0, 1, 0, 1])).max() > 0.1
    )  # fails if the last thought has a process reward


def test_tp_grpo_between_all_right_and_all_wrong():
    error = [[0, 1, 0, 1, 0]] * 4
    right = np.zeros((4, 5))
    right[:, -1] = 1
    assert_close(
        tp_grpo(steps(right, error=error))[0], [[0, -0.5, 0, -0.5, 0]] * 4
    )  # acc = 1: the penalty is largest if all answers are right
    assert (tp_grpo(steps(np.zeros((4, 5)), error=error)) == 0).all()
    right[2:] = 0
    plain = steps(right, error=[[0] * 5] * 2 + [[1] * 5] * 2)
    assert_close(tp_grpo(plain), grpo(plain))
    assert apart(tp_grpo(steps(right, error=error)), grpo(plain))


# ---------------------------------------------------------------- Monte Carlo over steps


def whitened(G):
    return (G - np.mean(G)) / np.std(G)


def test_vsrm_example():
    a = [0.25, 0.25, 0.75, 0.75, 0.5]
    rollout = steps([[0, 0, 0, 1]], info=[a])
    r = np.array([0.35, 0.5, -0.175, -0.25]) + [0, 0, 0, 1]
    assert_close(vsrm(rollout)[0, 0], whitened(np.cumsum(r[::-1])[::-1]))
    telescoped = (
        1 + a[-1] - np.array(a[:-1])
    )  # gamma=0: the returns are the outcome plus the remaining change of accuracy
    assert_close(vsrm(rollout, gamma=0.0)[0, 0], whitened(telescoped))
    assert np.abs(np.asarray(vsrm(rollout)[0, 0]) - whitened(telescoped)).max() > 0.1
    same, earned = steps([[0, 2, 0, 1]], info=[[0.3] * 5]), steps([[0, 2, 0, 1]], info=[a])
    assert_close(vsrm(same), reinforce_pp(same))
    assert apart(vsrm(earned), reinforce_pp(earned))


def test_scrl_example():
    raw = [[1, 1, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]]
    s = 1 / np.sqrt(3)
    expected = np.array(
        [[s, s, -3 * s, s], [1, -1, -1, 1], [-s, -s, -s, 3 * s], [-s, -s, -s, 3 * s]]
    ).T
    A = np.asarray(scrl(steps(raw))[0])
    assert_close(A, expected, 1e-5)
    later = np.array(raw)
    later[:, 2:] = 1 - later[:, 2:]
    B = np.asarray(scrl(steps(later))[0])
    assert_close(B[:, :2], A[:, :2], 1e-6)  # a block depends only on the blocks up to it
    assert np.abs(B[:, 2:] - A[:, 2:]).max() > 0.1
    failed = one_prompt(raw, np.zeros((4, 4)), segment=[[0, 1, 2, 3]] * 3 + [[-1] * 4])
    assert_close(scrl(failed)[0], np.where(np.arange(4)[:, None] < 3, A, 0), 1e-5)


def test_scrl_with_one_block_is_grpo():
    one = random_rollout(22, K=1, kinds=(0,))
    assert_close(scrl(one), grpo(one))
    several = random_rollout(22, kinds=(0,))
    assert apart(scrl(several), grpo(several))


def test_brpo_example():
    x = [[0, 1, 1, 1], [0, 0, 0, 1]]
    rollout = steps(np.zeros((2, 4)), anytime=x)
    assert_close(
        brpo(rollout)[0], [[0.25, 0.375, 0.145833, 0.026786], [-0.25, -0.125, 0.0625, 0.1875]], 1e-5
    )
    R = np.array([[0.75, 0.75, 0.5, 0.25], [0.25] * 4])
    assert_close(brpo(rollout, history=0.0)[0], R - R.mean(0))
    assert_close(brpo(rollout, history=1.0)[0], R - V1(x))
    assert_close(brpo(rollout)[0, :, 0], (R - R.mean(0))[:, 0])  # V1 = 0 at the first budget
    assert_close(
        brpo(rollout, prior=np.inf)[0, :, 3],
        [[1 - 0.75 * 6 / 7, 1][i] - 0.25 for i in range(2)],
        1e-5,
    )
    assert (brpo(steps(np.zeros((2, 4)), anytime=np.full((2, 4), 0.3))) == 0).all()


def V1(x):
    """[sum_{j < s} 2^j x_j / sum_{j < s} 2^j] sum_{j >= s} P_j, uniform P."""
    w = 2.0 ** np.arange(4)
    return np.array(
        [
            [(w[:s] @ row[:s] / w[:s].sum() if s else 0) * (4 - s) / 4 for s in range(4)]
            for row in np.asarray(x, float)
        ]
    )


def test_brpo_keeps_the_last_score_of_an_answer_that_ended_early():
    x = [[0, 1, 7, 7], [0, 0, 0, 1]]
    segment = [[0, 1, -1, -1], [0, 1, 2, 3]]
    short = one_prompt(
        np.zeros((2, 4)),
        np.zeros((2, 4)),
        action_mask=np.array(segment) >= 0,
        segment=segment,
        segment_mask=np.array(segment) >= 0,
        anytime=x,
    )
    full = brpo(steps(np.zeros((2, 4)), anytime=[[0, 1, 1, 1], [0, 0, 0, 1]]))
    assert_close(brpo(short)[0], np.where(np.array(segment) >= 0, full[0], 0))


def test_brpo_with_one_budget_is_the_centered_score():
    one = random_rollout(23, ("anytime",), K=1)
    scored = dataclasses.replace(one, reward=one["anytime"])
    assert_close(brpo(one), dr_grpo(scored))
    assert apart(brpo(one), dr_grpo(one))


# ---------------------------------------------------------------- temporal differences


def test_ma_rlhf_example():
    reward, V = np.zeros((3, 5)), np.zeros((3, 5))
    reward[0], V[0] = [-0.01, -0.01, -0.01, -0.01, 0.99], [0.1, 0.2, 0.3, 0.4, 0.5]
    answer = ma_rlhf(steps(reward, token_value=V, macro=[[0, 0, 1, 1, 2]] * 3))
    assert_close(answer["advantage"][0, 0], [0.765225, 0.765225, 0.6055, 0.6055, 0.49], 1e-5)
    assert_close(answer["target"][0, 0], [0.915225, 0.915225, 0.9555, 0.9555, 0.99], 1e-5)
    each = steps(
        np.zeros((3, 5)), token_value=np.eye(3, 5), macro=[[0, 0, 0, 1, 2]] * 3
    )  # rewards 0, and V nonzero at one token of each trajectory: A = -V
    assert_close(
        -ma_rlhf(each, sigma="position")["advantage"][0, :, 0], [0.545455, 0.272727, 0.181818], 1e-5
    )
    assert_close(-ma_rlhf(each, sigma="unit")["advantage"][0, :, 0], [0, 0, 1])
    assert_close(-ma_rlhf(each)["advantage"][0, :, 0], [1 / 3] * 3)


def test_ma_rlhf_with_a_token_each_is_ppo():
    rollout = random_rollout(24, ("token_value", "macro"), R=8, G=5)
    number = jnp.broadcast_to(jnp.arange(rollout.action_mask.shape[-1]), rollout.action_mask.shape)
    single, plain = rollout.with_signals(macro=number), ppo(rollout, whiten=False, gamma=0.9)
    for column in ("advantage", "target"):
        assert_close(ma_rlhf(single, gamma=0.9)[column], plain[column])
        assert apart(
            ma_rlhf(rollout.with_signals(macro=number // 3), gamma=0.9)[column], plain[column]
        )


def test_boundaries_of_macro_actions():
    mask = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [0, 1, 0, 0, 0], [0] * 5], bool)
    assert ngram(mask, 2).tolist() == [
        [0, 0, 1, 1, 3],
        [0, 0, -1, 1, 2],
        [-1, 1, -1, -1, -1],
        [-1] * 5,
    ]
    assert all(
        len(set(row[row >= 0])) == m.sum()
        for row, m in zip(np.asarray(ngram(mask, 1)), mask, strict=True)
    )
    ppl = jnp.asarray([[3.0, 2, 5, 4, 6], [3, 3, 9, 2, 2], [1, 5, 1, 1, 1], [1] * 5])
    number = np.asarray(perplexity(-jnp.log(ppl), mask))
    assert number[0, :4].tolist() == [0, 0, 1, 1] and number[0, 4] > 1
    assert number[1].tolist() == [0, 0, -1, 0, 1] and number[2, 1] >= 0 and (number[3] == -1).all()


def test_randomized_macro_actions_are_the_lengths_in_some_order():
    mask = jnp.ones(30, bool)
    sizes = np.bincount(np.asarray(randomized(mask, (1, 2, 3, 5, 10), 1, key=jax.random.key(0))))
    assert sorted(sizes[:5].tolist()) == [1, 2, 3, 5, 10] and sizes[5:].tolist() == [
        8,
        1,
    ]  # 21 of the 30 tokens, the rest, and the last token
    other = np.bincount(np.asarray(randomized(mask, (1, 2, 3, 5, 10), 1, key=jax.random.key(1))))
    assert other.tolist() != sizes.tolist()


def test_parsed_macro_actions():
    tree = [
        [1, 2],
        [[1, 1, 1, 1, 1, 1], 1],
        [3, 1],
    ]  # 3, six words of a phrase that is too long, a word, and 4
    number = parse(tree, 14, cutoff=5)
    # Words of one token in the long phrase, and the word after it, join the action before them.
    assert number.tolist() == [0] * 10 + [1] * 3 + [2]
    assert parse([[2, 2], [4]], 8, cutoff=5).tolist() == [0] * 4 + [1] * 3 + [2]
    assert parse([[2, 2], [4]], 8, cutoff=9).tolist() == [0] * 7 + [1]
    assert parse([6, 1], 7, cutoff=3).tolist() == [0] * 6 + [1]
    assert parse(tree, 13).tolist() == list(range(13))  # another number of tokens than the tree has


def test_poad_example():
    turns = one_prompt(
        [[0, 1, 0, 0]],
        np.zeros((1, 4)),
        segment=[[0, 0, 1, 1]],
        segment_mask=[[1, 1, 0, 0]],
        token_value=[[0.1, 0.3, 0.4, 0.6]],
    )
    plain = partial(poad, whiten=False)
    assert_close(plain(turns, gamma=0.9)["advantage"][0, 0], [0.728105, 0.5559, 0.58, 0.4], 1e-5)
    assert_close(
        plain(turns, gamma=0.9, within=0.9)["advantage"][0, 0],
        [0.573654, 0.47211, 0.482, 0.4],
        1e-5,
    )
    assert_close(
        plain(turns, gamma=0.9, lam=1.0)["target"][0, 0], [0.9, 0.9, 1, 1]
    )  # an action's credit is its return, whatever its length
    assert_close(
        plain(turns, gamma=0.9, lam=1.0, within=0.9)["target"][0, 0], [0.9**3, 0.9**2, 0.9, 1]
    )  # not in the naive form
    # It is ppo without a discount, with a discount per token, and with actions of one token.
    discounted = ppo(turns, gamma=0.9, whiten=False)
    assert_close(plain(turns, gamma=1.0)["advantage"], ppo(turns, whiten=False)["advantage"])
    assert_close(plain(turns, gamma=0.9, within=0.9)["advantage"], discounted["advantage"])
    assert apart(plain(turns, gamma=0.9)["advantage"], discounted["advantage"])
    short = steps([[0.3, -1, 2, 1]], token_value=[[0.1, 0.3, 0.4, 0.6]])
    assert_close(
        plain(short, gamma=0.9)["advantage"], ppo(short, gamma=0.9, whiten=False)["advantage"]
    )


# ---------------------------------------------------------------- prefixes, suffixes, pairs


def test_pppo_example():
    length = np.array([[10], [20], [4]])
    A = np.asarray(
        pppo(
            one_prompt(
                [1, 0, 0],
                np.zeros((3, 20)),
                action_mask=np.arange(20) < length,
                continued=[3, 1, 2],
            ),
            ddof=1,
        )[0]
    )
    assert_close(A[:, 0], [1.091089, -0.872872, -0.218218], 1e-5)
    assert (A != 0).sum(-1).tolist() == [1, 3, 1] and (
        A[1, :3] != 0
    ).all()  # floor(0.15 n), at least one token


def test_pppo_keeps_a_beginning_that_grows_with_eta():
    plain = random_rollout(26, ("continued",), R=8, G=5)
    nothing = plain.with_signals(continued=jnp.zeros_like(plain["continued"]))
    whole, part, small = (np.asarray(pppo(nothing, eta=eta)) for eta in (1.0, 0.35, 0.15))
    assert_close(whole, grpo(nothing))
    assert apart(part, whole) and apart(pppo(plain, eta=1.0), whole)
    assert (
        ((small != 0) <= (part != 0)).all()
        and ((part != 0) <= (whole != 0)).all()
        and (small != 0).sum() < (part != 0).sum()
    )


def test_retention_grows_when_accuracy_stops_improving():
    histories = [], [0.1], [0.1, 0.2], [0.1, 0.2, 0.2], [0.3, 0.2, 0.1, 0.4], [1.0] * 9
    assert [round(retention(x), 2) for x in histories] == [
        0.15, 0.15, 0.15, 0.2, 0.25, 0.35,
    ]  # fmt: skip


def test_int_learns_the_beginning_and_the_new_step():
    rollout = steps(np.zeros((4, 3)), pivot=[1, 0, 2, -1])
    answer = interventions(rollout)
    expected = [[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert answer["weight"][0].tolist() == expected and answer["advantage"][0].tolist() == expected
    logp = jnp.log(jnp.asarray([0.5, 0.25, 0.9]))
    batch = losses.Batch(
        rollout.action_mask,
        rollout.logp,
        answer["advantage"],
        answer["weight"],
        jnp.ones((1, 4, 3)),
        rollout.segment,
    )
    assert_close(losses.nll(jnp.broadcast_to(logp, (1, 4, 3)), batch)[0, 0, :2].sum(), np.log(8))


def test_r3l_examples():
    def number(R, alpha=3.0, form="docs"):
        rollout = one_prompt(R, np.zeros((8, 1)), pivot=[0] * 8, pair=range(8))
        return np.asarray(r3l(rollout, alpha=alpha, form=form)["advantage"][0, :, 0])

    R = [0, 0, 0.4, 0, 1, 0, 0.6, 0]
    docs, code, none = (number(R, form=form) for form in ("docs", "code", "none"))
    assert_close(docs, [-0.25, -0.25, 0.45, -0.25, 3, -0.25, 1.05, -0.25])
    assert_close(code, [-0.25, -0.25, 0.45, -0.25, 1, -0.25, 1.05, -0.25])
    assert_close(none, np.array(R) - np.mean(R))
    assert_close(number([1, 0.5, 0.2, 0] * 2, form="code")[:4], [1, 0.225, -0.225, -0.425])
    assert (
        code[6] > code[4]
        and (np.argsort(docs, kind="stable") == np.argsort(none, kind="stable")).all()
    )
    assert_close(number(R, alpha=1.0)[[2, 4]], [0.15, 1])  # below the maximum: the centered return
    assert (number([0] * 8) == 0).all()  # all fail: no amplification
    assert (number([1] * 8) == 3).all()  # all succeed: each gets alpha
    assert_close(number([1, 1, 0, 0] * 2), [3, 3, -0.5, -0.5] * 2)
    assert_close(number([-1, -2] * 4), [1.5, -0.5] * 4)


def test_r3l_credits_a_pair_from_where_it_differs():
    rollout = steps(
        [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]],
        pivot=[0, 2, 0, 9],
        pair=[1, 0, 3, 2],
    )
    answer = r3l(rollout, alpha=2.25)
    assert (
        answer["weight"][0].tolist() == [[0, 0, 1, 1]] * 2 + [[1] * 4] * 2
    )  # a pivot out of range means no retry
    assert (answer["advantage"][0, :2, :2] == 0).all()
    assert_close(answer["advantage"][0, 1], [0, 0, 2.25, 2.25])
    unpaired = rollout.with_signals(pair=jnp.arange(4)[None])
    assert r3l(unpaired)["weight"][0, :2].tolist() == [[1] * 4, [0, 0, 1, 1]]
    one = jax.tree.map(
        lambda x: x[:, 1:2], {"mask": rollout.action_mask, "segment": rollout.segment, **answer}
    )
    batch = losses.Batch(
        one["mask"],
        jnp.zeros((1, 1, 4)),
        one["advantage"],
        one["weight"],
        jnp.ones((1, 1, 4)),
        one["segment"],
    )
    numerator, denominator = losses.token_mean(
        losses.reinforce(jnp.asarray([[[-5.0, -6, -0.3, -0.2]]]), batch), batch
    )
    assert_close(numerator / denominator / (1 + 1), 0.28125)


# ---------------------------------------------------------------- redistribution and shaping


def test_rudder_example():
    rollout = steps([[0, 0, 0, 1], [0] * 4], info=[[0, 0.1, 0.1, 0.7, 0.9], [0] * 5])
    assert_close(between(rudder(rollout)), np.cumsum([0.3, 0.6, 0, 0.1])[::-1])
    assert_close(
        between(rudder(rollout, residual="uniform")), np.cumsum([0.225, 0.625, 0.025, 0.125])[::-1]
    )


def test_redistributed_rewards_add_up_to_the_outcome():
    """Redistributed rewards sum to the outcome: for any g first segments get dr_grpo's credit."""
    rollout = random_rollout(28, ("info", "progress"))
    centered = at_first(dr_grpo(rollout), rollout)
    assert_close(at_first(rudder(rollout), rollout), centered)
    assert_close(at_first(rudder(rollout, residual="uniform"), rollout), centered)
    assert apart(at_first(rudder(rollout, gamma=0.9), rollout), centered) and apart(
        rudder(rollout), dr_grpo(rollout)
    )
    assert apart(at_first(rrd(rollout), rollout), centered)
    real = np.asarray(rollout.segment_mask)
    short = (
        dr_grpo(rollout) - rrd(rollout)
    ) * 0  # a decomposition of loss 0 sums to the outcome, too
    n = np.maximum(real.sum(-1, keepdims=True), 1)
    total = np.where(real, rollout.reward, 0).sum(-1, keepdims=True)
    wrong = np.where(real, rollout["progress"], 0).sum(-1, keepdims=True)
    exact = rollout.with_signals(
        progress=rollout["progress"] + jnp.asarray((total - wrong) / n, jnp.float32)
    )
    assert_close(
        kernels.decomposition_loss(
            exact["progress"], jnp.asarray(total[..., 0]), rollout.segment_mask
        ),
        0 * total[..., 0],
        1e-4,
    )
    assert_close(at_first(rrd(exact), rollout) + short, centered, 1e-4)
    assert_close(lare(exact), rrd(exact))


def test_return_decomposition_losses():
    r, R, where = jnp.asarray([0.2, 0.5, 0.7, 0.0]), jnp.asarray(2.0), jnp.ones(4, bool)
    assert_close(kernels.decomposition_loss(r, R, where), 0.0225)
    # All pairs, one entry, all entries, and more than exist; masked entries are never drawn.
    chosen = jnp.asarray(
        [
            [k in some for k in range(5)]
            for some in (*combinations(range(4), 2), (1,), range(4), range(5))
        ]
    )
    sampled = partial(kernels.sampled_decomposition_loss, jnp.append(r, 7.0), R, jnp.arange(5) < 4)
    both = jax.jit(
        lambda c: [jax.vmap(partial(sampled, unbiased=unbiased))(c) for unbiased in (False, True)]
    )
    plain, fair = (np.asarray(x) for x in both(chosen))
    assert_close(plain[:6].mean(), 0.046667, 1e-5)
    assert_close(fair[:6].mean(), 0.0225, 1e-5)
    assert_close(
        (plain + fair)[:6].mean() / 2, 0.034583, 1e-5
    )  # biased with ddof=0, which halves the variance of two entries
    assert_close(plain[6:], [0, 0.0225, 0.0225])
    assert_close(fair[6:], [0, 0.0225, 0.0225])
    slope = jax.jit(
        jax.vmap(
            jax.grad(lambda x, c: kernels.sampled_decomposition_loss(x, R, where, c)), (None, 0)
        )
    )
    assert jnp.isfinite(slope(r, chosen[:, :4])).all()


def test_draws_are_without_replacement_and_never_more_than_there_are():
    where = jnp.asarray([[1, 1, 0, 1, 1], [0, 0, 0, 1, 0], [0] * 5], bool)
    draw = jax.jit(jax.vmap(lambda count, key: kernels.draw_entries(where, count, key=key)))
    draws = draw(jnp.asarray([2] * 199 + [64]), jax.random.split(jax.random.key(0), 200))
    assert (draws[-1] == where).all()
    draws = draws[:-1]
    assert (draws <= where).all() and (draws.sum(-1) == jnp.asarray([2, 1, 0])).all()
    assert np.abs(np.asarray(draws[:, 0].mean(0)) - [0.5, 0.5, 0, 0.5, 0.5]).max() < 0.15


def test_calm_example():
    base = {"subgoal": [[0, 1, 1, 2], [0] * 4]}
    reached = steps([[0, 0, 0, 1], [0] * 4], achieved=[[0, 1, 0, 0], [0] * 4], **base)
    assert_close(between(calm(reached)), [1.1, 1.1, 1, 1])
    again = reached.with_signals(achieved=jnp.asarray([[[0, 1, 1, 0], [0] * 4]], jnp.float32))
    assert_close(calm(again), calm(reached))  # the same subgoal achieved again
    other = again.with_signals(subgoal=jnp.asarray([[[0, 1, 2, 2], [0] * 4]]))
    assert_close(between(calm(other)), [1.2, 1.2, 1.1, 1])
    assert_close(between(calm(other, c=0.0)), [1] * 4)
    assert apart(
        at_first(calm(reached), reached), at_first(dr_grpo(reached), reached)
    )  # the bonus changes the return of the whole trajectory


def test_potential_shaping_example():
    phi, real = jnp.asarray([0.2, 0.5, 0.4, 0.0]), jnp.ones(3, bool)
    F = kernels.shaping(phi, real, gamma=0.9)
    assert_close(F, [0.25, -0.14, -0.4])
    assert_close((F * 0.9 ** jnp.arange(3)).sum(), -0.2)
    assert_close(kernels.shaping(phi.at[3].set(5.0), real, gamma=0.9, ended=True), F)
    assert_close(kernels.shaping(phi.at[3].set(5.0), real, gamma=0.9, ended=False)[2], 4.1)


def begun_alike(rollout, same=True):
    """The rollout with equal potentials before the first segments of a group (if `same`)."""
    info = rollout["info"]
    return rollout.with_signals(info=info.at[..., 0].set(0.3)) if same else rollout


@partial(jax.jit, static_argnames=("gamma", "ended"))
def shaped(rollout, gamma=1.0, ended=True):
    F = kernels.shaping(rollout["info"], rollout.segment_mask, gamma=gamma, ended=ended)
    return dataclasses.replace(
        rollout, reward=jnp.where(rollout.segment_mask, rollout.reward, 0) + F
    )


@pytest.mark.parametrize("credit", [grpo, dr_grpo, rloo], ids=["grpo", "dr_grpo", "rloo"])
def test_episode_centered_credit_does_not_see_potentials(credit):
    """With gamma=1 shaping adds the constant -Phi_0 of the prompt to every trajectory's return."""
    rollout = begun_alike(random_rollout(29, ("info",), kinds=(1,)))
    plain = credit(rollout)
    assert_close(credit(shaped(rollout)), plain, 1e-4)
    assert apart(
        credit(shaped(rollout, gamma=0.9)), plain
    )  # shaping with another discount than the return's
    assert apart(credit(shaped(rollout, ended=False)), plain)  # potential not 0 at the end
    assert apart(
        credit(shaped(random_rollout(29, ("info",), kinds=(1,)))), plain
    )  # different potentials at the beginning


def test_potential_shaping_is_seen_after_the_first_segment_alone():
    rollout = dataclasses.replace(begun_alike(random_rollout(29, ("info",))), done=None)
    centered = dr_grpo(rollout)
    assert_close(at_first(potential_shaping(rollout), rollout), at_first(centered, rollout), 1e-4)
    assert apart(potential_shaping(rollout), centered)
    cut = dataclasses.replace(rollout, done=jnp.zeros(rollout.segment_mask.shape[:2], bool))
    assert apart(at_first(potential_shaping(cut), rollout), at_first(centered, rollout))
    assert_close(potential_shaping(cut), potential_shaping(rollout, terminal_zero=False))


def test_oni_example():
    verdict, seen = [[1, 1, 1, 0], [0] * 4], [[1, 2, 3, 1], [1] * 4]
    rollout = steps([[0, 0, 0, 1], [0] * 4], verdict=verdict, seen=seen)
    paid = np.array([0.4, 0.05, 0.014815, 0])
    assert_close(between(oni(rollout)), np.cumsum(paid[::-1])[::-1] + 10, 1e-5)
    assert_close(between(oni(rollout, beta_c=0.0, beta_e=0.1)), [1.3, 0.9, 0.5, 0.1], 1e-5)
    assert_close(between(oni(rollout, beta_l=0.0, beta_e=1.0)), [1] * 4)


def test_interest_is_learned_from_a_judge():
    worth, ask = interest.by_table(
        jnp.asarray([1, 0, interest.UNKNOWN]), jnp.asarray([[0, 1], [2, 0]])
    )
    assert worth.tolist() == [[1, 0], [0, 1]] and ask.tolist() == [[False, False], [True, False]]
    assert interest.by_classifier(jnp.asarray([0.4, 0.5, 0.6])).tolist() == [0, 0, 1]
    assert_close(interest.by_ranking(jnp.asarray([3.0, 1.0, 0.2]), 1.0, 4.0), [1, 0, -0.4])
    assert_close(interest.by_ranking(jnp.asarray([3.0, 1.0, -2.0]), 1.0, 4.0), [1, 0, 0])
    assert (interest.by_ranking(jnp.asarray([3.0, 1.0]), 1.0, 0.0) == 0).all()
    a, b = jnp.asarray(1.2), jnp.asarray(0.3)
    assert_close(interest.preference(a, b), 0.71095, 1e-5)
    assert_close(interest.preference_loss(a, b), 0.341154, 1e-5)
    assert_close(interest.preference(a, b) + interest.preference(b, a), 1)
    assert_close(interest.preference(a + 7, b + 7), interest.preference(a, b))
    assert interest.preference(a + 7, b) != interest.preference(a, b)
    assert_close(
        jax.grad(interest.preference_loss)(a, a, 0.5), 0
    )  # the gradient at equal scores is 0 for a tie only
    assert jax.grad(interest.preference_loss)(a, a, 1.0) < 0


# ---------------------------------------------------------------- kernels


def test_runs_against_loops():
    rng = np.random.default_rng(0)
    number, where, x = (
        rng.integers(0, 2, (20, 9)),
        rng.random((20, 9)) < 0.7,
        rng.normal(size=(20, 9)).astype(np.float32),
    )
    begins, ends, sums, last, final = (np.zeros(x.shape) for _ in range(5))
    for i in range(20):
        at, total = np.flatnonzero(where[i]), 0.0
        for n, t in enumerate(at):
            begins[i, t] = n == 0 or number[i, at[n - 1]] != number[i, t]
            ends[i, t] = n == len(at) - 1 or number[i, at[n + 1]] != number[i, t]
            sums[i, t] = total = x[i, t] + (0 if begins[i, t] else total)
        last[i] = [x[i, at[at <= t][-1]] if (at <= t).any() else 0 for t in range(9)]
        final[i, at[-1:]] = 1

    @jax.jit
    def answers(number, where, x):
        begins = kernels.is_run_start(number, where)
        sums = jnp.where(where, kernels.run_cumsum(x, begins, where), 0)
        return (
            begins,
            kernels.is_run_end(number, where),
            sums,
            kernels.forward_fill(x, where),
            kernels.is_last(where),
        )

    for got, want in zip(answers(number, where, x), (begins, ends, sums, last, final), strict=True):
        assert_close(got, want)
