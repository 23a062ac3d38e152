"""Policy objectives: losses of single tokens, to be minimized.

Notation: A = batch.advantage, p = exp(logp), p_old = exp(batch.logp), rho = p / p_old,
c = batch.clip, sg = stop_gradient. Every objective takes `logp` [N, R, S] and a `Batch` and returns
[N, R, S], exactly 0 off the action mask. Log-ratios are limited to +-20 before exp unless a
docstring says otherwise.
"""

import functools

import jax
import jax.numpy as jnp

from jaxcredit.kernels import is_run_start
from jaxcredit.losses.base import Batch, Objective, PerToken, on_mask
from jaxcredit.losses.kl import log_ratio_to_reference


def reinforce(logp: PerToken, batch: Batch) -> PerToken:
    """Likelihood-ratio objective: -A log p (Williams 1992).

    Args:
        logp: [N, R, S] log-probability under the policy.
        batch: batch with advantages.

    Returns:
        [N, R, S] losses.
    """
    return on_mask(batch, -batch.advantage * on_mask(batch, logp))


def nll(logp: PerToken, batch: Batch) -> PerToken:
    """Negative log-likelihood -log p, for supervised training. Ignores the advantage.

    Args:
        logp: [N, R, S] log-probability under the policy.
        batch: batch; its weights select the tokens.

    Returns:
        [N, R, S] losses.
    """
    return on_mask(batch, -on_mask(batch, logp))


def ppo_clip(
    logp: PerToken, batch: Batch, *, low: float = 0.2, high: float = 0.2, dual: float | None = None
) -> PerToken:
    """Clipped surrogate objective of PPO, with separate bounds and optional dual clip.

        max(-A rho, -A clip(rho, 1 - low c, 1 + high c)),   at most -A dual where A < 0

    Sources: arXiv 1707.06347; low < high is clip-higher, DAPO, 2503.14476; dual clip, 1912.09729.

    Args:
        logp: [N, R, S] log-probability under the policy.
        batch: batch with advantages and old log-probabilities.
        low: width of the clip range below 1, in [0, 1].
        high: width of the clip range above 1, >= 0.
        dual: bound of the ratio for negative advantages, > 1, often 3. None: no bound.

    Returns:
        [N, R, S] losses.
    """
    return on_mask(batch, _clipped(jnp.exp(_log_ratio(logp, batch)), batch, low, high, dual))


def cispo(logp: PerToken, batch: Batch, *, low: float = 1.0, high: float = 0.28) -> PerToken:
    """Clipped importance weights on REINFORCE: every token keeps a gradient of limited size.

        -sg(clip(rho, 1 - low c, 1 + high c)) A log p

    Source: CISPO, arXiv 2506.13585, which bounds the ratio from above alone (low = 1) and does not
    give the number.

    Args:
        logp: [N, R, S] log-probability under the policy.
        batch: batch with advantages and old log-probabilities.
        low: width of the clip range below 1.
        high: width of the clip range above 1.

    Returns:
        [N, R, S] losses.
    """
    rho = jnp.clip(jnp.exp(_log_ratio(logp, batch)), 1 - low * batch.clip, 1 + high * batch.clip)
    return on_mask(batch, -jax.lax.stop_gradient(rho) * batch.advantage * on_mask(batch, logp))


def gspo(logp: PerToken, batch: Batch, *, low: float = 3e-4, high: float = 4e-4) -> PerToken:
    """Clipped surrogate objective with one ratio per row, in its token form (GSPO-token).

        ppo_clip on s_t = sg(s) p_t / sg(p_t),   s = exp(mean_t log rho_t), at most e^10

    The mean runs over the row's sampled tokens. If a row has one advantage, the gradient is that of
    the sequence form. Meant for `sequence_mean`. Source: arXiv 2507.18071.

    Args:
        logp: [N, R, S] log-probability under the policy.
        batch: batch with advantages and old log-probabilities.
        low: width of the clip range below 1.
        high: width of the clip range above 1.

    Returns:
        [N, R, S] losses.
    """
    stop = jax.lax.stop_gradient
    mean = _row_mean(_log_ratio(logp, batch, bound=None), batch)
    own = on_mask(batch, logp)
    return on_mask(
        batch, _clipped(jnp.exp(jnp.minimum(own - stop(own) + stop(mean), 10.0)), batch, low, high)
    )


def turn_clip(logp: PerToken, batch: Batch, *, low: float = 0.2, high: float = 0.28) -> PerToken:
    """Clipped surrogate objective with one ratio per turn (A2TGPO).

        ppo_clip on rho = exp(mean over the turn's tokens of log p / p_old)

    A turn is a segment of the row, clipped in its own range by c. Tokens outside any segment keep
    their own ratio. Source: arXiv 2605.06200; the default widths are ours, the paper's are not
    certain.

    Args:
        logp: [N, R, S] log-probability under the policy.
        batch: batch with advantages, old log-probabilities and segments.
        low: width of the clip range below 1.
        high: width of the clip range above 1.

    Returns:
        [N, R, S] losses.
    """
    return on_mask(
        batch,
        _clipped(
            jnp.exp(jnp.clip(_turn_mean(_log_ratio(logp, batch, bound=None), batch), -20.0, 20.0)),
            batch,
            low,
            high,
        ),
    )


def gmpo(logp: PerToken, batch: Batch, *, low: float = 0.4, high: float = 0.4) -> PerToken:
    """Geometric-mean policy optimization: geometric mean of a row's clipped ratios.

        -mean_t(A) exp(mean_t l_t),   l_t = s min(s log rho, s clip(log rho, -low c, high c)),   s =
        sign A

    All tokens of a row have the same loss. Meant for `sequence_mean`. Source: arXiv 2507.20673.

    Args:
        logp: [N, R, S] log-probability under the policy.
        batch: batch with advantages and old log-probabilities.
        low: width of the clip range of the log-ratio below 0.
        high: width of the clip range of the log-ratio above 0.

    Returns:
        [N, R, S] losses.
    """
    log_rho, sign = _log_ratio(logp, batch), jnp.sign(batch.advantage)
    clipped = sign * jnp.minimum(
        sign * log_rho, sign * jnp.clip(log_rho, -low * batch.clip, high * batch.clip)
    )
    return on_mask(batch, -_row_mean(batch.advantage, batch) * jnp.exp(_row_mean(clipped, batch)))


def sapo(
    logp: PerToken, batch: Batch, *, positive: float = 1.0, negative: float = 1.05
) -> PerToken:
    """Soft adaptive policy optimization: a sigmoid gate of slope 1 at rho = 1 instead of the clip.

        -A (4 / tau) sigmoid(tau (rho - 1)),   tau by the sign of A

    Source: arXiv 2511.20347.

    Args:
        logp: [N, R, S] log-probability under the policy.
        batch: batch with advantages and old log-probabilities.
        positive: tau of tokens with A > 0.
        negative: tau of the other tokens.

    Returns:
        [N, R, S] losses.
    """
    tau = jnp.where(batch.advantage > 0, positive, negative)
    gate = 4 / tau * jax.nn.sigmoid(tau * (jnp.exp(_log_ratio(logp, batch)) - 1))
    return on_mask(batch, -batch.advantage * gate)


def distill(logp: PerToken, batch: Batch) -> PerToken:
    """On-policy distillation: the gradient of KL(p || p_teacher), from the student's own tokens.

        rho sg(log p - log p_teacher)

    Ignores the advantage.

    Args:
        logp: [N, R, S] log-probability under the student.
        batch: batch with old log-probabilities; `ref_logp` has those of the teacher.

    Returns:
        [N, R, S] losses.

    Raises:
        ValueError: the batch has no `ref_logp`.
    """
    return on_mask(
        batch,
        jnp.exp(_log_ratio(logp, batch))
        * jax.lax.stop_gradient(-log_ratio_to_reference(logp, batch)),
    )


def scope(logp: PerToken, batch: Batch) -> PerToken:
    """Imitation of right answers and distillation of wrong ones.

        -rho where A > 0, else `distill`

    Meant for `sequence_sum`, with `kernels.two_path_weights` as weights. Source: SCOPE, arXiv
    2604.10688.

    Args:
        logp: [N, R, S] log-probability under the student.
        batch: batch; `ref_logp` has the log-probabilities of the teacher.

    Returns:
        [N, R, S] losses.

    Raises:
        ValueError: the batch has no `ref_logp`.
    """
    return jnp.where(
        batch.advantage > 0, on_mask(batch, -jnp.exp(_log_ratio(logp, batch))), distill(logp, batch)
    )


def truncated_importance(
    objective: Objective, *, cap: float = 2.0, sequence: bool = False
) -> Objective:
    """Objective with truncated importance weights, for a sampler that differs from the trainer.

        sg(min(exp(log p_old - log p_sampler), cap)) objective

    The two differ by their numerics, or because the sampler is older. p_old is the policy before
    the first update on the rollout, so the weight stays the same over several optimizer steps. The
    rule is verl's rollout correction; the cap of 2 is its common value.

    Args:
        objective: the objective to correct.
        cap: largest weight, >= 1.
        sequence: True: sum the log-ratios of the row's sampled tokens, which also corrects for the
            tokens before and after. False: each token has its own.

    Returns:
        An objective. It raises a ValueError for a batch without `sampler_logp`.
    """

    def weighted(logp: PerToken, batch: Batch, **knobs) -> PerToken:
        if batch.sampler_logp is None:
            raise ValueError(
                "truncated_importance needs the sampler's log-probabilities: "
                "pass sampler_logp=rollout.logp to the Batch"
            )
        log_ratio = on_mask(batch, batch.logp) - on_mask(batch, batch.sampler_logp)
        log_ratio = jnp.sum(log_ratio, -1, keepdims=True) if sequence else log_ratio
        factor = jnp.minimum(jnp.exp(jnp.clip(log_ratio, -20.0, 20.0)), cap)
        return jax.lax.stop_gradient(factor) * objective(logp, batch, **knobs)

    return functools.update_wrapper(weighted, objective)


def _log_ratio(logp, batch, bound: float | None = 20.0):
    ratio = on_mask(batch, logp) - on_mask(batch, batch.logp)
    return ratio if bound is None else jnp.clip(ratio, -bound, bound)


def _row_mean(x, batch):
    x = on_mask(batch, x)
    count = jnp.sum(batch.action_mask, -1, keepdims=True, dtype=x.dtype)
    return jnp.sum(x, -1, keepdims=True) / jnp.maximum(count, 1)


def _turn_mean(x, batch):
    """Mean over the sampled tokens of the same segment of the row; x outside any segment."""
    inside = batch.action_mask & (batch.segment >= 0)
    # Turns of each row, numbered without gaps.
    turn = jnp.maximum(jnp.cumsum(is_run_start(batch.segment, inside), -1) - 1, 0)
    S = x.shape[-1]

    def mean(x, inside, turn):
        total = jax.ops.segment_sum(jnp.where(inside, x, 0), turn, S)
        return (total / jnp.maximum(jax.ops.segment_sum(inside.astype(x.dtype), turn, S), 1))[turn]

    return jnp.where(inside, jax.vmap(jax.vmap(mean))(x, inside, turn), x)


def _clipped(rho, batch, low, high, dual=None):
    A = batch.advantage
    loss = jnp.maximum(-A * rho, -A * jnp.clip(rho, 1 - low * batch.clip, 1 + high * batch.clip))
    return loss if dual is None else jnp.where(A < 0, jnp.minimum(loss, -A * dual), loss)
