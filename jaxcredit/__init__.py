"""Credit assignment for reinforcement learning of language models, as pure JAX functions.

An estimator turns a `Rollout` (tokens, masks, rewards, signals) into an advantage for every token:

    >>> from jaxcredit.rollout.synthetic import synthetic
    >>> rollout = synthetic(0, N=2, R=4)  # 2 prompts, 4 random answers each
    >>> credit.grpo(rollout).shape == rollout.tokens.shape
    True

The library needs jax, jaxtyping and numpy, works under `jax.jit` and `jax.vmap`, and fits any
trainer:

    Rollout   trajectories of N prompts, with rewards and signals
    SIGNALS   table of the named arrays that a rollout may carry: axes and meaning
    credit    estimators of credit (grpo, rloo, ppo, tempo, ...); `credit.per_group` makes more
    kernels   the functions of arrays of which estimators are made: returns, baselines, GAE, trees
    losses    policy objectives, aggregates and KL estimators that use the advantages
    laws      properties that every estimator satisfies, to test one of your own

A small trainer is in `jaxcredit.train`, with `jaxcredit.tasks`, `jaxcredit.policy` and
`jaxcredit.signals`; the command `jaxcredit` runs it.
"""

from jaxcredit import credit, kernels, losses
from jaxcredit.credit import laws
from jaxcredit.rollout import SIGNALS, Rollout
from jaxcredit.utils import extras

extras.install()

__all__ = ["SIGNALS", "Rollout", "credit", "kernels", "laws", "losses"]
__version__ = "0.1.0"
