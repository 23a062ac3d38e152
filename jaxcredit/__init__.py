"""Credit assignment for reinforcement learning of language models, as pure JAX functions.

`credit` holds the estimators, `kernels` what they are made of, `losses` what is done with credit; `laws` says what every estimator obeys.
"""

from jaxcredit import credit, kernels, losses
from jaxcredit.credit import laws
from jaxcredit.rollout import SIGNALS, Rollout
from jaxcredit.utils import extras

extras.install()

__all__ = ["SIGNALS", "Rollout", "credit", "kernels", "laws", "losses"]
__version__ = "0.1.0"
