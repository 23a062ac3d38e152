"""A finite world laid out by time, in which values, credit and the policy gradient are exact by two sweeps over its steps.

Letters beside the project's: S compact states, A actions (the token is the action's number), P rows of policy parameters. Chance has two
places only: what `start` hides, and tokens that nature writes. So the same beginning of an answer, from the same start, is the same state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

POLICY, NATURE, OVER = 1, 0, -1


class World(NamedTuple):
    """What happens. All arrays may be traced: a sweep over what they are made from compiles once."""

    start: Float[Array, "S"]  # probability of each first state
    next: Int[Array, "T S A"]  # the state a token leads to
    who: Int[
        Array, "T S"
    ]  # who writes the token: POLICY, NATURE (a tool, an observation), nobody as it is OVER
    row: Int[
        Array, "T S"
    ]  # the row of logits it is drawn from; states that share a row share parameters. Nature's rows are not trained
    segment: Int[Array, "T S"]  # the segment the token belongs to
    reward: Float[Array, "T S A"]  # what is earned for sure,
    chance: Float[Array, "T S A"]  # the probability of one more,
    sd: Float[Array, "T S A"]  # and the deviation of normal noise


class Exact(NamedTuple):
    """What is true of a policy in a world."""

    value: Float[Array, "T S"]  # V before the token
    action_value: Float[Array, "T S A"]  # Q of it
    advantage: Float[Array, "T S A"]  # A = Q - V where the policy chooses; 0 where nature does
    visit: Float[Array, "T S"]  # probability of being in s at step t, the episode not over
    objective: Float[Array, ""]  # J
    gradient: Float[Array, "P A"]  # dJ/dlogits


class Trace(NamedTuple):
    """What happened in N groups of G."""

    state: Int[Array, "N G T"]
    token: Int[Array, "N G T"]
    reward: Float[Array, "N G T"]


def grid(T: int, S: int, A: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step, state and action numbers, in shapes that broadcast to [T, S, A]: what worlds are written in. Constants of the program."""
    t, s, a = np.ogrid[:T, :S, :A]
    return t, s, a


def world(
    T: int,
    S: int,
    A: int,
    *,
    next: ArrayLike,
    start: ArrayLike | None = None,
    who: ArrayLike = POLICY,
    row: ArrayLike | None = None,
    segment: ArrayLike = 0,
    reward: ArrayLike = 0.0,
    chance: ArrayLike = 0.0,
    sd: ArrayLike = 0.0,
) -> World:
    """A world from arrays that broadcast to [T, S, A]. By default it starts in state 0 and a step has a row of its own (`row=t`)."""
    row = jnp.arange(T)[:, None, None] if row is None else row
    here = [
        jnp.broadcast_to(jnp.asarray(x, jnp.int32), (T, S, 1))[..., 0] for x in (who, row, segment)
    ]
    there = [jnp.broadcast_to(jnp.asarray(x, float), (T, S, A)) for x in (reward, chance, sd)]
    live = (here[0] != OVER)[..., None]
    start = (jnp.arange(S) == 0) * 1.0 if start is None else jnp.asarray(start)
    next = jnp.where(
        live, jnp.clip(jnp.broadcast_to(next, (T, S, A)), 0, S - 1), jnp.arange(S)[:, None]
    )
    return World(start, next.astype(jnp.int32), *here, *(jnp.where(live, x, 0) for x in there))


def solve(world: World, logits: Float[Array, "P A"]) -> Exact:
    """V_t(s) = sum_a pi(a) Q_t(s, a),  Q_t(s, a) = r + V_{t+1}(next),  dJ/dlogits[p, a] = sum_{(t, s) in row p} d_t(s) pi(a) A_t(s, a)."""
    pi = jax.nn.softmax(logits)[world.row]
    mean = world.reward + world.chance

    def back(V, x):
        pi, next, mean = x
        Q = mean + V[next]
        # A value that chance cannot move is its Q to the last bit, so that a decoy's advantage is 0 and not a rounding error.
        likely = jnp.take_along_axis(Q, jnp.argmax(pi, -1)[:, None], -1)
        V = jnp.where(jnp.all((Q == likely) | (pi == 0), -1), likely[:, 0], (pi * Q).sum(-1))
        return V, (V, Q)

    zero = jnp.zeros(world.start.shape, mean.dtype)
    _, (V, Q) = jax.lax.scan(back, zero, (pi, world.next, mean), reverse=True)
    chosen = (world.who == POLICY)[..., None]
    A = jnp.where(chosen & (pi > 0), Q - V[..., None], 0)

    def forth(d, x):
        pi, next, who = x
        d = jnp.where(who == OVER, 0, d)
        return jnp.zeros_like(d).at[next].add(d[:, None] * pi), d

    _, d = jax.lax.scan(forth, world.start.astype(mean.dtype), (pi, world.next, world.who))
    gradient = jnp.zeros(logits.shape, mean.dtype).at[world.row].add(d[..., None] * pi * A)
    return Exact(V, Q, A, d, jnp.vdot(world.start, V[0]), gradient)


def play(
    world: World, logits: Float[Array, "P A"], *, prompts: int, group: int, key: PRNGKeyArray
) -> Trace:
    """N prompts with G episodes each."""
    T = world.row.shape[0]
    pi = jax.nn.softmax(logits)
    upto, likely = (
        jnp.cumsum(pi, -1),
        jnp.argmax(jnp.where(pi > 0, jnp.arange(pi.shape[-1]), -1), -1),
    )
    uniform_key, normal_key = jax.random.split(key)
    # One draw of all: each further one compiles for longer than it runs.
    u = jax.random.uniform(uniform_key, (2 * T + 1, prompts, group), pi.dtype)
    noise = jax.random.normal(normal_key, (T, prompts, group), pi.dtype)
    begin = jnp.cumsum(world.start)
    s = (u[-1][..., None] >= begin / begin[-1]).sum(-1, dtype=jnp.int32)

    def step(s, x):
        w, u, coin, noise = x
        row = w["row"][s]
        # The count can run past the last action that has any mass by a rounding error.
        a = jnp.minimum((u[..., None] >= upto[row]).sum(-1, dtype=jnp.int32), likely[row])
        a = jnp.where(w["who"][s] == OVER, 0, a)
        r = w["reward"][s, a] + (coin < w["chance"][s, a]) + w["sd"][s, a] * noise
        return w["next"][s, a], (s, a, r)

    tables = {
        name: getattr(world, name) for name in ("next", "who", "row", "reward", "chance", "sd")
    }
    _, out = jax.lax.scan(step, s, (tables, u[:T], u[T : 2 * T], noise))
    return Trace(*(jnp.moveaxis(x, 0, -1) for x in out))


def at(table: Array, state: Int[Array, "N G T"], *action: Int[Array, "N G T"]) -> Array:
    """A table [T, S] or [T, S, A] read along what happened: [N, G, T]."""
    return table[jnp.arange(state.shape[-1]), state, *action]


def chosen(world: World, trace: Trace) -> Bool[Array, "N G T"]:
    """Tokens the policy wrote."""
    return at(world.who, trace.state) == POLICY
