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


# One shape for each name.
SIGNALS: dict[str, Signal] = {
    "value": Signal("G K", "f", "value before the segment, from a critic or Monte Carlo"),
    "token_value": Signal(
        "R T",
        "f",
        "value before the token, from a critic or Monte Carlo",
        '"critic": signals.critic()',
    ),
    "value_plan": Signal("G K", "f", "value before the turn, from the planner's critic"),
    "value_switch": Signal("G K", "f", "value of the turn, from the switch head"),
    "subgoal": Signal(
        "G K", "i", "subgoal that the turn serves; turns of one subgoal have equal numbers"
    ),
    "kind": Signal(
        "R T",
        "i",
        "part of a turn that the token belongs to: 0 thought, 1 subgoal, 2 switch, 3 action",
    ),
    "state": Signal(
        "G K", "i", "environment state in which the turn began; equal states have equal numbers"
    ),
    "stratum": Signal(
        "G",
        "i",
        "structural class of the trajectory, for example its number of tool calls",
        '"strata": signals.strata()',
    ),
    "agent": Signal("G K", "i", "agent that acted in the segment"),
    "gain": Signal("G K", "f", "information gain of the turn"),
    "info": Signal(
        "G K+1", "f", "potentials between turns, whose differences are the information gains"
    ),
    "process": Signal("G K", "f", "score of the segment by a process reward model, in [-1, 1]"),
    "error": Signal("G K", "f", "1 where the segment was marked wrong, else 0"),
    "verdict": Signal("G K", "f", "mark of the segment by a judge"),
    "node": Signal("G K", "i", "tree node in which the segment ends"),
    "node_parent": Signal("M", "i", "parent of the tree node, -1 at the root"),
    "turn_parent": Signal(
        "G K", "i", "truncated step that the segment continues; siblings have equal numbers"
    ),
    "pivot": Signal(
        "G", "i", "first segment in which a corrected attempt differs from the original"
    ),
    "pair": Signal("G", "i", "trajectory with which this one is paired"),
    "components": Signal("G C", "f", "components of the trajectory's reward, one column each"),
    "anytime": Signal(
        "G K", "f", "mean score of answers that were forced at the end of the segment"
    ),
    "macro": Signal(
        "R T", "i", "macro action that the token belongs to; equal numbers belong together"
    ),
    "continued": Signal(
        "G", "f", "number of continuations of the trajectory's prefix that were right"
    ),
    "planning": Signal("R T", "i", "1 on tokens that plan, else 0"),
    "decision_weight": Signal(
        "R T",
        "f",
        "weight of the token's place, by how much such places decided in earlier steps",
        '"decision": signals.decision()',
    ),
    "prob_square": Signal(
        "R T",
        "f",
        "sum over the vocabulary of the squared probabilities of the token's distribution",
    ),
    "better_logp": Signal(
        "R T", "f", "log-probability under a prompt that asks for a better answer"
    ),
    "worse_logp": Signal("R T", "f", "log-probability under a prompt that asks for a worse answer"),
    "prm_logp": Signal(
        "R T", "f", "log-probability under the model that is an implicit process reward"
    ),
    "progress": Signal(
        "G K", "f", "part of the outcome that a learned decomposition assigns to the segment"
    ),
    "grounded": Signal("G K", "f", "degree to which the segment's action was executable"),
    "achieved": Signal("G K", "f", "1 where the segment reached a subgoal, else 0"),
    "seen": Signal(
        "G K", "f", "number of times that the segment's message occurred so far, itself included"
    ),
    "action_value": Signal(
        "G K", "f", "value of the action that was taken in the segment, from a critic"
    ),
    "mixing": Signal(
        "G K",
        "f",
        "slope of a mixing network: derivative of the team's value by the segment's action value",
    ),
    "answer_weight": Signal(
        "G", "f", "reliability of the trajectory's answer among the group's answers"
    ),
    "density": Signal("G", "f", "share of the retrieved text that is useful"),
    "attribution": Signal("G K D", "f", "mark of the segment by a judge, in each dimension"),
    "score": Signal("G D", "f", "score of the episode, in each dimension"),
    "choice": Signal("G K", "i", "index of the choice that the agent took"),
    "choice_value": Signal(
        "G K U", "f", "value of each choice of the agent, with the choices of others fixed"
    ),
    "choice_prob": Signal("G K U", "f", "probability of each choice of the agent"),
    "coalition": Signal(
        "G S", "f", "value of each set of agents; bit a of the index says whether agent a is in it"
    ),
    "utility": Signal("G A", "f", "utility of the trajectory for each agent"),
    "greedy_reward": Signal(
        "",
        "f",
        "reward of the greedy answer to the prompt",
        '"greedy": signals.greedy(task, tokenizer, max_new_tokens=max_new_tokens)',
    ),
    "counterfactual": Signal("G K", "f", "outcome with the segment's action replaced"),
    "ref_logp": Signal(
        "R T", "f", "log-probability under the reference policy", '"reference": signals.reference()'
    ),
    "entropy": Signal(
        "R T",
        "f",
        "entropy of the distribution from which the token was sampled, in nats",
        '"entropy": signals.entropy()',
    ),
    "waad": Signal("R T", "f", "windowed average attention distance"),
    "fai": Signal("R T", "f", "future attention influence"),
    "prompt": Signal("", "i", "index of the prompt in its data set"),
}
