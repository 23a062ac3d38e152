"""Learning curves of tabular softmax policies that are trained with an estimator's credit."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from jaxcredit import arena
from jaxcredit.arena.family import Family
from jaxcredit.arena.metrics import Interval
from jaxcredit.arena.world import NATURE, World, solve
from jaxcredit.credit import Credit, columns
from jaxcredit.signals import Learned


def adam_with_one_scale(b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
    """Adam with one second moment for all parameters.

    Adam's own scale for each parameter would undo any weights that credit gives to rows of a table.
    """

    def init(params):
        return {"m": jnp.zeros_like(params), "v": jnp.zeros(()), "t": jnp.zeros(())}

    def update(updates, state, params=None):
        t = state["t"] + 1
        m, v = (
            b1 * state["m"] + (1 - b1) * updates,
            b2 * state["v"] + (1 - b2) * (updates * updates).sum(),
        )
        step = m / (1 - b1**t) / jnp.sqrt(v / (1 - b2**t) + 1e-12)
        return step, {"m": m, "v": v, "t": t}

    return optax.GradientTransformation(init, update)


ADAM, ADAM_ONE_SCALE = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-6), adam_with_one_scale()


class LearningCurves(NamedTuple):
    """Learning curves of one estimator in one family at several values of its knobs.

    Attributes:
        objective: exact expected return before each step and after the last,
            [values, seeds, steps + 1].
        best: expected return of the best policy, [values].
    """

    objective: np.ndarray
    best: np.ndarray

    def area(self) -> np.ndarray:
        """Mean of `share` over the steps, [values, seeds]."""
        return self.share()[..., 1:].mean(-1)

    def final(self) -> np.ndarray:
        """Mean of `share` over the last tenth of the steps, [values, seeds]."""
        return self.share()[..., -max(self.objective.shape[-1] // 10, 1) :].mean(-1)

    def steps_to(self, share: float = 0.9) -> np.ndarray:
        """First step at which `share` reaches a value, inf if it does not, [values, seeds]."""
        reached = self.share() >= share
        return np.where(reached.any(-1), reached.argmax(-1), np.inf)

    def share(self) -> np.ndarray:
        """Progress (J - J_0) / (J* - J_0) at each step, [values, seeds, steps + 1]."""
        start = self.objective[..., :1]
        return (self.objective - start) / (self.best[:, None, None] - start)


def best_objective(world: World, logits: jax.Array) -> jax.Array:
    """Expected return J* of the best policy.

        V*_t(s) = max_a Q*_t(s, a) where the policy writes, the mean over a where nature does

    The maximum is over actions with a probability above 0 in `logits`.
    """
    p, mean = jax.nn.softmax(logits)[world.row], world.reward + world.chance

    def backward(V, x):
        p, next, mean, actor = x
        Q = mean + V[next]
        return jnp.where(
            actor == NATURE, (p * Q).sum(-1), jnp.where(p > 0, Q, -jnp.inf).max(-1)
        ), None

    V, _ = jax.lax.scan(
        backward,
        jnp.zeros(world.start.shape, mean.dtype),
        (p, world.next, mean, world.actor),
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
    optimizer: optax.GradientTransformation = ADAM,
    first_seed: int = 0,
) -> LearningCurves:
    """Train tabular policies with an estimator's credit, and return their exact objectives.

    All values and seeds run side by side in one program. Seed i is the same for all values.

    Args:
        tasks: a family whose knobs have a leading axis of values.
        estimator: the credit.
        steps: number of gradient steps.
        seeds: number of learners for each value.
        prompts: groups sampled in a step.
        group: answers in a group.
        rate: learning rate.
        signal: annotator of the batches, with a memory of its own.
        optimizer: optimizer of the logits; with Adam an estimator's scale has no effect.
        first_seed: the seeds are first_seed, first_seed + 1, ...
    """
    objective, top = _learn(
        tasks,
        jnp.arange(first_seed, first_seed + seeds),
        estimator,
        steps,
        prompts,
        group,
        rate,
        signal,
        optimizer,
    )
    return LearningCurves(np.asarray(objective, np.float64), np.asarray(top, np.float64))


@partial(
    jax.jit,
    static_argnums=(2, 3, 4, 5, 7, 8),
    compiler_options={"xla_backend_optimization_level": 1},
)
def _learn(tasks, seeds, estimator, steps, prompts, group, rate, signal, optimizer):
    def one(task, seed):
        world, begin = task.world(), task.policy()
        live = jnp.isfinite(begin)  # actions that do not exist keep probability 0

        def train_step(carry, key):
            logits, state, aux = carry
            batch = arena.sample(task, prompts=prompts, group=group, key=key, logits=logits)
            rollout = signal.annotate(aux, None, batch.rollout, None) if signal else batch.rollout
            given = columns(estimator(rollout), rollout)
            aux = signal.update(aux, None, rollout, given)[0] if signal else aux
            g = arena.gradient(
                given["advantage"] * given["weight"], batch, jnp.where(live, logits, -jnp.inf)
            ).mean(0)
            step, state = optimizer.update(jnp.where(live, g, 0), state)
            return (
                jnp.where(live, logits + rate * step, logits),
                state,
                aux,
            ), batch.exact.objective

        keys = jax.random.split(jax.random.key(seed), steps)
        aux = signal.init(None, None) if signal else ()
        (logits, *_), J = jax.lax.scan(
            train_step, (begin, optimizer.init(jnp.zeros_like(begin)), aux), keys
        )
        return jnp.append(J, solve(world, logits).objective)

    top = jax.vmap(lambda task: best_objective(task.world(), task.policy()))(tasks)
    return jax.vmap(lambda task: jax.vmap(partial(one, task))(seeds))(tasks), top


def paired_difference(a: np.ndarray, b: np.ndarray) -> list[Interval]:
    """Mean difference of a and b over paired seeds, with Student's 95 % interval.

    Args:
        a: numbers of one estimator, [values, seeds].
        b: numbers of another, [values, seeds].

    Returns:
        An interval for each value.
    """
    d = a - b
    half = stats.t.ppf(0.975, d.shape[1] - 1) * d.std(1, ddof=1) / d.shape[1] ** 0.5
    return [
        Interval(float(m), float(m - h), float(m + h)) for m, h in zip(d.mean(1), half, strict=True)
    ]
