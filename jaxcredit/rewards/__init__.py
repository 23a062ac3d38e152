"""Reward functions of the literature: plain functions of texts, tool calls and judgments.

They are building blocks for the reward function of a `Task`. `trust_grpo`, `trace` and
`adaptive_thinking` take all answers to a prompt at once. Module `oni` has rewards that are learned
from a judge.
"""

from jaxcredit.rewards.length import near_budget, overlong, train_long_think_short
from jaxcredit.rewards.question_answering.adasearch import (
    adasearch_answer,
    adasearch_decision,
    decision_f1,
    knows,
)
from jaxcredit.rewards.question_answering.kg_path import distinct_share, kg_path, path_coverage
from jaxcredit.rewards.question_answering.re_searcher import re_searcher, re_searcher_turns
from jaxcredit.rewards.question_answering.reseek import ideal_judgments, reseek, useful_results
from jaxcredit.rewards.question_answering.search_r1 import retrieved, search_r1, well_formed
from jaxcredit.rewards.reasoning.adaptive_thinking import adaptive_thinking, preferred_mode
from jaxcredit.rewards.reasoning.gtalign import (
    gtalign,
    gtalign_read,
    gtalign_utilities,
    length_window,
    payoff_reward,
)
from jaxcredit.rewards.reasoning.trust import trust, trust_grpo
from jaxcredit.rewards.text import blocks, exact_match, jaccard, normalized, set_f1
from jaxcredit.rewards.tool_use.matchtir import call_score, match_rewards, match_scores, matchtir
from jaxcredit.rewards.tool_use.opagent import browser_step, normalized_process, opagent
from jaxcredit.rewards.tool_use.toolrl import parse_calls, toolrl, toolrl_calls, toolrl_format
from jaxcredit.rewards.tool_use.trace import Attempt, cost_aware_score, trace

__all__ = [
    "Attempt",
    "adaptive_thinking",
    "adasearch_answer",
    "adasearch_decision",
    "blocks",
    "browser_step",
    "call_score",
    "cost_aware_score",
    "decision_f1",
    "distinct_share",
    "exact_match",
    "gtalign",
    "gtalign_read",
    "gtalign_utilities",
    "ideal_judgments",
    "jaccard",
    "kg_path",
    "knows",
    "length_window",
    "match_rewards",
    "match_scores",
    "matchtir",
    "near_budget",
    "normalized",
    "normalized_process",
    "opagent",
    "overlong",
    "parse_calls",
    "path_coverage",
    "payoff_reward",
    "preferred_mode",
    "re_searcher",
    "re_searcher_turns",
    "reseek",
    "retrieved",
    "search_r1",
    "set_f1",
    "toolrl",
    "toolrl_calls",
    "toolrl_format",
    "trace",
    "train_long_think_short",
    "trust",
    "trust_grpo",
    "useful_results",
    "well_formed",
]
