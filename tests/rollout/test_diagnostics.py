"""What diagnostics say of rollouts made by hand, against a walk over the prefix tree, and of worlds where the answer is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcredit import arena
from jaxcredit.rollout import Rollout, diagnostics
from jaxcredit.rollout.synthetic import synthetic

read = functools.cache(lambda: jax.jit(diagnostics.sums))


def numbers(rollout):
    return diagnostics.statistics(
        jax.tree.map(lambda x: np.asarray(x, np.float64).sum(0), read()(rollout))
    )


def by_hand(rows, rewards, stratum=(0, 0, 1, 1), state=((5, 6), (5, 7), (5, 5), (8, 6))):
    """One group of four without a prompt, of up to four tokens and two segments; 0 is padding. All of one shape: one program."""
    tokens = jnp.asarray([[*row, 0, 0, 0, 0][:4] for row in rows])[None]
    reward = jnp.asarray([r if isinstance(r, list) else [r, np.nan] for r in rewards], jnp.float32)[
        None
    ]
    rollout = Rollout(
        tokens=tokens,
        action_mask=tokens > 0,
        logp=jnp.zeros(tokens.shape),
        segment=jnp.where(tokens > 0, 0, -1),
        reward=jnp.nan_to_num(reward),
        segment_mask=~jnp.isnan(reward),
    )
    return rollout.with_signals(
        stratum=jnp.asarray(stratum)[None], state=jnp.asarray(state)[None]
    ).check()


FOUR = [[1, 1, 1], [1, 1, 2], [1, 2, 1], [2, 1, 1]]


def test_four_answers_by_hand():
    """The first branching (3 | 1) says no more than chance, the second (1 1 | 0) has 2/3 where chance has 1/3, of 1 in all."""
    told = numbers(by_hand(FOUR, [1, 1, 0, 0]))
    assert told["decided"] == pytest.approx(1 / 3) and told["tau"] == pytest.approx(3 / 4)
    assert (
        told["branchings"] == 3
        and told["children"] == 2
        and told["children_alone"] == pytest.approx(4 / 6)
    )
    assert (
        told["tokens_shared"] == pytest.approx(5 / 12)
        and told["zero_signal"] == 0
        and told["length"] == 3
    )
    parts = read()(by_hand(FOUR, [1, 1, 0, 0]))
    np.testing.assert_allclose(parts["modal"][0][:3], [3 / 4, 2 / 4, 1 / 4])
    np.testing.assert_allclose(parts["excess"][0][:3], [0, 1 / 3, 0], atol=1e-6)
    assert numbers(by_hand(FOUR, [0.7] * 4))["zero_signal"] == 1


def test_absent_answers_and_lengths_by_hand():
    rows = [[1, 1, 1, 1], [1, 1, 0, 0], [1, 2, 3, 0], [9, 9, 9, 9]]
    rollout = by_hand(rows, [[1, 0], 0, [0, 1], [np.nan, np.nan]])  # the last did not take place
    told = numbers(rollout)
    assert (
        told["length"] == pytest.approx((9 + 4) / 3) and told["branchings"] == 2
    )  # at the second token, and where the second ends
    got = jax.device_get(jax.jit(diagnostics.lengths_by_outcome)(rollout))
    assert {k: float(v) for k, v in got["tokens_better"].items()} == {
        "count": 2,
        "min": 3,
        "median": 3.5,
        "mean": 3.5,
        "max": 4,
    }
    assert float(got["tokens_worse"]["median"]) == 2 and float(got["turns_better"]["mean"]) == 2


def test_strata_anchors_gap_and_critic_by_hand():
    rollout = by_hand(FOUR, [[1, 0], [1, 1], [0, 1], [0, 0]])
    told = numbers(rollout)
    # R = 1 2 1 0: SSB = 4 * 1/4 = 1, SSW = 1/2 + 1/2, MSW = 1/2, between = (1 - 1/2) / 4
    assert told["strata_ratio"] == pytest.approx((1 - 0.5) / 4 / 0.5) and told["strata"] == 2
    assert told["turns_alone"] == pytest.approx(2 / 8) and told["turns_met"] == pytest.approx(4 / 8)
    np.testing.assert_array_equal(
        diagnostics.pool_sizes(rollout["state"], rollout.segment_mask)[0],
        [[4, 2], [4, 1], [4, 4], [1, 2]],
    )
    gap = diagnostics.logp_difference(rollout, rollout.logp.at[0, 0, 0].set(0.6))
    assert [float(gap[k]) for k in ("gap_mean", "gap_max", "gap_off")] == pytest.approx(
        [0.05, 0.6, 1 / 12], rel=1e-5
    )
    to_go = jnp.asarray([[1, 0], [2, 1], [1, 1], [0, 0]], jnp.float32)[None]
    assert float(
        diagnostics.explained_variance(rollout.with_signals(value=to_go + 3))
    ) == pytest.approx(1)
    assert float(
        diagnostics.explained_variance(rollout.with_signals(value=0 * to_go))
    ) == pytest.approx(0)


def walk(rows, rewards, start, depths):
    """excess, excess_share, nodes, children and children alone by depth bin, by recursion over the tree."""
    out = np.zeros((5, len(depths) + 1))

    def visit(members, t):
        if len(members) < 2 or t == len(rows[0]):
            return
        kinds: dict = {}
        for i in members:
            kinds.setdefault(rows[i][t], []).append(i)
        if len(kinds) > 1:
            R = np.array([rewards[i] for i in members])
            square = ((R - R.mean()) ** 2).sum()
            means = [np.mean([rewards[i] for i in c]) for c in kinds.values()]
            ssb = sum(
                len(c) * (m - R.mean()) ** 2 for c, m in zip(kinds.values(), means, strict=True)
            )
            excess = ssb - (len(kinds) - 1) * square / (len(members) - 1)
            at = sum(t - start + 1 > d for d in depths)
            out[:, at] += [
                excess,
                excess * len(members) / len(rows),
                1,
                len(kinds),
                sum(len(c) == 1 for c in kinds.values()),
            ]
        for child in kinds.values():
            visit(child, t + 1)

    visit(range(len(rows)), 0)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("G", [6, 4])
def test_the_tree_is_walked_right(G):
    rollout = synthetic(3, (), N=16, R=6, G=G, T=20).filled()
    parts, seen = jax.device_get(read()(rollout)), 0
    for n in range(16):
        group = jax.tree.map(lambda x, n=n: x[n], rollout)
        here = [g for g in range(G) if group.segment_mask[g].any()]
        first = [int(np.argmax(group.row == g)) for g in here]
        if len(here) < 2:
            continue
        rows = [
            [int(y) if v else -1 for y, v in zip(group.tokens[r], group.token_mask[r], strict=True)]
            for r in first
        ]
        rewards = [float(group.reward[g][group.segment_mask[g]].sum()) for g in here]
        want = walk(rows, rewards, int(np.argmax(group.action_mask.any(0))), diagnostics.DEPTHS)
        scale = max(1.0, np.square(np.array(rewards) - np.mean(rewards)).sum())
        for name, row in zip(
            ("excess", "excess_share", "nodes", "children", "alone"), want, strict=True
        ):
            np.testing.assert_allclose(
                parts[name][n] / scale, row / scale, atol=2e-5, err_msg=f"{name} of group {n}"
            )
        seen += want[2].sum()
    assert seen > 12


def test_what_every_step_of_a_run_logs():
    live = jax.jit(diagnostics.step_metrics)(by_hand(FOUR, [1, 1, 0, 0]))
    assert float(live["modal_share"]) == pytest.approx(2 / 4)  # half of three tokens is two
    assert float(live["singleton_branch_fraction"]) == pytest.approx(
        4 / 9
    )  # the rows part from others at 3, 3, 2 and 1 tokens
    assert float(live["prefix_collisions"]) == pytest.approx(5 / 12)
    assert float(live["length_better"]) == float(live["length_worse"]) == 3
    assert np.isinf(live["strata_ratio"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("c_pre", "tau", "share"), [(1.0, 1.0, 0.6), (0.95, 0.68, 0.35), (0.5, None, 0.0)]
)
def test_where_the_key_is_and_how_many_reach_it_together(c_pre, tau, share):
    """KeyBranch: token 9 decides q (1 - q) (p_hi - p_lo)^2, 0.6 of the variance, as far as answers get there together."""
    task = arena.KeyBranch(c_pre=c_pre)
    batch = jax.jit(functools.partial(arena.sample, prompts=192, group=16))(
        task, key=jax.random.key(0)
    )
    told, parts = numbers(batch.rollout), read()(batch.rollout)
    assert told["decided"] == pytest.approx(share, abs=0.06)
    if tau is not None:
        assert told["tau"] == pytest.approx(tau, abs=0.06)
        by_depth = np.asarray(parts["excess"]).sum(0)
        assert by_depth.argmax() == diagnostics.DEPTHS.index(16)
