"""Policy objectives, one number per token. Their ratios are taken over the tokens that the policy chose."""

import functools

import jax
import jax.numpy as jnp

from jaxcredit.kernels import is_run_start
from jaxcredit.losses.base import Batch, Objective, PerToken, on_mask
from jaxcredit.losses.kl import log_ratio_to_reference


def reinforce(logp: PerToken, batch: Batch) -> PerToken:
    """-A log p, the likelihood-ratio gradient (Williams 1992)."""
    return on_mask(batch, -batch.advantage * on_mask(batch, logp))


def nll(logp: PerToken, batch: Batch) -> PerToken:
    """-log p: supervision of whatever has weight. The advantage is not looked at."""
    return on_mask(batch, -on_mask(batch, logp))


def ppo_clip(
    logp: PerToken, batch: Batch, *, low: float = 0.2, high: float = 0.2, dual: float | None = None
) -> PerToken:
    """max(-A rho, -A clip(rho, 1 - low c, 1 + high c)), rho = p / p_old, c = batch.clip; where A < 0 at most -A dual (dual > 1, often 3).

    arXiv 1707.06347; low < high is clip-higher, 2503.14476; dual clip is 1912.09729. The log-ratio is clamped to +-20.
    """
    return on_mask(batch, _clipped(jnp.exp(_log_ratio(logp, batch)), batch, low, high, dual))


def cispo(logp: PerToken, batch: Batch, *, low: float = 1.0, high: float = 0.28) -> PerToken:
    """-sg(clip(rho, 1 - low c, 1 + high c)) A log p: every token keeps a gradient, clipped only in size.

    arXiv 2506.13585, which bounds the ratio from above alone (low = 1) and leaves the number open.
    """
    rho = jnp.clip(jnp.exp(_log_ratio(logp, batch)), 1 - low * batch.clip, 1 + high * batch.clip)
    return on_mask(batch, -jax.lax.stop_gradient(rho) * batch.advantage * on_mask(batch, logp))


def gspo(logp: PerToken, batch: Batch, *, low: float = 3e-4, high: float = 4e-4) -> PerToken:
    """ppo_clip on s_t = sg(s) p_t / sg(p_t), s = exp(mean_t log rho_t) over the row's tokens, at most e^10. Meant for sequence_mean.

    arXiv 2507.18071, the token form (GSPO-token): the same gradient as the sequence form where a row has one advantage.
    """
    stop = jax.lax.stop_gradient
    mean = _row_mean(_log_ratio(logp, batch, bound=None), batch)
    own = on_mask(batch, logp)
    return on_mask(
        batch, _clipped(jnp.exp(jnp.minimum(own - stop(own) + stop(mean), 10.0)), batch, low, high)
    )


def turn_clip(logp: PerToken, batch: Batch, *, low: float = 0.2, high: float = 0.28) -> PerToken:
    """ppo_clip with one ratio a turn, rho = exp(mean over the turn's tokens of log p / p_old), held to its own width c = batch.clip.

    A2TGPO, arXiv 2605.06200; a turn is a segment of the row, and its tokens share one loss. The widths are not known to us for sure.
    Turns of one token give ppo_clip. Tokens outside any segment keep their own ratio.
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
    """-mean_t(A) exp(mean_t l_t), l_t = s min(s log rho, s clip(log rho, -low c, high c)), s = sign A; the same for all tokens of a row.

    arXiv 2507.20673: the geometric mean of the ratios, each clipped where it gains. Meant for sequence_mean.
    """
    log_rho, sign = _log_ratio(logp, batch), jnp.sign(batch.advantage)
    kept = sign * jnp.minimum(
        sign * log_rho, sign * jnp.clip(log_rho, -low * batch.clip, high * batch.clip)
    )
    return on_mask(batch, -_row_mean(batch.advantage, batch) * jnp.exp(_row_mean(kept, batch)))


def sapo(
    logp: PerToken, batch: Batch, *, positive: float = 1.0, negative: float = 1.05
) -> PerToken:
    """-A (4 / tau) sigmoid(tau (rho - 1)), tau by the sign of A: a soft gate in the clip's place, of slope 1 at rho = 1.

    arXiv 2511.20347.
    """
    tau = jnp.where(batch.advantage > 0, positive, negative)
    gate = 4 / tau * jax.nn.sigmoid(tau * (jnp.exp(_log_ratio(logp, batch)) - 1))
    return on_mask(batch, -batch.advantage * gate)


def distill(logp: PerToken, batch: Batch) -> PerToken:
    """rho sg(log p - log p_teacher), rho = p / p_old: sampled by the student, its gradient is that of KL(p || p_teacher).

    On-policy distillation; the teacher's log-probabilities are `ref_logp`. The advantage is not looked at.
    """
    return on_mask(
        batch,
        jnp.exp(_log_ratio(logp, batch))
        * jax.lax.stop_gradient(-log_ratio_to_reference(logp, batch)),
    )


def scope(logp: PerToken, batch: Batch) -> PerToken:
    """-rho on right answers (advantage > 0), `distill` on the others: imitate oneself or be corrected. Meant for sequence_sum.

    SCOPE, arXiv 2604.10688. The trajectory's weight (`kernels.two_path_weights`) comes as batch.weight.
    """
    return jnp.where(
        batch.advantage > 0, on_mask(batch, -jnp.exp(_log_ratio(logp, batch))), distill(logp, batch)
    )


def truncated_importance(
    objective: Objective, *, cap: float = 2.0, sequence: bool = False
) -> Objective:
    """The objective times sg(min(exp(log p_trainer - log p_sampler), cap)): they may compute with different numerics, or one be older.

    Per token, or with the row's whole log-ratio (`sequence`), which alone corrects for what an older sampler wrote before and after.
    p_trainer is the old policy, batch.logp, so that w = 1 where the two agree, also after several optimizer steps. The rule is verl's
    rollout correction; the cap of 2 is its common value.
    """

    def weighted(logp: PerToken, batch: Batch, **knobs) -> PerToken:
        if batch.sampler_logp is None:
            raise ValueError(
                "truncated_importance needs the sampler's log-probabilities: pass sampler_logp=rollout.logp to the Batch"
            )
        gap = on_mask(batch, batch.logp) - on_mask(batch, batch.sampler_logp)
        gap = jnp.sum(gap, -1, keepdims=True) if sequence else gap
        factor = jnp.minimum(jnp.exp(jnp.clip(gap, -20.0, 20.0)), cap)
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
    """The mean over the tokens of the same segment of the row, whose tokens follow each other but for holes."""
    inside = batch.action_mask & (batch.segment >= 0)
    turn = jnp.maximum(
        jnp.cumsum(is_run_start(batch.segment, inside), -1) - 1, 0
    )  # the turns of a row, numbered without gaps
    S = x.shape[-1]

    def mean(x, inside, turn):
        total = jax.ops.segment_sum(jnp.where(inside, x, 0), turn, S)
        return (total / jnp.maximum(jax.ops.segment_sum(inside.astype(x.dtype), turn, S), 1))[turn]

    return jnp.where(inside, jax.vmap(jax.vmap(mean))(x, inside, turn), x)


def _clipped(rho, batch, low, high, dual=None):
    A = batch.advantage
    loss = jnp.maximum(-A * rho, -A * jnp.clip(rho, 1 - low * batch.clip, 1 + high * batch.clip))
    return loss if dual is None else jnp.where(A < 0, jnp.minimum(loss, -A * dual), loss)
