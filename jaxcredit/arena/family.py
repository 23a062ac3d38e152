"""Families of worlds: their protocol, and sampling of rollouts with signals and true advantages."""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from jaxcredit.arena.world import OVER, POLICY, Exact, Trace, World, at, play, solve
from jaxcredit.rollout import Rollout


class SignalInputs(NamedTuple):
    """Data from which a family computes its signals.

    Attributes:
        world: the world.
        logits: the policy.
        exact: exact values of the policy.
        trace: the sampled answers.
        segment_start: step at which each segment begins; T if it did not take place.
    """

    world: World
    logits: Float[Array, "P A"]
    exact: Exact
    trace: Trace
    segment_start: Int[Array, "N G K"]

    def at_segment_start(self, x: Array) -> Array:
        """Entries [N, G, K] of x [N, G, T] at the start of each segment (unused ones: the last)."""
        return jnp.take_along_axis(x, jnp.minimum(self.segment_start, x.shape[-1] - 1), -1)


class Family(Protocol):
    """Family of worlds: a frozen dataclass made by `family`.

    Its fields are knobs, which are traced, or sizes (`static`).
    """

    @property
    def segments(self) -> int:
        """Number K of segments."""
        ...

    def world(self) -> World:
        """The world with these knobs."""
        ...

    def policy(self) -> Float[Array, "P A"]:
        """Logits of the initial policy; -inf for actions that do not exist."""
        ...

    def signals(self, inputs: SignalInputs, *, key: PRNGKeyArray) -> dict[str, Array]:
        """Signals of the family, which replace those of `common_signals` with the same name."""
        ...

    def blocks(self) -> dict[str, Array]:
        """Masks [P] of rows of logits whose gradient is reported separately, by name."""
        ...


class Truth(NamedTuple):
    """Exact values of each sampled token.

    Attributes:
        value: V before the token.
        action_value: Q of the token.
        advantage: Q - V; 0 after the end and where nature writes.
        row: row of logits that the token was drawn from.
        cell: number of (step, state, action).
    """

    value: Float[Array, "N G T"]
    action_value: Float[Array, "N G T"]
    advantage: Float[Array, "N G T"]
    row: Int[Array, "N G T"]
    cell: Int[Array, "N G T"]


class LabeledBatch(NamedTuple):
    """Sampled groups with their true credit.

    Attributes:
        rollout: the answers, as an estimator gets them.
        truth: exact values of each token.
        exact: exact values of the whole world.
    """

    rollout: Rollout
    truth: Truth
    exact: Exact


def family(cls):
    """Class decorator: a frozen dataclass registered as a pytree whose leaves are the knobs."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


def static(default):
    """Field that is a size or a structure: every value compiles separately."""
    return dataclasses.field(default=default, metadata={"static": True})


def sample(
    task: Family,
    *,
    prompts: int,
    group: int,
    key: PRNGKeyArray,
    logits: Float[Array, "P A"] | None = None,
    critic_sd: Float[Array, ""] | float = 0.0,
) -> LabeledBatch:
    """Sample groups of answers, with signals and true credit.

    Args:
        task: a family of worlds with its knobs.
        prompts: number N of groups.
        group: number G of answers in a group.
        key: random key; the same key gives the same batch.
        logits: the policy; None: the family's own.
        critic_sd: standard deviation of normal noise on the critic's values.

    Returns:
        A `LabeledBatch`. The function can be compiled with `prompts` and `group` static.
    """
    logits, world = task.policy() if logits is None else logits, task.world()
    # The rbg generator compiles much faster than threefry for millions of numbers.
    signal_key, play_key = jax.random.split(
        jax.random.wrap_key_data(jax.random.bits(key, (4,)), impl="rbg")
    )
    trace = play(world, logits, prompts=prompts, group=group, key=play_key)
    return label(task, world, logits, trace, key=signal_key, critic_sd=critic_sd)


def label(
    task: Family,
    world: World,
    logits: Float[Array, "P A"],
    trace: Trace,
    *,
    key: PRNGKeyArray,
    critic_sd: Float[Array, ""] | float = 0.0,
) -> LabeledBatch:
    """A `LabeledBatch` of sampled answers: rollout, signals and exact values."""
    exact, (common_key, family_key) = solve(world, logits), jax.random.split(key)
    columns = at(jnp.stack([world.actor, world.row, world.segment], -1), trace.state)
    actor, row, segment = jnp.moveaxis(columns, -1, 0)
    valid = actor != OVER
    segment = jnp.where(valid, segment, -1)
    inside = segment[..., None] == jnp.arange(task.segments)
    T, S, A = world.next.shape
    inputs = SignalInputs(
        world, logits, exact, trace, jnp.where(inside, jnp.arange(T)[:, None], T).min(2)
    )
    logp = jnp.where(actor == POLICY, jax.nn.log_softmax(logits)[row, trace.token], 0)
    rollout = Rollout(
        tokens=trace.token,
        action_mask=actor == POLICY,
        logp=logp,
        segment=segment,
        reward=jnp.where(inside, trace.reward[..., None], 0).sum(2),
        segment_mask=inside.any(2),
        signals=common_signals(inputs, logp, critic_sd, key=common_key)
        | task.signals(inputs, key=family_key),
        token_mask=valid,
    )
    action_value, advantage = jnp.moveaxis(
        at(jnp.stack([exact.action_value, exact.advantage], -1), trace.state, trace.token), -1, 0
    )
    cell = (jnp.arange(T) * S + trace.state) * A + trace.token
    truth = Truth(
        at(exact.value, trace.state), action_value, jnp.where(valid, advantage, 0), row, cell
    )
    return LabeledBatch(rollout, truth, exact)


def common_signals(
    inputs: SignalInputs, logp: Array, critic_sd: Float[Array, ""] | float, *, key: PRNGKeyArray
) -> dict[str, Array]:
    """Signals of every family.

    They are the entropy, sum of squared probabilities and log-probability of the policy, exact
    values plus normal noise (`critic_sd`), and the state's number.
    """
    logits, trace = inputs.logits, inputs.trace
    row = at(inputs.world.row, trace.state)
    p = jax.nn.softmax(logits)
    H = -(p * jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), 0)).sum(-1)
    V = at(inputs.exact.value, trace.state)
    V = V + critic_sd * jax.random.normal(key, V.shape, V.dtype)
    return {
        "entropy": H[row],
        "prob_square": (p * p).sum(-1)[row],
        "ref_logp": logp,
        "token_value": V,
        "value": inputs.at_segment_start(V),
        "state": inputs.at_segment_start(trace.state).astype(jnp.int32),
    }


def gradient(
    credit: Float[Array, "N G T"], batch: LabeledBatch, logits: Float[Array, "P A"]
) -> Float[Array, "N P A"]:
    """Policy gradient of each group from its credit.

        g[row of the token] += 1/G sum_i sum_t A_it (e_token - pi)

    Args:
        credit: advantage of each token; tokens of nature are ignored.
        batch: the batch that it was computed from.
        logits: the policy.

    Returns:
        An estimate of dJ/dlogits for each group.
    """
    N, G, _ = credit.shape
    n = jnp.arange(N)[:, None, None]
    credit = jnp.where(batch.rollout.action_mask, credit, 0)
    at_token = (
        jnp.zeros((N, *logits.shape), credit.dtype)
        .at[n, batch.truth.row, batch.rollout.tokens]
        .add(credit)
    )
    return (at_token - at_token.sum(-1, keepdims=True) * jax.nn.softmax(logits)) / G


def logits_of(*rows: tuple[ArrayLike, ...]) -> Float[Array, "P A"]:
    """Logits of rows of probabilities; shorter rows are padded with probability 0."""
    A = max(len(row) for row in rows)
    padded = [
        jnp.pad(jnp.stack([jnp.asarray(p, float) for p in row]), (0, A - len(row))) for row in rows
    ]
    return jnp.log(jnp.stack(padded))
