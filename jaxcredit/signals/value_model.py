"""A critic: a small head on the policy's hidden states that says what a token's beginning is worth."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxcredit.losses import divide
from jaxcredit.policy import transformer
from jaxcredit.policy.positions import resolve_rope_scaling
from jaxcredit.rollout import FilledRollout
from jaxcredit.signals.base import Learned
from jaxcredit.signals.reference_policy import at_response


class Head(nn.Module):
    """h -> V: one hidden layer of `width`, or linear where it is 0. Begins at 0, so that an untrained critic is no critic."""

    width: int = 0

    @nn.compact
    def __call__(self, h):
        h = nn.gelu(nn.Dense(self.width)(h)) if self.width else h
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(h)[..., 0]


def states(params, rollout: FilledRollout, cfg, S: int) -> Float[Array, "N R S D"]:
    """The policy's last hidden states before each response token: column t holds what was known when token t was chosen."""
    P = rollout.tokens.shape[-1] - S
    tokens, valid = rollout.tokens, rollout.token_mask
    cfg = resolve_rope_scaling(
        cfg, rollout.tokens.shape[-1]
    )  # as the policy's own log-probabilities are computed, though the last token is left out
    prompt, rows = transformer.hidden(
        params, tokens[:, 0, :P], valid[:, 0, :P], tokens[:, :, P:-1], valid[:, :, P:-1], cfg
    )
    first = jnp.broadcast_to(prompt[:, None, -1:], (*rows.shape[:2], 1, rows.shape[-1]))
    return jnp.concatenate([first, rows], 2)


def value_loss(V: Array, old: Array, target: Array, *, clip: float) -> Array:
    """max((V - R)^2, (old + clip(V - old, +-clip) - R)^2) / 2, arXiv 1707.06347 as released; R is the target, old the V acted on."""
    near = old + jnp.clip(V - old, -clip, clip)
    return 0.5 * jnp.maximum((V - target) ** 2, (near - target) ** 2)


def critic(
    *,
    width: int = 128,
    optimizer: optax.GradientTransformation | None = None,
    clip: float = 0.2,
    steps: int = 4,
    features: Callable[..., Array] = states,
) -> Callable:
    """`token_value`: V before the token, regressed on the column `target` that `ppo` gives, by `value_loss` over the policy's tokens.

    The hidden states are constants to it: its gradient never reaches the policy. They are computed once a rollout for `steps` steps of
    its own optimizer (adam 1e-3); `features(params, rollout, cfg, S) -> [N, R, S, cfg.width]` replaces them.
    """
    head, optimizer = Head(width), optimizer or optax.adam(1e-3)

    def worth(weights, h) -> Array:
        V = head.apply(weights, h)
        assert isinstance(V, jax.Array)  # not a pair: nothing of the head is mutable
        return V

    def make(cfg, logprob) -> Learned:
        def look(params, rollout):
            S = jax.eval_shape(logprob, params, rollout)["logp"].shape[-1]
            return jax.lax.stop_gradient(features(params, rollout, cfg, S)).astype(jnp.float32)

        def init(key, params):
            weights = head.init(key, jnp.zeros((1, cfg.width)))
            return {"params": weights, "opt_state": optimizer.init(weights)}

        @jax.jit
        def measure(weights, params, rollout):
            return at_response(worth(weights, look(params, rollout)), rollout)

        @jax.jit
        def learn(aux, params, rollout, columns):
            h = look(params, rollout)
            S = h.shape[2]
            mask = rollout.action_mask[..., -S:]
            old, target = (
                jnp.where(mask, x[..., -S:], 0) for x in (rollout["token_value"], columns["target"])
            )
            count = mask.sum(dtype=jnp.float32)

            def loss(weights):
                each = value_loss(worth(weights, h), old, target, clip=clip)
                return divide(jnp.sum(jnp.where(mask, each, 0)), count)

            def step(aux, _):
                value, gradient = jax.value_and_grad(loss)(aux["params"])
                change, opt_state = optimizer.update(gradient, aux["opt_state"], aux["params"])
                new = {"params": optax.apply_updates(aux["params"], change), "opt_state": opt_state}
                good = jnp.isfinite(optax.tree.norm(gradient))
                return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, aux), value

            new, values = jax.lax.scan(step, aux, length=steps)
            if (
                cfg.layout is not None
            ):  # on a mesh every device holds the whole critic, as mesh.state_shardings says
                new = jax.tree.map(lambda x: cfg.layout(x, *(None,) * x.ndim), new)

            def variance(x):
                mean = divide(jnp.sum(jnp.where(mask, x, 0)), count)
                return divide(jnp.sum(jnp.where(mask, (x - mean) ** 2, 0)), count)

            spread = variance(target)
            return new, {
                "loss": values[0],
                "explained_variance": divide(spread - variance(target - old), spread),
            }

        def update(aux, state, rollout, columns):
            if (
                "target" not in columns
            ):  # a credit without a critic was put in ppo's place: nothing to regress to
                return aux, {}
            return learn(aux, state.params, rollout.filled(), columns)

        def annotate(aux, state, rollout, metas):
            return rollout.with_signals(
                token_value=measure(aux["params"], state.params, rollout.filled())
            )

        return Learned(init, annotate, update)

    make.provides = ("token_value",)
    return make
