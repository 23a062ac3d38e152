"""Estimators of credit, one file each: `__all__` lists them, `per_group` and `per_batch` make your own. Nothing is registered."""

from jaxcredit.credit._lift import Columns as Columns
from jaxcredit.credit._lift import Credit as Credit
from jaxcredit.credit._lift import Estimator as Estimator
from jaxcredit.credit._lift import Method as Method
from jaxcredit.credit._lift import check_knobs as check_knobs
from jaxcredit.credit._lift import columns as columns
from jaxcredit.credit._lift import method_of as method_of
from jaxcredit.credit._lift import per_batch as per_batch
from jaxcredit.credit._lift import per_group as per_group
from jaxcredit.credit.a2tgpo import a2tgpo
from jaxcredit.credit.archer import archer
from jaxcredit.credit.attention_rhythm import attention_rhythm
from jaxcredit.credit.brpo import brpo
from jaxcredit.credit.calm import calm
from jaxcredit.credit.capo import capo
from jaxcredit.credit.clip_delta import clip_delta
from jaxcredit.credit.coma import coma
from jaxcredit.credit.difference_rewards import difference_rewards
from jaxcredit.credit.dr_grpo import dr_grpo
from jaxcredit.credit.dr_mas import dr_mas
from jaxcredit.credit.entropy_mask import entropy_mask
from jaxcredit.credit.epo import epo
from jaxcredit.credit.gdpo import gdpo
from jaxcredit.credit.gigpo import gigpo
from jaxcredit.credit.gpg import gpg
from jaxcredit.credit.grpo import grpo
from jaxcredit.credit.gtalign import gtalign
from jaxcredit.credit.hae import hae
from jaxcredit.credit.hgpo import hgpo
from jaxcredit.credit.hicra import hicra
from jaxcredit.credit.igpo import igpo
from jaxcredit.credit.interventions import interventions
from jaxcredit.credit.lare import lare
from jaxcredit.credit.ma_rlhf import ma_rlhf
from jaxcredit.credit.malt import malt
from jaxcredit.credit.mars import mars
from jaxcredit.credit.mars2 import mars2
from jaxcredit.credit.masked_gae import masked_gae
from jaxcredit.credit.matchtir import matchtir
from jaxcredit.credit.oni import oni
from jaxcredit.credit.opo import opo
from jaxcredit.credit.oprl import oprl
from jaxcredit.credit.otb import otb
from jaxcredit.credit.passk import passk
from jaxcredit.credit.poad import poad
from jaxcredit.credit.pooled import pooled
from jaxcredit.credit.potential_shaping import potential_shaping
from jaxcredit.credit.ppo import ppo
from jaxcredit.credit.pppo import pppo
from jaxcredit.credit.prime import prime
from jaxcredit.credit.pure import pure
from jaxcredit.credit.qmix import qmix
from jaxcredit.credit.r3l import r3l
from jaxcredit.credit.r_to_q_star import r_to_q_star
from jaxcredit.credit.reinforce_pp import reinforce_pp
from jaxcredit.credit.reinforce_pp_baseline import reinforce_pp_baseline
from jaxcredit.credit.remax import remax
from jaxcredit.credit.rloo import rloo
from jaxcredit.credit.rrd import rrd
from jaxcredit.credit.rudder import rudder
from jaxcredit.credit.san import san
from jaxcredit.credit.scrl import scrl
from jaxcredit.credit.search_r2 import search_r2
from jaxcredit.credit.shapley import shapley
from jaxcredit.credit.siop import siop
from jaxcredit.credit.slate import slate
from jaxcredit.credit.sotopia import sotopia
from jaxcredit.credit.spa import spa
from jaxcredit.credit.sploo import bold, l1, l1_bold, safe, sploo
from jaxcredit.credit.spo_chain import spo_chain
from jaxcredit.credit.spo_tree import spo_tree
from jaxcredit.credit.t_reg import t_reg
from jaxcredit.credit.tempo import tempo
from jaxcredit.credit.tp_grpo import tp_grpo
from jaxcredit.credit.tree_rl import tree_rl
from jaxcredit.credit.tree_rpo import tree_rpo
from jaxcredit.credit.treeps_rag import treeps_rag
from jaxcredit.credit.vapo import vapo
from jaxcredit.credit.vine import vine
from jaxcredit.credit.vsrm import vsrm

__all__ = [
    "a2tgpo",
    "archer",
    "attention_rhythm",
    "brpo",
    "calm",
    "capo",
    "clip_delta",
    "coma",
    "difference_rewards",
    "dr_grpo",
    "dr_mas",
    "entropy_mask",
    "epo",
    "gdpo",
    "gigpo",
    "gpg",
    "grpo",
    "gtalign",
    "hae",
    "hgpo",
    "hicra",
    "igpo",
    "interventions",
    "lare",
    "ma_rlhf",
    "malt",
    "mars",
    "mars2",
    "masked_gae",
    "matchtir",
    "oni",
    "opo",
    "oprl",
    "otb",
    "passk",
    "poad",
    "pooled",
    "potential_shaping",
    "ppo",
    "pppo",
    "prime",
    "pure",
    "qmix",
    "r3l",
    "r_to_q_star",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "remax",
    "rloo",
    "rrd",
    "rudder",
    "san",
    "scrl",
    "search_r2",
    "shapley",
    "siop",
    "slate",
    "sotopia",
    "spa",
    "sploo",
    "spo_chain",
    "spo_tree",
    "t_reg",
    "tempo",
    "tp_grpo",
    "tree_rl",
    "tree_rpo",
    "treeps_rag",
    "vapo",
    "vine",
    "vsrm",
]

PRESETS: dict[str, Credit] = {"sploo_safe": safe, "sploo_bold": bold, "sploo_l1": l1, "sploo_l1_bold": l1_bold}


def estimators() -> dict[str, Credit]:
    """All estimators by name, and the named settings of `PRESETS`: the names that `--credit` and the arena accept.

    >>> estimators()["sploo_l1"].keywords["lam"]
    1.0
    """
    return {name: globals()[name] for name in __all__} | PRESETS
