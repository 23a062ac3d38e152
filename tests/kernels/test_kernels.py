"""The kernels against loops, at their edges, and their gradients against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close

from jaxcredit import kernels as k
from jaxcredit.credit import laws
from jaxcredit.kernels.multistep import ROWS

rng = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(7,), (4, 3)])
@pytest.mark.parametrize("peers", ["all", "by"])
@pytest.mark.parametrize("ddof", [0, 1])
def test_peers_against_loops(shape, peers, ddof):
    for seed in range(30):
        r = np.random.default_rng(seed)
        x, where = r.normal(size=shape).astype(np.float32), r.random(shape) < 0.7
        ids = r.integers(0, 3, shape)
        by = jnp.asarray(ids) if peers == "by" else None
        mean, loo, std, z = (np.zeros(shape) for _ in range(4))
        for i in np.ndindex(shape):
            if not where[i]:
                continue
            mine = [j for j in np.ndindex(shape) if where[j] and (by is None or ids[j] == ids[i])]
            v = np.array([x[j] for j in mine], np.float64)
            mean[i] = v.mean()
            loo[i] = np.mean([x[j] for j in mine if j != i]) if len(mine) > 1 else x[i]
            std[i] = v.std(ddof=ddof) if len(mine) > ddof else 0
            z[i] = (x[i] - v.mean()) / (std[i] + 1e-6) if std[i] > 0 else 0
        args = (jnp.asarray(x), by, jnp.asarray(where))
        assert_close(k.mean_by(*args), mean, 1e-5)
        assert_close(k.mean_by(*args, leave_one_out=True), loo, 1e-5)
        assert_close(k.center(*args), np.where(where, x - mean, 0), 1e-5)
        assert_close(k.std_by(*args, ddof=ddof), std, 1e-5)
        assert_close(k.standardize(*args, ddof=ddof), z, 1e-4)


@pytest.mark.parametrize("by", [None, 0])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_equal_values_are_exactly_nothing_with_a_finite_gradient(n, by):
    by = None if by is None else jnp.zeros(n, int)
    x = jnp.broadcast_to(jnp.asarray([0.7, 0.1, 1 / 3, 1e4 + 0.1, -7e-6])[:, None], (5, n))

    def all_of_them(x):
        loo, mean = k.center(x, by, leave_one_out=True), k.mean_by(x, by) - x
        return jnp.stack([k.center(x, by), k.standardize(x, by), k.std_by(x, by), loo, mean])

    values, slopes = jax.jit(jax.vmap(lambda x: (all_of_them(x), jax.jacobian(all_of_them)(x))))(x)
    assert (values == 0).all()
    assert jnp.isfinite(slopes).all()


def test_one_return_summed_in_two_orders_is_one_return():
    x = jnp.asarray(
        [
            np.float32(a) + np.float32(b) + np.float32(c)
            for a, b, c in ((0.3, 0.4, 0.6), (0.6, 0.4, 0.3), (0.6, 0.3, 0.4))
        ]
    )
    assert len(set(x.tolist())) > 1  # 1.3 and 1.3000001
    for by in (None, jnp.zeros(3, int)):
        assert (k.standardize(x, by) == 0).all() and (k.std_by(x, by) == 0).all()
        assert_close(
            k.standardize(x + jnp.asarray([0, 0, 1e-4]), by),
            [-(0.5**0.5), -(0.5**0.5), 2**0.5],
            2e-2,
        )
    assert_close(
        k.standardize(x.astype(jnp.bfloat16) + jnp.asarray([0, 0, 0.01], jnp.bfloat16)),
        [-(0.5**0.5), -(0.5**0.5), 2**0.5],
        2e-2,
    )


def test_an_offset_costs_a_float32_nothing():
    x = jnp.asarray([1.0, 2.0, 4.0, 9.0])
    assert_close(k.standardize(x + 1e4), k.standardize(x), 1e-6)
    assert_close(k.masked_var(x + 1e4), np.var([1, 2, 4, 9]), 1e-6)


def test_gradients_are_the_finite_differences():
    with jax.enable_x64(True):
        x, where, by = (
            jnp.asarray(rng.normal(size=(3, 5))),
            jnp.asarray(rng.random((3, 5)) < 0.7),
            jnp.asarray(rng.integers(0, 2, (3, 5))),
        )
        v = jnp.asarray(rng.normal(size=(3, 5)))
        for f in map(
            jax.jit,
            (
                lambda x: k.center(x, by, where),
                lambda x: k.standardize(x, by, where),
                lambda x: k.standardize(x, None, where, ddof=1),
                lambda x: k.returns_to_go(x, 0.9, where),
                lambda x: k.min_to_go(x, where),
                lambda x: k.next_value(x, where),
                lambda x: k.gae(x, v, gamma=0.9, lam=0.8, where=where),
                lambda x: k.gae(v, x, gamma=0.9, lam=0.8, where=where),
                lambda x: jnp.broadcast_to(k.masked_std(x, where, -1, keepdims=True), x.shape),
            ),
        ):
            assert f(x).dtype == jnp.float64
            slope = jax.jit(jax.grad(lambda x, f=f: (f(x) * v).sum()))(x)
            step = 1e-6 * rng.normal(size=x.shape)
            up, down = ((f(x + s * step) * v).sum() for s in (1, -1))
            np.testing.assert_allclose((slope * step).sum(), (up - down) / 2, rtol=1e-5, atol=1e-12)


def test_masked_statistics():
    x, where = rng.normal(size=(5, 9)), rng.random((5, 9)) < 0.5
    where[0] = False
    for axis in (None, -1, 0):
        shown = np.ma.array(x, mask=~where)
        assert_close(
            k.masked_mean(jnp.asarray(x, jnp.float32), jnp.asarray(where), axis),
            np.ma.filled(shown.mean(axis), 0),
            1e-5,
        )
        assert_close(
            k.masked_var(jnp.asarray(x, jnp.float32), jnp.asarray(where), axis),
            np.ma.filled(shown.var(axis), 0),
            1e-5,
        )
        assert_close(
            k.masked_std(jnp.asarray(x, jnp.float32), jnp.asarray(where), axis),
            np.ma.filled(shown.std(axis), 0),
            1e-5,
        )
    assert jnp.isfinite(
        jax.grad(lambda x: k.masked_std(x, jnp.asarray(where), -1).sum())(
            jnp.asarray(x, jnp.float32)
        )
    ).all()


def test_returns_against_loops():
    for seed in range(20):
        r = np.random.default_rng(seed)
        x, V, where = r.normal(size=(4, 11)), r.normal(size=(4, 11)), r.random((4, 11)) < 0.6
        gamma, lam = r.uniform(0.5, 1, 11), r.uniform(0, 1, (4, 11))
        G, least, after, A = (np.zeros(x.shape) for _ in range(4))
        for b in range(4):
            ret, low, nxt, adv = 0.0, np.inf, 0.0, 0.0
            for t in reversed(range(11)):
                after[b, t] = nxt
                if where[b, t]:
                    ret = x[b, t] + gamma[t] * ret
                    low = min(low, x[b, t])
                    adv = x[b, t] + gamma[t] * nxt - V[b, t] + gamma[t] * lam[b, t] * adv
                    nxt = V[b, t]
                G[b, t], least[b, t], A[b, t] = ret, low if np.isfinite(low) else 0, adv
        f = tuple(jnp.asarray(a, jnp.float32) for a in (x, V, gamma, lam))
        real = jnp.asarray(where)
        assert_close(k.returns_to_go(f[0], f[2], real), G, 1e-5)
        assert_close(k.min_to_go(f[0], real), least, 1e-5)
        assert_close(k.next_value(f[1], real), after, 1e-5)
        assert_close(k.gae(f[0], f[1], gamma=f[2], lam=f[3], where=real), A, 1e-5)
        lifted = jax.vmap(
            lambda x, V, lam, w, gamma: k.gae(x, V, gamma=gamma, lam=lam, where=w),
            (0, 0, 0, 0, None),
        )
        assert_close(lifted(f[0], f[1], f[3], real, f[2]), A, 1e-5)


@pytest.mark.parametrize(
    "lead", [(), (3,), (2, ROWS // 2), (2 * ROWS,)]
)  # the last two are tiles of rows
@pytest.mark.parametrize("T", [1, 63, 64, 65, 128, 150])
def test_long_rows_are_scanned_in_blocks(lead, T):
    x, V, where = (
        rng.normal(size=(*lead, T)),
        rng.normal(size=(*lead, T)),
        rng.random((*lead, T)) < 0.8,
    )

    def both(x):
        return k.returns_to_go(x, 0.9, jnp.asarray(where)), k.gae(
            x, jnp.asarray(V, x.dtype), gamma=0.9, lam=0.8, where=jnp.asarray(where)
        )

    run = jax.jit(lambda x: (both(x), jax.grad(lambda x: both(x)[1][..., 0].sum())(x)))
    (G, A), slope = run(jnp.asarray(x, jnp.float32))
    ret = adv = nxt = np.zeros(lead)
    for t in reversed(range(T)):
        real = where[..., t]
        ret = np.where(real, x[..., t] + 0.9 * ret, ret)
        adv = np.where(real, x[..., t] + 0.9 * nxt - V[..., t] + 0.72 * adv, adv)
        nxt = np.where(real, V[..., t], nxt)
        assert_close(G[..., t], ret, 1e-5)
        assert_close(A[..., t], adv, 1e-5)
    assert_close(slope, np.where(where, 0.72 ** (np.cumsum(where, -1) - 1), 0), 1e-5)


def test_gae_examples():
    r, V = jnp.asarray([0.0, 0, 1]), jnp.asarray([0.2, 0.5, 0.6])
    assert_close(k.gae(r, V, gamma=1, lam=0.95), [0.756, 0.48, 0.4], 1e-5)
    assert_close(
        k.gae(r, V, gamma=0.9, lam=1.0),
        k.returns_to_go(r, 0.9) - V,
        1e-5,
    )  # lambda 1: the return less the value
    assert_close(
        k.gae(r, V, gamma=0.9, lam=0.0), r + 0.9 * k.next_value(V) - V, 1e-5
    )  # lambda 0: one step
    assert (jnp.abs(k.gae(r, V, gamma=0.9, lam=0.5) - (k.returns_to_go(r, 0.9) - V)) > 1e-2).any()


def test_min_to_go_is_the_textbook_form():
    assert_close(k.min_to_go(jnp.asarray([0.8, -0.2, 0.6])), [-0.2, -0.2, 0.6], 1e-5)


def test_resolution_against_loops():
    rollout = laws.synthetic(5, (), N=40, R=8, G=5)
    x = jnp.asarray(rng.normal(size=(40, 5, 3)), jnp.float32)
    y = jnp.asarray(rng.normal(size=(40, 8, 20)), jnp.float32)
    wide, one, total, mean, end, n = (
        jax.vmap(f)(x, y, rollout)
        for f in (
            lambda x, y, g: k.to_tokens(x, g),
            lambda x, y, g: k.to_tokens(x[:, 0], g),
            lambda x, y, g: k.segment_sum(y, g),
            lambda x, y, g: k.segment_sum(y, g, mean=True),
            lambda x, y, g: k.at_segment_end(x, g),
            lambda x, y, g: k.trajectory_lengths(g),
        )
    )
    row, seg, mask, real, x, y = (
        np.asarray(a)
        for a in (rollout.row, rollout.segment, rollout.action_mask, rollout.segment_mask, x, y)
    )
    want = np.zeros((40, 5, 3)), np.zeros((40, 5, 3)), np.zeros((40, 8, 20)), np.zeros((40, 5))
    spread_wide, spread_one = np.zeros((40, 8, 20)), np.zeros((40, 8, 20))
    for b, i, t in np.ndindex(40, 8, 20):
        g, s = row[b, i], seg[b, i, t]
        spread_one[b, i, t] = x[b, g, 0]
        spread_wide[b, i, t] = x[b, g, s] if s >= 0 else 0
        if mask[b, i, t]:
            want[3][b, g] += 1
            want[0][b, g, s] += y[b, i, t]
            want[1][b, g, s] += 1
    assert_close(wide, spread_wide, 1e-5)
    assert_close(one, spread_one, 1e-5)
    for b, g, s in np.ndindex(40, 5, 3):
        chosen = [
            (i, t)
            for i in range(8)
            if row[b, i] == g
            for t in range(20)
            if mask[b, i, t] and 0 <= seg[b, i, t] <= s
        ]
        own = [
            at for at in chosen if seg[b][at] == s
        ]  # a segment without tokens adds to the last token of those before it
        if chosen and real[b, g, s]:
            want[2][b][(own or chosen)[-1]] += x[b, g, s]
    assert_close(total, want[0], 1e-5)
    assert_close(mean, want[0] / np.maximum(want[1], 1), 1e-5)
    assert_close(end, want[2], 1e-5)
    assert_close(n, want[3], 1e-5)


def test_kernels_hold_no_stop_gradient():
    import inspect
    from pathlib import Path

    for path in Path(inspect.getfile(k)).parent.glob("*.py"):
        assert "stop_gradient" not in path.read_text()
