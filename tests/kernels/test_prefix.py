"""Common prefixes and prefix values against dictionaries keyed by the prefix itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcredit.kernels import (
    common_prefix,
    common_prefix_by_trajectory,
    prefix_value,
    prefix_value_changes,
    scatter_changes,
)

jit_prefix = jax.jit(common_prefix)


@jax.jit
def everything(tokens, valid, reward, where, row):
    """The values, and their differences from the branches alone: V, its differences, shared lengths, changes, how many share."""
    shared = common_prefix_by_trajectory(common_prefix(tokens, valid), row, reward.shape[0])
    change, sharing = prefix_value_changes(shared, row, reward, where=where)
    scattered = scatter_changes(
        jnp.zeros(tokens.shape[0], reward.dtype), shared, change, tokens.shape[1]
    )
    return (
        prefix_value(tokens, valid, reward, where=where, row=row),
        scattered,
        shared,
        change,
        sharing,
    )


def keys(tokens, valid):
    """A row as a tuple in which padding is None, so that prefixes are equal exactly where they should be."""
    return [
        tuple(int(y) if v else None for y, v in zip(row, real, strict=True))
        for row, real in zip(tokens, valid, strict=True)
    ]


def shared_oracle(tokens, valid):
    rows = keys(tokens, valid)
    T = len(rows[0])
    return np.array([[next((t for t in range(T) if a[t] != b[t]), T) for b in rows] for a in rows])


def value_oracle(tokens, valid, reward, where, row):
    """V[i, t] and |M(i, t)| from a dictionary prefix -> trajectories that have it."""
    rows, has = keys(tokens, valid), {}
    T = len(rows[0])
    for i, key in enumerate(rows):
        for t in range(T + 1):
            members = has.setdefault(key[:t], set())
            if where[row[i]]:
                members.add(int(row[i]))
    M = [[sorted(has[key[:t]]) for t in range(T + 1)] for key in rows]
    V = [
        [np.mean([reward[g] for g in m]) if m else where[row[i]] * reward[row[i]] for m in ms]
        for i, ms in enumerate(M)
    ]
    return np.array(V), np.array([[len(m) for m in ms] for ms in M])


def tree(rng, R, T, vocab=3):
    """Rows that copy an earlier one up to a random depth; ragged ends, left padding, holes, identical rows, rows of padding only."""
    tokens, valid = rng.integers(0, vocab, (R, T)), np.ones((R, T), bool)
    left = rng.integers(0, T // 3 + 1) if rng.random() < 0.5 else 0
    for i in range(R):
        valid[i] = np.arange(T) < rng.integers(1, T + 1)
        if rng.random() < 0.3:
            valid[i] &= rng.random(T) < 0.9
        if i and rng.random() < 0.8:
            parent, depth = rng.integers(0, i), rng.integers(0, T + 1)
            tokens[i, :depth], valid[i, :depth] = tokens[parent, :depth], valid[parent, :depth]
            if rng.random() < 0.2:
                tokens[i], valid[i] = tokens[parent], valid[parent]
        if rng.random() < 0.1:
            valid[i] = False
    valid[:, :left] = False
    junk = rng.integers(0, vocab, (R, T))  # what stands in padding must not matter
    return np.where(valid, tokens, junk).astype(np.int32), valid


@pytest.mark.parametrize("T", [1, 7, 8, 127, 128, 129, 301])
def test_common_prefix_is_the_first_difference(T):
    rng = np.random.default_rng(T)
    for _ in range(8):
        tokens, valid = tree(rng, 6, T)
        np.testing.assert_array_equal(jit_prefix(tokens, valid), shared_oracle(tokens, valid))


def test_common_prefix_finds_a_difference_in_any_column():
    T = 261
    tokens = np.broadcast_to(np.arange(T, dtype=np.int32), (T, 2, T)).copy()
    tokens[np.arange(T), 1, np.arange(T)] = 70_000
    got = jax.vmap(common_prefix)(jnp.asarray(tokens), jnp.ones((T, 2, T), bool))
    np.testing.assert_array_equal(got[:, 0, 1], np.arange(T))


def test_padding_agrees_with_padding_and_with_nothing_else():
    tokens = np.array(
        [[5, 1, 2, 9, 9], [8, 1, 2, 0, 7], [5, 1, 2, 0, 0], [5, 1, 0, 2, 0]], np.int32
    )
    valid = np.array([[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0]], bool)
    want = [[5, 5, 3, 2], [5, 5, 3, 2], [3, 3, 5, 2], [2, 2, 2, 5]]
    np.testing.assert_array_equal(jit_prefix(tokens, valid), want)
    np.testing.assert_array_equal(jit_prefix(tokens, np.zeros_like(valid)), np.full((4, 4), 5))


def test_worked_example():
    """Four answers, computed by hand: values, differences, and the advantage they make (arXiv 2509.18314)."""
    tokens = jnp.array([[1, 2, 3, 4], [1, 2, 5, 6], [1, 7, 8, 9], [1, 7, 8, 10]])
    reward = jnp.array([1.0, 0, 1, 1])
    V = [
        [0.75, 0.75, 0.5, 1, 1],
        [0.75, 0.75, 0.5, 0, 0],
        [0.75, 0.75, 1, 1, 1],
        [0.75, 0.75, 1, 1, 1],
    ]
    got, _, shared, change, _ = everything(
        tokens, tokens > 0, reward, jnp.ones(4, bool), jnp.arange(4)
    )
    np.testing.assert_allclose(got, V)
    std = reward.std()
    got = scatter_changes((reward - reward.mean()) / std, shared, change / std, 4)
    want = [[0.57735, 0, 1.732051, 0.57735], [-1.732051, -2.309401, -2.886751, -1.732051]] + [
        [0.57735, 1.154701, 0.57735, 0.57735]
    ] * 2
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
    "R, G, x64",
    [(1, 1, False), (2, 2, False), (6, 6, True), (7, 3, False), (7, 3, True), (2, 4, False)],
)
def test_value_and_its_sparse_differences(R, G, x64):
    """V, V(t+1) - V(t) scattered from the branches, and the sizes of the sets, in both precisions, with trajectories of several rows."""
    rng = np.random.default_rng(R * 10 + G)
    for _ in range(12):
        tokens, valid = tree(rng, R, 33)
        row = np.arange(R) if R == G else rng.integers(0, G, R)
        where = rng.random(G) < 0.8
        if not np.isin(np.flatnonzero(where), row).all():
            where &= np.isin(np.arange(G), row)  # a trajectory without rows is for its own test
        reward = rng.normal(size=G) * 10.0 ** rng.integers(-3, 4)
        V, M = value_oracle(tokens, valid, reward, where, row)
        tol = (1e-12 if x64 else 1e-5) * np.abs(reward).max()
        with jax.enable_x64(x64):
            r = jnp.asarray(reward, jnp.float64 if x64 else jnp.float32)
            value, got, shared, _, sharing = everything(tokens, valid, r, where, row)
        assert value.dtype == got.dtype == r.dtype
        np.testing.assert_allclose(value, V, atol=tol, rtol=0)
        alive = where[row]  # rows of trajectories that took place; the others are never trained on
        np.testing.assert_allclose(got[alive], np.diff(V)[alive], atol=tol, rtol=0)
        assert np.isfinite(got).all()
        at = np.minimum(shared + 1, 33)
        inside = (np.asarray(shared) < 33) & where & alive[:, None]
        np.testing.assert_array_equal(
            np.asarray(sharing)[inside], np.take_along_axis(M, at, 1)[inside]
        )


def test_rows_of_one_trajectory_count_once_and_one_without_rows_shares_only_the_empty_prefix():
    tokens, row = jnp.array([[1, 2, 3], [1, 2, 4], [1, 5, 6]]), jnp.array([0, 0, 1])
    both = everything(tokens, tokens > 0, jnp.array([1.0, 0.0]), jnp.ones(2, bool), row)[0]
    np.testing.assert_allclose(both, [[0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1], [0.5, 0.5, 0, 0]])
    third = everything(tokens, tokens > 0, jnp.array([1.0, 0.0, 1.0]), jnp.ones(3, bool), row)[0]
    np.testing.assert_allclose(third[:, 0], [2 / 3] * 3, rtol=1e-6)
    np.testing.assert_allclose(third[:, 1:], both[:, 1:])


@pytest.mark.parametrize("G", [3, 7, 16])
def test_equal_rewards_change_nothing_at_all(G):
    """0.7 for everybody, and 0.7 for everybody below one branch: exactly 0, not the rounding of a mean."""
    rng = np.random.default_rng(G)
    tokens, valid = tree(rng, G, 50)
    row, where = jnp.arange(G), jnp.ones(G, bool)
    assert not np.any(everything(tokens, valid, jnp.full(G, 0.7), where, row)[1])
    tokens[:, 0], tokens[0, 0], valid[:, 0] = 1, 2, True
    got = np.asarray(everything(tokens, valid, jnp.full(G, 0.7).at[0].set(-3.3), where, row)[1])
    assert np.abs(got[:, 0]).min() > 0 and not got[:, 1:].any()


def test_rows_that_did_not_take_place_do_not_count():
    rng = np.random.default_rng(5)
    tokens, valid = tree(rng, 5, 40)
    reward = jnp.asarray(rng.normal(size=5), jnp.float32)
    alone = everything(tokens, valid, reward, jnp.ones(5, bool), jnp.arange(5))[0]
    padded = [np.concatenate([x, x[[2, 0, 4]]]) for x in (tokens, valid)]
    reward = jnp.append(reward, jnp.array([9.0, jnp.nan, 9.0]))
    value, got, _, change, sharing = everything(*padded, reward, jnp.arange(8) < 5, jnp.arange(8))
    np.testing.assert_array_equal(value[:5], alone)
    np.testing.assert_allclose(got[:5], np.diff(alone), atol=1e-6)
    assert np.isfinite(got).all() and not np.any(change[:, 5:]) and np.max(sharing) <= 5


def test_permuting_the_rows_permutes_the_values():
    rng = np.random.default_rng(7)
    tokens, valid = tree(rng, 6, 40)
    reward, order, rest = (
        rng.normal(size=6).astype(np.float32),
        rng.permutation(6),
        (jnp.ones(6, bool), jnp.arange(6)),
    )
    here = everything(tokens, valid, reward, *rest)
    there = everything(tokens[order], valid[order], reward[order], *rest)
    for a, b in zip(here[:2], there[:2], strict=True):
        np.testing.assert_allclose(a[order], b, atol=1e-6)


def test_the_gradient_in_the_rewards_is_who_shares_the_prefix():
    """V is linear in the rewards: dV(i, t) / dR_j = 1 / |M(i, t)| for members, and the differences' gradient is that of V's differences."""
    rng = np.random.default_rng(11)
    tokens, valid = tree(rng, 5, 20)
    want = np.stack(
        [
            value_oracle(tokens, valid, unit, np.ones(5, bool), np.arange(5))[0]
            for unit in np.eye(5)
        ],
        -1,
    )
    R = jnp.asarray(rng.normal(size=5), jnp.float32)
    for jacobian in (jax.jacrev, jax.jacfwd):
        of_value, of_differences = jacobian(
            lambda r: everything(jnp.asarray(tokens), jnp.asarray(valid), r, R < 9, jnp.arange(5))[
                :2
            ]
        )(R)
        np.testing.assert_allclose(of_value, want, atol=1e-6)
        np.testing.assert_allclose(of_differences, np.diff(want, axis=1), atol=1e-6)


@pytest.mark.skipif("jax.device_count() < 8", reason="needs 8 devices")
def test_sharded_prompts_need_no_collective_and_little_memory():
    def differences(tokens, valid, reward):
        shared = common_prefix(tokens, valid)
        change, _ = prefix_value_changes(shared, jnp.arange(16), reward, where=jnp.ones(16, bool))
        return scatter_changes(reward, shared, change, tokens.shape[1])

    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    shapes = [((64, 16, 1024), jnp.int32), ((64, 16, 1024), bool), ((64, 16), jnp.float32)]
    program = (
        jax.jit(jax.vmap(differences))
        .lower(*(jax.ShapeDtypeStruct(s, d, sharding=spread) for s, d in shapes))
        .compile()
    )
    text = program.as_text()
    assert not any(
        op in text
        for op in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    )
    assert program.memory_analysis().temp_size_in_bytes < 64 * 16 * 1024 * 4 / 8 / 2
