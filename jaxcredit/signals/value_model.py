"""Critic: a small value head on the policy's hidden states, trained beside the policy."""

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
    """Flax module of the value head: hidden states [..., D] to values [...].

    The output layer is initialized to 0, so that an untrained critic predicts 0.

    Fields:
        width: size of the hidden layer; 0 for a linear head.
    """

    width: int = 0

    @nn.compact
    def __call__(self, hidden):
        hidden = nn.gelu(nn.Dense(self.width)(hidden)) if self.width else hidden
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(hidden)[..., 0]


def states(params, rollout: FilledRollout, cfg, S: int) -> Float[Array, "N R S D"]:
    """Hidden states of the policy, after the final norm, before each response token.

    Args:
        params: the policy's parameters.
        rollout: filled rollout [N, R, T]: prompt columns, equal in all rows of a prompt, then S
            response columns.
        cfg: the policy's configuration; D is its `width`.
        S: number of response columns.

    Returns:
        [N, R, S, D]. Column t is the state after the prompt and the response tokens before t.
    """
    P = rollout.tokens.shape[-1] - S
    tokens, mask = rollout.tokens, rollout.token_mask
    # Rotary scaling can depend on the length of the whole row; the last token is left out below.
    cfg = resolve_rope_scaling(cfg, rollout.tokens.shape[-1])
    prompt, rows = transformer.hidden(
        params, tokens[:, 0, :P], mask[:, 0, :P], tokens[:, :, P:-1], mask[:, :, P:-1], cfg
    )
    first = jnp.broadcast_to(prompt[:, None, -1:], (*rows.shape[:2], 1, rows.shape[-1]))
    return jnp.concatenate([first, rows], 2)


def value_loss(V: Array, old: Array, target: Array, *, clip: float) -> Array:
    """Clipped value loss: max((V - R)^2, (old + clip(V - old, -clip, clip) - R)^2) / 2.

    Args:
        V: [...] values.
        old: [...] values when the rollout was collected.
        target: [...] regression target R.
        clip: float > 0, largest change of a value without penalty, in units of the reward.

    Returns:
        [...] loss of each value.

    Source: PPO, arXiv 1707.06347, the released code.
    """
    clipped = old + jnp.clip(V - old, -clip, clip)
    return 0.5 * jnp.maximum((V - target) ** 2, (clipped - target) ** 2)


def critic(
    *,
    width: int = 128,
    optimizer: optax.GradientTransformation | None = None,
    clip: float = 0.2,
    steps: int = 4,
    features: Callable[..., Array] = states,
) -> Callable:
    """Annotator of the signal `token_value` [N, R, T]: a learned value before each policy token.

    A config has `signals={"critic": signals.critic()}`. The signal is 0 on tokens that the policy
    did not sample.

    The head is fitted to the column `target` of an estimator with a critic (`credit.ppo` and
    others) by `value_loss` over the policy's tokens. No gradient reaches the policy. The signal
    costs two forward passes of the policy a step: one for the values, one for the update. An
    update with a non-finite gradient is skipped, and without a column `target` the head is not
    trained. Logged: `loss` (before the first of the `steps`) and `explained_variance`.

    Args:
        width: int >= 0, size of the head's hidden layer; 0 for a linear head.
        optimizer: optax transformation; None: adam with learning rate 1e-3.
        clip: float > 0, clip of `value_loss`.
        steps: int >= 1, full-batch optimizer steps per rollout, on one computation of the features.
        features: function (params, rollout, cfg, S) -> [N, R, S, cfg.width] of the head's inputs.

    Returns:
        An entry for `signals` of an experiment.
    """
    head, optimizer = Head(width), optimizer or optax.adam(1e-3)

    def values(weights, hidden) -> Array:
        V = head.apply(weights, hidden)
        assert isinstance(V, jax.Array)  # not a pair: the head has no mutable variables
        return V

    def make(cfg, logprob) -> Learned:
        def inputs(params, rollout):
            S = jax.eval_shape(logprob, params, rollout)["logp"].shape[-1]
            return jax.lax.stop_gradient(features(params, rollout, cfg, S)).astype(jnp.float32)

        def init(key, params):
            weights = head.init(key, jnp.zeros((1, cfg.width)))
            return {"params": weights, "opt_state": optimizer.init(weights)}

        @jax.jit
        def measure(weights, params, rollout):
            return at_response(values(weights, inputs(params, rollout)), rollout)

        @jax.jit
        def fit(aux, params, rollout, columns):
            hidden = inputs(params, rollout)
            S = hidden.shape[2]
            mask = rollout.action_mask[..., -S:]
            old, target = (
                jnp.where(mask, x[..., -S:], 0) for x in (rollout["token_value"], columns["target"])
            )
            count = mask.sum(dtype=jnp.float32)

            def loss(weights):
                token_loss = value_loss(values(weights, hidden), old, target, clip=clip)
                return divide(jnp.sum(jnp.where(mask, token_loss, 0)), count)

            def step(aux, _):
                value, gradient = jax.value_and_grad(loss)(aux["params"])
                change, opt_state = optimizer.update(gradient, aux["opt_state"], aux["params"])
                new = {"params": optax.apply_updates(aux["params"], change), "opt_state": opt_state}
                finite = jnp.isfinite(optax.tree.norm(gradient))
                return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, aux), value

            new, losses = jax.lax.scan(step, aux, length=steps)
            if cfg.layout is not None:  # on a mesh every device holds the whole critic
                new = jax.tree.map(lambda x: cfg.layout(x, *(None,) * x.ndim), new)

            def variance(x):
                mean = divide(jnp.sum(jnp.where(mask, x, 0)), count)
                return divide(jnp.sum(jnp.where(mask, (x - mean) ** 2, 0)), count)

            target_variance = variance(target)
            explained = target_variance - variance(target - old)
            return new, {
                "loss": losses[0],
                "explained_variance": divide(explained, target_variance),
            }

        def update(aux, state, rollout, columns):
            if "target" not in columns:  # the estimator has no critic
                return aux, {}
            return fit(aux, state.params, rollout.filled(), columns)

        def annotate(aux, state, rollout, metas):
            return rollout.with_signals(
                token_value=measure(aux["params"], state.params, rollout.filled())
            )

        return Learned(init, annotate, update)

    make.provides = ("token_value",)
    return make
