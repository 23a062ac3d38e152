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
    """Return to come, less the minimum-variance baseline of each token position.

        A_it = G_it - sum_j G_jt W_jt / sum_j W_jt,   over the rows j with a token at t
        W_it = sum_(s <= t) (1 - 2 pi_is + sum_v pi_isv^2)

    G_it is the reward of the token's segment and of later ones. W is the squared norm
    of the score up to t if the logits are the parameters. A position is a column of
    the rollout: rows of a group begin their answers in the same column.

    Signals: prob_square [N, R, T] (sum_v pi_v^2); pi of the chosen token is exp(logp).

    Args:
        zero_tail: bool. A token in a column where no other row has one gets 0 (False,
            released code), or its whole return, because its baseline is 0 (True).
        eps: float >= 0, added to each W. With no uncertainty the baseline is then the
            mean return.

    Returns:
        Advantage [N, R, T], one number a token. A group with one trajectory gets 0.

    Departs from released code: it adds eps to the sum of the W, not to each.

    Source: Optimal Token Baseline, arXiv 2602.07078, as in verl.
    """
    present = group.action_mask & (group.segment >= 0)
    G = to_tokens(returns_to_go(group.reward, where=group.segment_mask), group)
    w = jnp.where(present, jnp.maximum(1 - 2 * jnp.exp(group.logp) + group["prob_square"], 0), 0)
    same_trajectory = group.row[:, None] == group.row
    earlier_rows = same_trajectory & jnp.tri(len(group.row), k=-1, dtype=bool)
    W = jnp.where(
        present, jnp.cumsum(w, -1) + jnp.where(earlier_rows, w.sum(-1), 0).sum(-1)[:, None] + eps, 0
    )
    largest = jnp.max(G, 0, where=present, initial=-jnp.inf)
    centered = jnp.where(present, G - jnp.where(jnp.isfinite(largest), largest, 0), 0)
    A = centered - (centered * W).sum(0) / jnp.maximum(W.sum(0), eps)
    alone = zero_tail & (present.sum(0) == 1) & (present.any(1).sum() > 1)
    return jnp.where(present, jnp.where(alone, G, A), 0)
