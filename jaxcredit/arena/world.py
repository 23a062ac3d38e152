"""Finite-horizon worlds as arrays, solved exactly by dynamic programming.

Axes: T steps, S compact states, A actions (a token is its action's number), P rows of policy
logits; N prompts and G answers of a sample. Randomness is in the first state, in tokens that nature
writes and in the reward. The prefix of an answer and its first state determine the state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

POLICY, NATURE, OVER = 1, 0, -1  # values of World.actor


class World(NamedTuple):
    """A world as arrays. They may be traced, so that a sweep over their values compiles once.

    Attributes:
        start: probability of each first state.
        next: state after a token.
        actor: writer of the token: POLICY, NATURE (a tool, an observation), or OVER at the end.
        row: row of logits that the token is drawn from. States with the same row share
            parameters. Nature's rows are not trained.
        segment: segment of the token.
        reward: certain part of the reward.
        chance: probability of an additional reward of 1.
        sd: standard deviation of additional normal noise.
    """

    start: Float[Array, "S"]
    next: Int[Array, "T S A"]
    actor: Int[Array, "T S"]
    row: Int[Array, "T S"]
    segment: Int[Array, "T S"]
    reward: Float[Array, "T S A"]
    chance: Float[Array, "T S A"]
    sd: Float[Array, "T S A"]


class Exact(NamedTuple):
    """Exact values of a policy in a world.

    Attributes:
        value: V before the token.
        action_value: Q of the token.
        advantage: A = Q - V where the policy writes, 0 where nature does.
        visit: probability of being in s at step t before the end.
        objective: expected return J.
        gradient: dJ/dlogits.
    """

    value: Float[Array, "T S"]
    action_value: Float[Array, "T S A"]
    advantage: Float[Array, "T S A"]
    visit: Float[Array, "T S"]
    objective: Float[Array, ""]
    gradient: Float[Array, "P A"]


class Trace(NamedTuple):
    """Sampled states, tokens and rewards of N groups of G answers."""

    state: Int[Array, "N G T"]
    token: Int[Array, "N G T"]
    reward: Float[Array, "N G T"]


def grid(T: int, S: int, A: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step, state and action numbers, in shapes that broadcast to [T, S, A], as NumPy constants."""
    t, s, a = np.ogrid[:T, :S, :A]
    return t, s, a


def world(
    T: int,
    S: int,
    A: int,
    *,
    next: ArrayLike,
    start: ArrayLike | None = None,
    actor: ArrayLike = POLICY,
    row: ArrayLike | None = None,
    segment: ArrayLike = 0,
    reward: ArrayLike = 0.0,
    chance: ArrayLike = 0.0,
    sd: ArrayLike = 0.0,
) -> World:
    """Make a `World` of arrays that broadcast to [T, S, A].

    Args:
        T: number of steps.
        S: number of states.
        A: number of actions.
        next: state after a token, clipped to 0..S - 1; a state that is over stays.
        start: probability of each first state; None: state 0.
        actor: POLICY, NATURE or OVER.
        row: row of logits; None: one row for each step.
        segment: segment of the token.
        reward: certain part of the reward.
        chance: probability of an additional reward of 1.
        sd: standard deviation of additional normal noise.
    """
    row = jnp.arange(T)[:, None, None] if row is None else row
    integers = [
        jnp.broadcast_to(jnp.asarray(x, jnp.int32), (T, S, 1))[..., 0]
        for x in (actor, row, segment)
    ]
    rewards = [jnp.broadcast_to(jnp.asarray(x, float), (T, S, A)) for x in (reward, chance, sd)]
    live = (integers[0] != OVER)[..., None]
    start = (jnp.arange(S) == 0) * 1.0 if start is None else jnp.asarray(start)
    next = jnp.where(
        live, jnp.clip(jnp.broadcast_to(next, (T, S, A)), 0, S - 1), jnp.arange(S)[:, None]
    )
    return World(
        start, next.astype(jnp.int32), *integers, *(jnp.where(live, x, 0) for x in rewards)
    )


def solve(world: World, logits: Float[Array, "P A"]) -> Exact:
    """Exact values and policy gradient, by one sweep backward and one forward over the steps.

        V_t(s) = sum_a pi(a) Q_t(s, a),   Q_t(s, a) = r + V_(t+1)(next)
        dJ/dlogits[p, a] = sum over (t, s) in row p of d_t(s) pi(a) A_t(s, a)

    d is the visit probability. Rows of logits may have -inf.
    """
    pi = jax.nn.softmax(logits)[world.row]
    mean = world.reward + world.chance

    def backward(V, x):
        pi, next, mean = x
        Q = mean + V[next]
        # If all likely actions have the same Q, V is that Q: a decoy's advantage is exactly 0.
        likely = jnp.take_along_axis(Q, jnp.argmax(pi, -1)[:, None], -1)
        V = jnp.where(jnp.all((Q == likely) | (pi == 0), -1), likely[:, 0], (pi * Q).sum(-1))
        return V, (V, Q)

    zero = jnp.zeros(world.start.shape, mean.dtype)
    _, (V, Q) = jax.lax.scan(backward, zero, (pi, world.next, mean), reverse=True)
    chosen = (world.actor == POLICY)[..., None]
    A = jnp.where(chosen & (pi > 0), Q - V[..., None], 0)

    def forward(d, x):
        pi, next, actor = x
        d = jnp.where(actor == OVER, 0, d)
        return jnp.zeros_like(d).at[next].add(d[:, None] * pi), d

    _, d = jax.lax.scan(forward, world.start.astype(mean.dtype), (pi, world.next, world.actor))
    gradient = jnp.zeros(logits.shape, mean.dtype).at[world.row].add(d[..., None] * pi * A)
    return Exact(V, Q, A, d, jnp.vdot(world.start, V[0]), gradient)


def play(
    world: World, logits: Float[Array, "P A"], *, prompts: int, group: int, key: PRNGKeyArray
) -> Trace:
    """Sample N = `prompts` groups of G = `group` answers."""
    T = world.row.shape[0]
    pi = jax.nn.softmax(logits)
    cumulative, likely = (
        jnp.cumsum(pi, -1),
        jnp.argmax(jnp.where(pi > 0, jnp.arange(pi.shape[-1]), -1), -1),
    )
    uniform_key, normal_key = jax.random.split(key)
    # One draw for all steps: each further draw takes longer to compile than to run.
    u = jax.random.uniform(uniform_key, (2 * T + 1, prompts, group), pi.dtype)
    noise = jax.random.normal(normal_key, (T, prompts, group), pi.dtype)
    starts = jnp.cumsum(world.start)
    s = (u[-1][..., None] >= starts / starts[-1]).sum(-1, dtype=jnp.int32)

    def step(s, x):
        w, u, coin, noise = x
        row = w["row"][s]
        # By rounding, the count can exceed the last action that has any probability.
        a = jnp.minimum((u[..., None] >= cumulative[row]).sum(-1, dtype=jnp.int32), likely[row])
        a = jnp.where(w["actor"][s] == OVER, 0, a)
        r = w["reward"][s, a] + (coin < w["chance"][s, a]) + w["sd"][s, a] * noise
        return w["next"][s, a], (s, a, r)

    tables = {
        name: getattr(world, name) for name in ("next", "actor", "row", "reward", "chance", "sd")
    }
    _, out = jax.lax.scan(step, s, (tables, u[:T], u[T : 2 * T], noise))
    return Trace(*(jnp.moveaxis(x, 0, -1) for x in out))


def at(table: Array, state: Int[Array, "N G T"], *action: Int[Array, "N G T"]) -> Array:
    """Entries of a table [T, S] (or [T, S, A], with `action`) along sampled states, [N, G, T]."""
    return table[jnp.arange(state.shape[-1]), state, *action]
