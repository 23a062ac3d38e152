"""Axes of a rollout's fields, and the table of named signals.

Axes are written for the group of one prompt, as letters separated by spaces; a batch has the axis N
of prompts in front.

    R  rows, the sequences that the policy was run on
    T  tokens of a row, prompt included
    G  trajectories
    K  segments of a trajectory
    M  nodes of a tree of trajectories
    A  agents
    S  sets of agents, 2^A of them
    U  choices of an agent in a segment
    C  components of a reward
    D  dimensions of a judge's score

`AXES` and `SIGNALS` are the one place where shapes are declared: shape checks, padding, slicing,
files, the laws' synthetic rollouts and error messages read them.
"""

from typing import NamedTuple

# Axes of each array field of `Rollout`, for one group.
AXES: dict[str, str] = {
    "tokens": "R T",
    "action_mask": "R T",
    "logp": "R T",
    "segment": "R T",
    "reward": "G K",
    "segment_mask": "G K",
    "row": "R",
    "token_mask": "R T",
    "done": "G",
}


class Signal(NamedTuple):
    """Row of the table of signals.

    Attributes:
        axes: axes of the array for one group, such as "G K".
        kind: "f" for floats, "i" for integers.
        meaning: one line for error messages and the catalogue.
        maker: entry of an experiment's `signals` that provides the signal. Empty if
            `jaxcredit.signals` has no annotator for it.
    """

    axes: str
    kind: str
    meaning: str
    maker: str = ""


SIGNALS: dict[str, Signal] = {
    "value": Signal("G K", "f", "critic or Monte Carlo value before the segment"),
    "token_value": Signal(
        "R T", "f", "critic or Monte Carlo value before the token", '"critic": signals.critic()'
    ),
    "value_plan": Signal("G K", "f", "planner's critic before the turn"),
    "value_switch": Signal("G K", "f", "switch head's value of the turn"),
    "subgoal": Signal("G K", "i", "subgoal each turn serves; equal numbers belong together"),
    "kind": Signal(
        "R T", "i", "part of a turn a token is: 0 thought, 1 subgoal, 2 switch, 3 action"
    ),
    "state": Signal("G K", "i", "equal where two turns began in the same environment state"),
    "stratum": Signal(
        "G",
        "i",
        "structural class of a trajectory, for example its number of tool calls",
        '"strata": signals.strata()',
    ),
    "agent": Signal("G K", "i", "who acted in the segment"),
    "gain": Signal("G K", "f", "information gain of each turn"),
    "info": Signal("G K+1", "f", "potentials between turns whose differences are the gains"),
    "process": Signal("G K", "f", "a process reward model's score of the segment, in [-1, 1]"),
    "error": Signal("G K", "f", "1 where the segment was marked wrong, else 0"),
    "verdict": Signal("G K", "f", "a judge's mark of the segment"),
    "node": Signal("G K", "i", "tree node each segment ends in"),
    "node_parent": Signal("M", "i", "parent of each tree node, -1 at the root"),
    "turn_parent": Signal("G K", "i", "equal for siblings of one truncated step"),
    "pivot": Signal("G", "i", "segment from which a corrected attempt differs from the first"),
    "pair": Signal("G", "i", "the partner of a paired rollout"),
    "components": Signal("G C", "f", "the parts a trajectory's reward is made of, one column each"),
    "anytime": Signal(
        "G K", "f", "mean score of the answers that were forced at the end of the segment"
    ),
    "macro": Signal("R T", "i", "macro action a token belongs to; equal numbers belong together"),
    "continued": Signal(
        "G", "f", "how many continuations of the trajectory's beginning were right"
    ),
    "planning": Signal("R T", "i", "1 on tokens that plan, else 0"),
    "decision_weight": Signal(
        "R T",
        "f",
        "relative weight of the token's place: how much was decided in such places in earlier steps",
        '"decision": signals.decision()',
    ),
    "prob_square": Signal(
        "R T", "f", "sum over the vocabulary of the squared probabilities the token was drawn from"
    ),
    "better_logp": Signal(
        "R T", "f", "log-probability under a prompt that asks for a better answer"
    ),
    "worse_logp": Signal("R T", "f", "log-probability under a prompt that asks for a worse answer"),
    "prm_logp": Signal(
        "R T", "f", "log-probability under the model that is an implicit process reward"
    ),
    "progress": Signal(
        "G K", "f", "the part of the outcome that a learned decomposition gives to the segment"
    ),
    "grounded": Signal("G K", "f", "how executable the segment's action was"),
    "achieved": Signal("G K", "f", "1 where the segment reached a subgoal, else 0"),
    "seen": Signal("G K", "f", "how often the segment's message had been seen, itself included"),
    "action_value": Signal("G K", "f", "critic's value of the action taken in the segment"),
    "mixing": Signal(
        "G K",
        "f",
        "how much of the segment's action value reaches the team's: slope of a mixing network",
    ),
    "answer_weight": Signal(
        "G", "f", "how reliable the trajectory's answer is, among the group's answers"
    ),
    "density": Signal("G", "f", "share of what was retrieved that is useful"),
    "attribution": Signal("G K D", "f", "a judge's mark of the segment in each dimension"),
    "score": Signal("G D", "f", "the episode's score in each dimension"),
    "choice": Signal("G K", "i", "which of its choices the agent took"),
    "choice_value": Signal("G K U", "f", "value of each choice the agent had, the others' fixed"),
    "choice_prob": Signal("G K U", "f", "probability of each choice the agent had"),
    "coalition": Signal(
        "G S", "f", "value of each set of agents; bit a of the index says whether agent a is in it"
    ),
    "utility": Signal("G A", "f", "what the trajectory was worth to each agent"),
    "greedy_reward": Signal(
        "",
        "f",
        "reward of the greedy answer to the prompt",
        '"greedy": signals.greedy(task, tokenizer, max_new_tokens=max_new_tokens)',
    ),
    "counterfactual": Signal("G K", "f", "outcome with this segment's action replaced"),
    "ref_logp": Signal(
        "R T", "f", "log-probability under the reference policy", '"reference": signals.reference()'
    ),
    "entropy": Signal(
        "R T",
        "f",
        "entropy of the distribution the token was drawn from, in nats",
        '"entropy": signals.entropy()',
    ),
    "waad": Signal("R T", "f", "windowed average attention distance"),
    "fai": Signal("R T", "f", "future attention influence"),
    "prompt": Signal("", "i", "index of the prompt in its data set"),
}
