"""What credit is worth to a learner: a tabular softmax policy climbs in a family of the arena by an estimator's gradient."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from jaxcredit import arena
from jaxcredit.arena.family import Family
from jaxcredit.arena.metrics import Estimate
from jaxcredit.arena.world import NATURE, World, solve
from jaxcredit.credit import Credit, columns
from jaxcredit.signals import Learned


def level(b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
    """Adam with one scale for all parameters. Adam's own scales, one for each, undo whatever weights the rows of a table are given."""

    def init(params):
        return {"m": jnp.zeros_like(params), "v": jnp.zeros(()), "t": jnp.zeros(())}

    def update(updates, state, params=None):
        t = state["t"] + 1
        m, v = (
            b1 * state["m"] + (1 - b1) * updates,
            b2 * state["v"] + (1 - b2) * (updates * updates).sum(),
        )
        up = m / (1 - b1**t) / jnp.sqrt(v / (1 - b2**t) + 1e-12)
        return up, {"m": m, "v": v, "t": t}

    return optax.GradientTransformation(init, update)


ADAM, LEVEL = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-6), level()


class Learning(NamedTuple):
    """Exact objectives before each step and after the last, [values, seeds, steps + 1], and the best there is, [values]."""

    objective: np.ndarray
    best: np.ndarray

    def area(self) -> np.ndarray:
        """Mean over the steps of the share of the way that is done, (J - J_0) / (J* - J_0): [values, seeds]."""
        return self.share()[..., 1:].mean(-1)

    def final(self) -> np.ndarray:
        """The share at the end, over the last tenth of the steps: [values, seeds]."""
        return self.share()[..., -max(self.objective.shape[-1] // 10, 1) :].mean(-1)

    def steps_to(self, share: float = 0.9) -> np.ndarray:
        """The first step at which that share of the way is done, inf where it never is: [values, seeds]."""
        there = self.share() >= share
        return np.where(there.any(-1), there.argmax(-1), np.inf)

    def share(self) -> np.ndarray:
        start = self.objective[..., :1]
        return (self.objective - start) / (self.best[:, None, None] - start)


def best(world: World, logits: jax.Array) -> jax.Array:
    """J* = E V*_0,  V*_t(s) = max_a Q*_t(s, a) where the policy writes (and has mass), the mean where nature does."""
    p, mean = jax.nn.softmax(logits)[world.row], world.reward + world.chance

    def back(V, x):
        p, next, mean, who = x
        Q = mean + V[next]
        return jnp.where(
            who == NATURE, (p * Q).sum(-1), jnp.where(p > 0, Q, -jnp.inf).max(-1)
        ), None

    V, _ = jax.lax.scan(
        back,
        jnp.zeros(world.start.shape, mean.dtype),
        (p, world.next, mean, world.who),
        reverse=True,
    )
    return jnp.vdot(world.start, V)


def learn(
    tasks: Family,
    estimator: Credit,
    *,
    steps: int = 100,
    seeds: int = 8,
    prompts: int = 4,
    group: int = 8,
    rate: float = 0.1,
    signal: Learned | None = None,
    climb: optax.GradientTransformation = ADAM,
    first: int = 0,
) -> Learning:
    """`tasks` is one family whose knobs have a leading axis of values. Adam, so that an estimator's scale does not matter.

    Values and seeds (from `first` on) run side by side in one program; seed i is the same in all of them. `signal` annotates each batch,
    and remembers.
    """
    objective, top = _learn(
        tasks,
        jnp.arange(first, first + seeds),
        estimator,
        steps,
        prompts,
        group,
        rate,
        signal,
        climb,
    )
    return Learning(np.asarray(objective, np.float64), np.asarray(top, np.float64))


@partial(
    jax.jit,
    static_argnums=(2, 3, 4, 5, 7, 8),
    compiler_options={"xla_backend_optimization_level": 1},
)
def _learn(tasks, seeds, estimator, steps, prompts, group, rate, signal, climb):
    def one(task, seed):
        world, begin = task.world(), task.policy()
        live = jnp.isfinite(begin)  # what has no mass stays without

        def step(carry, key):
            logits, state, aux = carry
            batch = arena.sample(task, prompts=prompts, group=group, key=key, logits=logits)
            rollout = signal.annotate(aux, None, batch.rollout, None) if signal else batch.rollout
            given = columns(estimator(rollout), rollout)
            aux = signal.update(aux, None, rollout, given)[0] if signal else aux
            g = arena.gradient(
                given["advantage"] * given["weight"], batch, jnp.where(live, logits, -jnp.inf)
            ).mean(0)
            up, state = climb.update(jnp.where(live, g, 0), state)
            return (jnp.where(live, logits + rate * up, logits), state, aux), batch.exact.objective

        keys = jax.random.split(jax.random.key(seed), steps)
        aux = signal.init(None, None) if signal else ()
        (logits, *_), J = jax.lax.scan(step, (begin, climb.init(jnp.zeros_like(begin)), aux), keys)
        return jnp.append(J, solve(world, logits).objective)

    top = jax.vmap(lambda task: best(task.world(), task.policy()))(tasks)
    return jax.vmap(lambda task: jax.vmap(partial(one, task))(seeds))(tasks), top


def paired(a: np.ndarray, b: np.ndarray) -> list[Estimate]:
    """Mean over the seeds of a - b, [values, seeds], with Student's 95 % interval: the seeds are paired."""
    d = a - b
    half = stats.t.ppf(0.975, d.shape[1] - 1) * d.std(1, ddof=1) / d.shape[1] ** 0.5
    return [
        Estimate(float(m), float(m - h), float(m + h)) for m, h in zip(d.mean(1), half, strict=True)
    ]
