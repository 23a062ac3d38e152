import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import returns_to_go, to_tokens
from jaxcredit.rollout import FilledRollout


@per_group(
    needs=("prob_square",),
    paper="2602.07078",
    fidelity="code",
    granularity="token",
    family="tokens",
)
def otb(group: FilledRollout, *, zero_tail: bool = False, eps: float = 1e-8):
    """The return of each token against the baseline of least variance at its step.

        A_it = G_it - sum_j G_jt W_jt / sum_j W_jt,   W_it = sum_{s <= t} (1 - 2 pi_is + sum_v pi_isv^2),   over rows with a token there

    Optimal token baseline, as in verl. Signal: prob_square; pi of the chosen token is exp(logp). W is the squared score so far, if the
    logits are the parameters. A step is a column: rows of a group begin their answers in the same one. A row alone in its column has
    credit 0, as in the code, and with `zero_tail` its whole return. G_it is what its segment and later ones earn. eps is added to
    each W (the code adds it to their sum), so that where nothing was uncertain the baseline is the mean, and a group of one gets 0.
    """
    here = group.action_mask & (group.segment >= 0)
    G = to_tokens(returns_to_go(group.reward, where=group.segment_mask), group)
    w = jnp.where(here, jnp.maximum(1 - 2 * jnp.exp(group.logp) + group["prob_square"], 0), 0)
    before = (group.row[:, None] == group.row) & jnp.tri(
        len(group.row), k=-1, dtype=bool
    )  # earlier rows of the same trajectory
    W = jnp.where(
        here, jnp.cumsum(w, -1) + jnp.where(before, w.sum(-1), 0).sum(-1)[:, None] + eps, 0
    )
    peer = jnp.max(G, 0, where=here, initial=-jnp.inf)
    far = jnp.where(here, G - jnp.where(jnp.isfinite(peer), peer, 0), 0)
    A = far - (far * W).sum(0) / jnp.maximum(W.sum(0), eps)
    alone = zero_tail & (here.sum(0) == 1) & (here.any(1).sum() > 1)
    return jnp.where(here, jnp.where(alone, G, A), 0)
