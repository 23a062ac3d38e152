from functools import partial

import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import map_turns, rounding_bound, standardize, to_tokens, utterance_rewards
from jaxcredit.kernels.redistribution import UtteranceForm
from jaxcredit.rollout import Rollout


@per_batch(
    needs=("attribution", "score"),
    paper="2508.03905",
    fidelity="code",
    granularity="turn",
    family="turns",
    cost="a judge's mark of each utterance in each dimension",
)
def sotopia(
    batch: Rollout,
    *,
    form: UtteranceForm = "scaled",
    decay: float = 0.9,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Utterance's share of the episode's scores, normalized over the group's same turn number.

        A_ik = (r_ik - mean_i r_ik) / (std_i r_ik + eps)
        r_ik = 10 mean_d (x_ikd - min_d) / (max_d - min_d),   x_ikd = a_ikd / 3 G_id

    G_id is the episode's score in dimension d, and a_ikd a judge's mark of utterance k's part in
    it. The minimum and maximum of a dimension are over the batch; a dimension in which they are
    equal counts 0. The mean and the deviation are over the group's trajectories with a turn k.

    Signals: attribution [N, G, K, D], the marks a, 0 to 3, or -1 for harm; score [N, G, D], G. The
    rollout's own reward is not used.

    Args:
        form: how x shares the scores, see `jaxcredit.kernels.utterance_rewards`: "scaled" is the
            above.
        decay: float in (0, 1], for form="discount": share of an utterance relative to the next one.
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of an utterance.

    Raises:
        ValueError: `form` is not one of its values.

    Departs from released code: the code fits a reward model to r, samples answers to one turn at a
    time and normalizes their predicted rewards. Here the peers of an utterance are the same turns
    of other trajectories, and the extremes are over the batch instead of the data set.

    Source: Sotopia-RL, arXiv 2508.03905, and its released code (r).
    """
    share = partial(utterance_rewards, form=form, decay=decay)
    x = jax.vmap(share)(batch["attribution"], batch["score"], batch.segment_mask)
    turns, axes = batch.segment_mask[..., None], (0, 1, 2)
    low = jnp.min(x, axes, where=turns, initial=jnp.inf)
    high = jnp.max(x, axes, where=turns, initial=-jnp.inf)
    unequal = high - low > rounding_bound(jnp.maximum(jnp.abs(low), jnp.abs(high)))
    scaled = jnp.where(turns & unequal, (x - low) / jnp.where(unequal, high - low, 1), 0)
    r = 10 * scaled.mean(-1)
    normalize = partial(map_turns, partial(standardize, ddof=ddof, eps=eps))
    return jax.vmap(to_tokens)(jax.vmap(normalize)(r, batch.segment_mask), batch)
