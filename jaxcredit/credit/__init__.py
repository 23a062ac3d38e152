"""Estimators of token-level credit, one file each, and the decorators `per_group` and `per_batch`.

    advantage = credit.grpo(rollout)                      # [N, R, T]
    advantage = credit.tempo(rollout, gate=2)             # a knob
    columns = credit.columns(credit.ppo(rollout), rollout)  # advantage, weight, clip, target

The first argument of an estimator is a `Rollout` of N prompts. Axes in the docstrings: N prompts,
R rows, T tokens, G trajectories, K segments. `__all__` lists the estimators; none needs to be
registered.
"""

from jaxcredit.credit.agents.coma import coma
from jaxcredit.credit.agents.difference_rewards import difference_rewards
from jaxcredit.credit.agents.dr_mas import dr_mas
from jaxcredit.credit.agents.qmix import qmix
from jaxcredit.credit.agents.shapley import shapley
from jaxcredit.credit.baselines.dr_grpo import dr_grpo
from jaxcredit.credit.baselines.gdpo import gdpo
from jaxcredit.credit.baselines.gpg import gpg
from jaxcredit.credit.baselines.grpo import grpo
from jaxcredit.credit.baselines.gtalign import gtalign
from jaxcredit.credit.baselines.opo import opo
from jaxcredit.credit.baselines.passk import passk
from jaxcredit.credit.baselines.reinforce_pp import reinforce_pp
from jaxcredit.credit.baselines.reinforce_pp_baseline import reinforce_pp_baseline
from jaxcredit.credit.baselines.remax import remax
from jaxcredit.credit.baselines.rloo import rloo
from jaxcredit.credit.baselines.san import san
from jaxcredit.credit.baselines.search_r2 import search_r2
from jaxcredit.credit.critics.archer import archer
from jaxcredit.credit.critics.hae import hae
from jaxcredit.credit.critics.ma_rlhf import ma_rlhf
from jaxcredit.credit.critics.masked_gae import masked_gae
from jaxcredit.credit.critics.poad import poad
from jaxcredit.credit.critics.ppo import ppo
from jaxcredit.credit.critics.spa import spa
from jaxcredit.credit.critics.vapo import vapo
from jaxcredit.credit.lift import Columns as Columns
from jaxcredit.credit.lift import Credit as Credit
from jaxcredit.credit.lift import Estimator as Estimator
from jaxcredit.credit.lift import Method as Method
from jaxcredit.credit.lift import check_knobs as check_knobs
from jaxcredit.credit.lift import columns as columns
from jaxcredit.credit.lift import method_of as method_of
from jaxcredit.credit.lift import per_batch as per_batch
from jaxcredit.credit.lift import per_group as per_group
from jaxcredit.credit.steps.brpo import brpo
from jaxcredit.credit.steps.calm import calm
from jaxcredit.credit.steps.capo import capo
from jaxcredit.credit.steps.clip_delta import clip_delta
from jaxcredit.credit.steps.interventions import interventions
from jaxcredit.credit.steps.lare import lare
from jaxcredit.credit.steps.oni import oni
from jaxcredit.credit.steps.oprl import oprl
from jaxcredit.credit.steps.potential_shaping import potential_shaping
from jaxcredit.credit.steps.pure import pure
from jaxcredit.credit.steps.rrd import rrd
from jaxcredit.credit.steps.rudder import rudder
from jaxcredit.credit.steps.scrl import scrl
from jaxcredit.credit.steps.tp_grpo import tp_grpo
from jaxcredit.credit.steps.vsrm import vsrm
from jaxcredit.credit.tokens.attention_rhythm import attention_rhythm
from jaxcredit.credit.tokens.entropy_mask import entropy_mask
from jaxcredit.credit.tokens.hicra import hicra
from jaxcredit.credit.tokens.otb import otb
from jaxcredit.credit.tokens.pooled import pooled
from jaxcredit.credit.tokens.pppo import pppo
from jaxcredit.credit.tokens.prime import prime
from jaxcredit.credit.tokens.r_to_q_star import r_to_q_star
from jaxcredit.credit.tokens.t_reg import t_reg
from jaxcredit.credit.trees.malt import malt
from jaxcredit.credit.trees.mars2 import mars2
from jaxcredit.credit.trees.slate import slate
from jaxcredit.credit.trees.sploo import bold, l1, l1_bold, safe, sploo
from jaxcredit.credit.trees.spo_chain import spo_chain
from jaxcredit.credit.trees.spo_tree import spo_tree
from jaxcredit.credit.trees.tempo import tempo
from jaxcredit.credit.trees.tree_rl import tree_rl
from jaxcredit.credit.trees.tree_rpo import tree_rpo
from jaxcredit.credit.trees.treeps_rag import treeps_rag
from jaxcredit.credit.trees.vine import vine
from jaxcredit.credit.turns.a2tgpo import a2tgpo
from jaxcredit.credit.turns.epo import epo
from jaxcredit.credit.turns.gigpo import gigpo
from jaxcredit.credit.turns.hgpo import hgpo
from jaxcredit.credit.turns.igpo import igpo
from jaxcredit.credit.turns.mars import mars
from jaxcredit.credit.turns.matchtir import matchtir
from jaxcredit.credit.turns.r3l import r3l
from jaxcredit.credit.turns.siop import siop
from jaxcredit.credit.turns.sotopia import sotopia

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

# Estimators with other defaults, by name.
PRESETS: dict[str, Credit] = {
    "sploo_safe": safe,
    "sploo_bold": bold,
    "sploo_l1": l1,
    "sploo_l1_bold": l1_bold,
}


def estimators() -> dict[str, Credit]:
    """All estimators and the presets in `PRESETS`, by name.

    `--credit` and the arena accept these names.

    >>> estimators()["sploo_l1"].keywords["lam"]
    1.0
    """
    return {name: globals()[name] for name in __all__} | PRESETS
