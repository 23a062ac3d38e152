import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import at_branches, branches, common_prefix, shared_with, standardize, std_by
from jaxcredit.rollout import FilledRollout, outcome, trajectory_mask


@per_group(
    paper="2509.18314",
    fidelity="paper",
    granularity="token",
    family="trees",
    affine=True,
    reduces_to="grpo with gate=2 and no shared prefixes",
)
def tempo(group: FilledRollout, *, gate: int = 1, ddof: int = 0, eps: float = 1e-6):
    """GRPO, and at each token where the group's answers part, the change of the mean reward of those that share the prefix.

        A_it = [(R_i - mean R) + V_i,t+1 - V_it] / (std R + eps),   V_it = mean {R_j : y_j[:t] = y_i[:t]}

    Exploiting tree structure (TEMPO), arXiv 2509.18314. The change acts only where at least `gate` trajectories share y_i[:t+1];
    gate=1 is the paper, where a token that nobody shares gets the outcome twice. Prompt, tool tokens and the end all belong to the
    prefix; where answers part at a token the policy did not choose, that change is credited to nobody. The paper leaves ddof open.
    """
    R, real, row, valid = outcome(group), trajectory_mask(group), group.row, group.token_mask
    shared = shared_with(common_prefix(group.tokens, valid), row, R.shape[0])
    change, sharing = branches(shared, row, R, where=real)
    std = std_by(R, where=real, ddof=ddof)[row][:, None]
    change = jnp.where((sharing >= gate) & (std > 0), change / jnp.where(std > 0, std + eps, 1), 0)
    return at_branches(
        standardize(R, where=real, ddof=ddof, eps=eps)[row], shared, change, group.tokens.shape[1]
    )
