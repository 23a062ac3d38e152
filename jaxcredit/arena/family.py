"""What all families of the arena share: knobs that are traced, a batch as a `Rollout` with signals, and the truth beside it."""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from jaxcredit.arena.world import OVER, POLICY, Exact, Trace, World, at, play, solve
from jaxcredit.rollout import Rollout


class Seen(NamedTuple):
    """What a family makes its signals from: `first` is the step each segment begins at, [N, G, K] (T where it does not take place)."""

    world: World
    logits: Float[Array, "P A"]
    exact: Exact
    trace: Trace
    first: Int[Array, "N G K"]

    def begin(self, x: Array) -> Array:
        """[N, G, T] read where each segment begins: [N, G, K], the last step's where it does not take place."""
        return jnp.take_along_axis(x, jnp.minimum(self.first, x.shape[-1] - 1), -1)


class Family(Protocol):
    """A frozen dataclass: fields are knobs (leaves of a tree: traced) or sizes (`static`). `segments` is K."""

    @property
    def segments(self) -> int: ...
    def world(self) -> World: ...
    def policy(self) -> Float[Array, "P A"]: ...  # logits of the policy the arena starts from
    def signals(
        self, seen: Seen, *, key: PRNGKeyArray
    ) -> dict[str, Array]: ...  # beyond `common`, and in its place
    def blocks(
        self,
    ) -> dict[str, Array]: ...  # rows of parameters that are reported apart, as masks [P]


class Truth(NamedTuple):
    """What is true of every token of a batch. `cell` numbers (step, state, action): what credit may depend on."""

    value: Float[Array, "N G T"]
    action_value: Float[Array, "N G T"]
    advantage: Float[Array, "N G T"]
    row: Int[Array, "N G T"]
    cell: Int[Array, "N G T"]


class Batch(NamedTuple):
    rollout: Rollout
    truth: Truth
    exact: Exact


def family(cls):
    """A dataclass that is a tree of its knobs."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


def static(default):
    """A size or a structure: another one compiles anew."""
    return dataclasses.field(default=default, metadata={"static": True})


def sample(
    task: Family,
    *,
    prompts: int,
    group: int,
    key: PRNGKeyArray,
    logits: Float[Array, "P A"] | None = None,
    critic_sd: Float[Array, ""] | float = 0.0,
) -> Batch:
    """N groups of the task under its own policy, or under `logits`. Jit-able; the same key gives the same batch."""
    logits, world = task.policy() if logits is None else logits, task.world()
    # The device's own generator: threefry over millions of numbers takes ten times as long to compile.
    key, playing = jax.random.split(
        jax.random.wrap_key_data(jax.random.bits(key, (4,)), impl="rbg")
    )
    trace = play(world, logits, prompts=prompts, group=group, key=playing)
    return describe(task, world, logits, trace, key=key, critic_sd=critic_sd)


def describe(
    task: Family,
    world: World,
    logits: Float[Array, "P A"],
    trace: Trace,
    *,
    key: PRNGKeyArray,
    critic_sd: Float[Array, ""] | float = 0.0,
) -> Batch:
    """What happened as a rollout with signals, and the truth beside it."""
    exact, (ours, theirs) = solve(world, logits), jax.random.split(key)
    here = at(jnp.stack([world.who, world.row, world.segment], -1), trace.state)
    who, row, segment = jnp.moveaxis(here, -1, 0)
    valid = who != OVER
    segment = jnp.where(valid, segment, -1)
    inside = segment[..., None] == jnp.arange(task.segments)
    T, S, A = world.next.shape
    seen = Seen(world, logits, exact, trace, jnp.where(inside, jnp.arange(T)[:, None], T).min(2))
    logp = jnp.where(who == POLICY, jax.nn.log_softmax(logits)[row, trace.token], 0)
    rollout = Rollout(
        tokens=trace.token,
        action_mask=who == POLICY,
        logp=logp,
        segment=segment,
        reward=jnp.where(inside, trace.reward[..., None], 0).sum(2),
        segment_mask=inside.any(2),
        signals=common(seen, logp, critic_sd, key=ours) | task.signals(seen, key=theirs),
        token_mask=valid,
    )
    action_value, advantage = jnp.moveaxis(
        at(jnp.stack([exact.action_value, exact.advantage], -1), trace.state, trace.token), -1, 0
    )
    cell = (jnp.arange(T) * S + trace.state) * A + trace.token
    truth = Truth(
        at(exact.value, trace.state), action_value, jnp.where(valid, advantage, 0), row, cell
    )
    return Batch(rollout, truth, exact)


def common(
    seen: Seen, logp: Array, critic_sd: Float[Array, ""] | float, *, key: PRNGKeyArray
) -> dict[str, Array]:
    """What any family can provide: what the policy knows of itself, a critic (exact, with noise `critic_sd`), and the state as a hash."""
    logits, trace = seen.logits, seen.trace
    row = at(seen.world.row, trace.state)
    p = jax.nn.softmax(logits)
    H = -(p * jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), 0)).sum(-1)
    V = at(seen.exact.value, trace.state)
    V = V + critic_sd * jax.random.normal(key, V.shape, V.dtype)
    return {
        "entropy": H[row],
        "prob_square": (p * p).sum(-1)[row],
        "ref_logp": logp,
        "token_value": V,
        "value": seen.begin(V),
        "state": seen.begin(trace.state).astype(jnp.int32),
    }


def gradient(
    credit: Float[Array, "N G T"], batch: Batch, logits: Float[Array, "P A"]
) -> Float[Array, "N P A"]:
    """Each group's estimate of dJ/dlogits: 1/G sum_i sum_t A_it (e_token - pi), in the row the token was drawn from."""
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
    """Logits whose probabilities are the given rows; a row may be shorter than the longest, the rest has no mass."""
    A = max(len(r) for r in rows)
    return jnp.log(
        jnp.stack(
            [jnp.pad(jnp.stack([jnp.asarray(p, float) for p in r]), (0, A - len(r))) for r in rows]
        )
    )
