"""Methods of the literature that are implemented as a label, reward, objective or schedule.

The catalogue lists them beside the estimators, whose metadata is in their decorators.
"""

from typing import NamedTuple


class OtherMethod(NamedTuple):
    """Catalogue entry of a method that is not an estimator.

    Attributes:
        location: dotted name below `jaxcredit`.
        title: one line on what it computes.
        paper: arXiv number.
        granularity: unit that it labels or rewards.
        family: "label", "reward", "objective", "distillation" or "schedule".
        fidelity: source of the formula, as `Method.fidelity`.
    """

    location: str
    title: str
    paper: str
    granularity: str
    family: str
    fidelity: str


OTHER_METHODS = (
    OtherMethod(
        "signals.tvm",
        "TVM labels: a prefix's value is the share of right answers that begin with it.",
        paper="2407.12863",
        granularity="token",
        family="label",
        fidelity="paper",
    ),
    OtherMethod(
        "signals.ovm",
        "OVM labels: each token's value is the outcome of its answer.",
        paper="2311.09724",
        granularity="token",
        family="label",
        fidelity="code",
    ),
    OtherMethod(
        "signals.grounded_prm",
        "GroundedPRM labels: tool verdicts and the outcome, backed up a search tree.",
        paper="2510.14942",
        granularity="step",
        family="label",
        fidelity="code",
    ),
    OtherMethod(
        "signals.budgets.knapsack",
        "Knapsack RL: number of answers to sample for each prompt.",
        paper="2509.25849",
        granularity="trajectory",
        family="schedule",
        fidelity="code",
    ),
    OtherMethod(
        "signals.schedules.length_budget",
        "Train Long, Think Short: a token budget that shrinks during training.",
        paper="2508.08940",
        granularity="trajectory",
        family="schedule",
        fidelity="paper",
    ),
    OtherMethod(
        "signals.schedules.noisy_documents",
        "ZeroSearch: share of simulated search results that are noise.",
        paper="2505.04588",
        granularity="turn",
        family="schedule",
        fidelity="paper",
    ),
    OtherMethod(
        "signals.exposure.controller_loss",
        "ATESD: share of the reference answer that the teacher sees (our design).",
        paper="2605.11458",
        granularity="token",
        family="schedule",
        fidelity="ours",
    ),
    OtherMethod(
        "signals.schedules.retention",
        "PPPO's share of trained tokens, raised when accuracy stops improving.",
        paper="2512.15274",
        granularity="token",
        family="schedule",
        fidelity="paper",
    ),
    OtherMethod(
        "rewards.toolrl",
        "ToolRL: format, and agreement of tool calls with the gold calls.",
        paper="2504.13958",
        granularity="trajectory",
        family="reward",
        fidelity="code",
    ),
    OtherMethod(
        "rewards.matchtir",
        "MatchTIR: tool calls matched to gold calls, turn by turn.",
        paper="2601.10712",
        granularity="turn",
        family="reward",
        fidelity="paper",
    ),
    OtherMethod(
        "rewards.kg_path",
        "Coverage of a knowledge-graph path by an answer.",
        paper="2601.15160",
        granularity="trajectory",
        family="reward",
        fidelity="paper",
    ),
    OtherMethod(
        "rewards.trust_grpo",
        "SophiaVL-R1: thinking rewards weighted by their trustworthiness.",
        paper="2505.17018",
        granularity="trajectory",
        family="reward",
        fidelity="code",
    ),
    OtherMethod(
        "rewards.trace",
        "TRACE of HyperEyes: tool costs relative to the best known trajectory.",
        paper="2605.07177",
        granularity="trajectory",
        family="reward",
        fidelity="code",
    ),
    OtherMethod(
        "rewards.search_r1",
        "Search-R1: exact match, format and retrieval.",
        paper="2503.09516",
        granularity="trajectory",
        family="reward",
        fidelity="code",
    ),
    OtherMethod(
        "rewards.reseek",
        "ReSeek: judgments of retrieved passages (our design).",
        paper="2510.00568",
        granularity="turn",
        family="reward",
        fidelity="ours",
    ),
    OtherMethod(
        "rewards.re_searcher",
        "RE-Searcher: reflection on each search (our design).",
        paper="2509.26048",
        granularity="turn",
        family="reward",
        fidelity="ours",
    ),
    OtherMethod(
        "rewards.adasearch_decision",
        "AdaSearch: search exactly when the answer is not known (our design).",
        paper="2512.16883",
        granularity="trajectory",
        family="reward",
        fidelity="ours",
    ),
    OtherMethod(
        "rewards.opagent",
        "OpAgent: a rule tree over browser actions.",
        paper="2602.13559",
        granularity="step",
        family="reward",
        fidelity="code",
    ),
    OtherMethod(
        "rewards.adaptive_thinking",
        "Adaptive reasoning: long or short thinking by group accuracy (our design).",
        paper="2505.20101",
        granularity="trajectory",
        family="reward",
        fidelity="ours",
    ),
    OtherMethod(
        "rewards.overlong",
        "DAPO's soft penalty of overlong answers.",
        paper="2503.14476",
        granularity="trajectory",
        family="reward",
        fidelity="code",
    ),
    OtherMethod(
        "losses.gspo",
        "GSPO: one importance ratio for each sequence.",
        paper="2507.18071",
        granularity="trajectory",
        family="objective",
        fidelity="paper",
    ),
    OtherMethod(
        "losses.turn_clip",
        "A2TGPO's objective: one ratio for each turn, clipped by its information gain.",
        paper="2605.06200",
        granularity="turn",
        family="objective",
        fidelity="paper",
    ),
    OtherMethod(
        "losses.scope",
        "SCOPE: likelihood of right answers, distillation from a teacher on wrong ones.",
        paper="2604.10688",
        granularity="trajectory",
        family="distillation",
        fidelity="paper",
    ),
    OtherMethod(
        "losses.distill",
        "On-policy distillation from a teacher.",
        paper="2605.07177",
        granularity="token",
        family="distillation",
        fidelity="code",
    ),
    OtherMethod(
        "losses.preferences.dpo",
        "DPO: preference pairs and their implicit rewards.",
        paper="2305.18290",
        granularity="trajectory",
        family="objective",
        fidelity="paper",
    ),
)
# Names in inventory.json of methods that have no arXiv number there, or another one.
INVENTORY_NAMES = {
    "lare": "LaRe",
    "siop": "SIOP",
    "slate": "SLATE",
    "treeps_rag": "TreePS-RAG",
    "tp_grpo": "TP-GRPO",
    "mars2": "MARS2",
    "calm": "CALM",
    "signals.grounded_prm": "GroundedPRM",
    "losses.scope": "SCOPE (OPD)",
    "rewards.reseek": "ReSeek",
}
