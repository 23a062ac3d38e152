"""Every estimator, one file a method; `__all__` is the catalogue. Write your own with `per_group` or `per_batch`: nothing is registered."""

from jaxcredit.credit._lift import Columns as Columns
from jaxcredit.credit._lift import Credit as Credit
from jaxcredit.credit._lift import Method as Method
from jaxcredit.credit._lift import columns as columns
from jaxcredit.credit._lift import method_of as method_of
from jaxcredit.credit._lift import per_batch as per_batch
from jaxcredit.credit._lift import per_group as per_group
from jaxcredit.credit.coma import coma
from jaxcredit.credit.difference_rewards import difference_rewards
from jaxcredit.credit.dr_grpo import dr_grpo
from jaxcredit.credit.dr_mas import dr_mas
from jaxcredit.credit.grpo import grpo
from jaxcredit.credit.gtalign import gtalign
from jaxcredit.credit.malt import malt
from jaxcredit.credit.mars import mars
from jaxcredit.credit.mars2 import mars2
from jaxcredit.credit.opo import opo
from jaxcredit.credit.ppo import ppo
from jaxcredit.credit.pure import pure
from jaxcredit.credit.qmix import qmix
from jaxcredit.credit.reinforce_pp import reinforce_pp
from jaxcredit.credit.remax import remax
from jaxcredit.credit.rloo import rloo
from jaxcredit.credit.san import san
from jaxcredit.credit.shapley import shapley
from jaxcredit.credit.slate import slate
from jaxcredit.credit.spo_chain import spo_chain
from jaxcredit.credit.spo_tree import spo_tree
from jaxcredit.credit.tempo import tempo
from jaxcredit.credit.tree_rl import tree_rl
from jaxcredit.credit.tree_rpo import tree_rpo
from jaxcredit.credit.treeps_rag import treeps_rag
from jaxcredit.credit.vine import vine

__all__ = [
    "coma",
    "difference_rewards",
    "dr_grpo",
    "dr_mas",
    "grpo",
    "gtalign",
    "malt",
    "mars",
    "mars2",
    "opo",
    "ppo",
    "pure",
    "qmix",
    "reinforce_pp",
    "remax",
    "rloo",
    "san",
    "shapley",
    "slate",
    "spo_chain",
    "spo_tree",
    "tempo",
    "tree_rl",
    "tree_rpo",
    "treeps_rag",
    "vine",
]
