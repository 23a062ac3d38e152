from functools import partial

import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import map_turns, rounding, standardize, to_tokens, utterance_rewards
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
    """Each utterance earns its share of the episode's scores, in several dimensions; against the group's utterances of the same turn.

        A_ik = z_k(r_ik),   r_ik = 10 mean_d (x_ikd - min_d) / (max_d - min_d),   x_ikd = a_ikd / 3 G_id

    Sotopia-RL, arXiv 2508.03905, and its released code. Signals: attribution (a, marks 0 to 3, -1 for harm), score (G). `form` is how x
    shares G, see kernels.utterance_rewards: scaled normalised progress discount uniform key. Extremes are taken over the batch (there,
    the data set); equal ones give 0. There a reward model learns r and answers are sampled for one turn at a time: that the peers of an
    utterance are the same turn of other trajectories is our design.
    """
    x = jax.vmap(partial(utterance_rewards, form=form, decay=decay))(
        batch["attribution"], batch["score"], batch.segment_mask
    )
    real = batch.segment_mask[..., None]
    low, high = (
        f(x, (0, 1, 2), where=real, initial=i) for f, i in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))
    )
    differ = high - low > rounding(jnp.maximum(jnp.abs(low), jnp.abs(high)))
    r = 10 * jnp.where(real & differ, (x - low) / jnp.where(differ, high - low, 1), 0).mean(-1)
    A = jax.vmap(partial(map_turns, partial(standardize, ddof=ddof, eps=eps)))(
        r, batch.segment_mask
    )
    return jax.vmap(to_tokens)(A, batch)
