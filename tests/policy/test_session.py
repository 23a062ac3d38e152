"""Decoding sessions: log-probabilities are those of the trainer over turns, given tokens, branches and ended rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoders import random_params

from jaxcredit.policy import presets, transformer
from jaxcredit.policy.session import extend, fork, generate, grow, prefill, row_keys

N, R, P, S, E = 3, 4, 6, 5, 7
STOP = (3, 4, 5)
CONFIGS = {
    "plain": {},
    "kv heads": {"kv_heads": 1},
    "windows": {"windows": (9, 0)},
    "many layers": {"layers": 9},
}


def policy(**change):
    cfg = presets.micro(24, width=32, layers=2, heads=2)
    cfg = dataclasses.replace(cfg, forbidden=(0,), **change)
    weights = random_params(cfg)
    return cfg, jax.tree.map(lambda w: 2 * w if w.ndim > 1 else w, weights)  # peaked


def prompts():
    rng = np.random.default_rng(0)
    prompt = rng.integers(6, 24, (N, P))
    mask = np.arange(P) >= np.array([0, 2, 5])[:, None]
    return np.where(mask, prompt, 0), mask


class Rows:
    """Tokens of every row in the order in which they were appended, on the host."""

    def __init__(self):
        self.ids = [[[] for _ in range(R)] for _ in range(N)]
        self.logp = [[[] for _ in range(R)] for _ in range(N)]

    def add(self, tokens, mask, logp=None):
        for n in range(N):
            for r in range(R):
                for k in np.flatnonzero(mask[n, r]):
                    self.ids[n][r].append(int(tokens[n, r, k]))
                    self.logp[n][r].append(None if logp is None else float(logp[n, r, k]))


def episode(cfg, weights, turns=3, temperature=1.3):
    """Several turns with given tokens between them; rows end at different turns."""
    prompt, mask = prompts()
    keys = row_keys(jax.random.key(1), jnp.arange(N), R)
    session, rows = prefill(weights, prompt, mask, keys, cfg), Rows()
    active = np.ones((N, R), bool)
    rng = np.random.default_rng(1)
    for turn in range(turns):
        session = grow(session, session.room + S + 1)
        session, out = generate(
            weights, session, active, cfg,
            max_new_tokens=S, temperature=temperature, stop=STOP, first=turn == 0,
        )  # fmt: skip
        out = jax.device_get(out)
        assert (out["mask"].any(-1) == active).all()
        rows.add(out["tokens"], out["mask"], out["logp"])
        active = active & (rng.random((N, R)) < 0.8)
        count = np.where(active, rng.integers(1, E + 1, (N, R)), 0)
        ids = rng.integers(6, 24, (N, R, E))
        given = np.arange(E) < count[..., None]
        session = grow(session, session.room + E + 1)
        session = extend(weights, session, ids, given, cfg)
        rows.add(ids, given)
    return session, rows, active


def trainer(cfg, weights, rows, temperature=1.3):
    """Log-probabilities of all own tokens by the trainer's forward."""
    prompt, mask = prompts()
    T = max(len(ids) for group in rows.ids for ids in group)
    tokens, valid = np.zeros((N, R, P + T), int), np.zeros((N, R, P + T), bool)
    tokens[:, :, :P], valid[:, :, :P] = prompt[:, None], mask[:, None]
    for n in range(N):
        for r in range(R):
            ids = rows.ids[n][r]
            tokens[n, r, P : P + len(ids)], valid[n, r, P : P + len(ids)] = ids, True
    return transformer.logprob(
        weights, jnp.asarray(tokens), jnp.asarray(valid), cfg, prompt=P, temperature=temperature
    )["logp"]


def compare(rows, want, least):
    compared = 0
    for n in range(N):
        for r in range(R):
            for k, logp in enumerate(rows.logp[n][r]):
                if logp is not None:
                    assert abs(logp - float(want[n, r, k])) < 1e-4
                    compared += 1
    assert compared >= least


@pytest.mark.parametrize(
    "name",
    [
        "windows",
        *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name != "windows"),
    ],
)
def test_turns_are_those_of_the_trainer(name):
    cfg, weights = policy(**CONFIGS[name])
    _, rows, _ = episode(cfg, weights)
    compare(rows, trainer(cfg, weights, rows), 40)


@pytest.mark.parametrize("name", ["windows", pytest.param("plain", marks=pytest.mark.slow)])
def test_branches_from_any_earlier_token_are_those_of_the_trainer(name):
    cfg, weights = policy(**CONFIGS[name])
    session, rows, _ = episode(cfg, weights)
    rng = np.random.default_rng(2)
    source = rng.integers(0, R, (N, R))
    length = np.array([[len(rows.ids[n][source[n, r]]) for r in range(R)] for n in range(N)])
    at = rng.integers(0, length + 1)
    at[0, 0], at[1, 1] = 0, length[1, 1]
    token = np.array(
        [[(rows.ids[n][source[n, r]] + [0])[at[n, r] - 1] for r in range(R)] for n in range(N)]
    )
    keys = row_keys(jax.random.key(2), jnp.arange(N), R)
    branch = grow(fork(session, source, at, token, keys), session.room + S + 1)
    branch, out = generate(
        weights, branch, np.ones((N, R), bool), cfg, max_new_tokens=S, temperature=1.3, stop=STOP
    )
    out, again = jax.device_get(out), Rows()
    for n in range(N):
        for r in range(R):
            kept = rows.ids[n][source[n, r]][: at[n, r]]
            again.ids[n][r] = list(kept)
            again.logp[n][r] = [None] * len(kept)
    again.add(out["tokens"], out["mask"], out["logp"])
    compare(again, trainer(cfg, weights, again), N * R)
    np.testing.assert_array_equal(branch.tokens, [[len(x) for x in g] for g in again.ids])


def test_a_token_depends_on_its_row_and_position_alone():
    """Other batch shapes, other neighbors and chunks of a turn: the same tokens."""
    cfg, weights = policy()
    prompt, mask = prompts()
    keys = row_keys(jax.random.key(3), jnp.arange(N), R)
    everyone = np.ones((N, R), bool)

    def whole(prompt, mask, keys):
        session = grow(prefill(weights, prompt, mask, keys, cfg), 0)
        active = np.ones(keys.shape, bool)
        _, out = generate(weights, session, active, cfg, max_new_tokens=9, first=True, final=True)
        return np.asarray(out["tokens"])

    want = whole(prompt, mask, keys)
    for n in range(N):
        np.testing.assert_array_equal(
            whole(prompt[n : n + 1], mask[n : n + 1], keys[n : n + 1]), want[n : n + 1]
        )
    np.testing.assert_array_equal(whole(prompt, mask, keys[:, 2:]), want[:, 2:])
    session, parts = prefill(weights, prompt, mask, keys, cfg), []
    for chunk in range(3):
        session = grow(session, session.room + 4)
        session, out = generate(weights, session, everyone, cfg, max_new_tokens=3, first=chunk == 0)
        parts.append(out["tokens"])
    np.testing.assert_array_equal(np.concatenate(parts, -1), want)


@pytest.mark.slow
def test_rows_that_are_not_active_stay_as_they_are():
    cfg, weights = policy()
    session, rows, _ = episode(cfg, weights)
    session = grow(session, session.room + S + 1)
    active = np.arange(R) % 2 == np.zeros((N, 1))
    after, out = generate(
        weights, session, active, cfg, max_new_tokens=S, temperature=1.3, stop=STOP
    )
    assert not np.asarray(out["mask"])[~active].any()
    np.testing.assert_array_equal(after.tokens[~active], session.tokens[~active])
    later, out = generate(weights, grow(after, after.room + S + 1), ~active, cfg, max_new_tokens=S, temperature=1.3, stop=STOP)  # fmt: skip
    out = jax.device_get(out)
    rows.add(out["tokens"], out["mask"], out["logp"])
    want = trainer(cfg, weights, rows)
    for n in range(N):
        for r in range(R):
            if not active[n, r]:
                assert abs(rows.logp[n][r][-1] - float(want[n, r, len(rows.logp[n][r]) - 1])) < 1e-4
    assert later.room == after.room + S + 1


def test_a_session_cannot_shrink():
    cfg, weights = policy()
    session = grow(
        prefill(weights, *prompts(), row_keys(jax.random.key(0), jnp.arange(N), R), cfg), 4
    )
    with pytest.raises(ValueError, match="a session of 4 columns cannot shrink to 3"):
        grow(session, 3)
