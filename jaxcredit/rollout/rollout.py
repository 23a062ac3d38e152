"""The one structure every layer shares: what a policy did for N prompts, what it earned, and what else is known about it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.precision import merge_equal, rounding
from jaxcredit.rollout.validation import check_earned, check_rewards, check_rows, check_segments


class Signal(NamedTuple):
    """A named signal: its axes for ONE prompt's group, its kind (`f`loat or `i`nt), its meaning, and the annotator that makes it."""

    axes: str
    kind: str
    meaning: str
    maker: str = ""  # an entry of an experiment's `signals`; empty: jaxcredit.signals has no annotator for it


# One shape a name. This table drives the docs, padding, permuting, slicing, the laws' synthetic rollouts and error messages.
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """N prompts. The policy was run on R rows of T tokens; they make G trajectories of at most K segments. Usually R = G.

    The same structure without its leading N is one prompt's *group*, which is what estimators are written for.
    Credit lives on `[G, K]`, training happens on rows `[R, T]`, and `row` joins the two.
    """

    tokens: Int[Array, "*N R T"]  # prompt and response, and what tools said
    action_mask: Bool[
        Array, "*N R T"
    ]  # tokens the policy chose: carried as data, never inferred from token values
    logp: Float[
        Array, "*N R T"
    ]  # of softmax(logits / temperature), before top-k and top-p, under the policy that chose them
    segment: Int[Array, "*N R T"]  # the segment a token belongs to, 0..K-1; -1 outside any
    reward: Float[
        Array, "*N G K"
    ]  # earned at the end of each segment; |reward| of a trajectory adds up to at most LARGEST_RETURN
    segment_mask: Bool[Array, "*N G K"]  # segments that took place
    signals: dict[str, Array] = dataclasses.field(default_factory=dict)
    row: Int[Array, "*N R"] | None = None  # the trajectory of each row; None: row i is trajectory i
    token_mask: Bool[Array, "*N R T"] | None = (
        None  # not padding, contiguous in each row; None: up to the last chosen token
    )
    done: Bool[Array, "*N G"] | None = None  # ended by itself, not cut off; None: all

    def __getitem__(self, name: str) -> Array:
        """The signal of that name; a missing one is an error that says what it is and who could provide it."""
        if name in self.signals:
            return self.signals[name]
        if name not in SIGNALS:
            raise KeyError(
                f"no signal is called {name!r}; known signals: {', '.join(SIGNALS)} (add a row to jaxcredit.SIGNALS)"
            )
        axes, _, meaning, maker = SIGNALS[name]
        raise KeyError(
            f"this credit needs the signal {name!r} ({meaning}; shape [N {axes}]), which the rollout does not carry. "
            f"It carries: {', '.join(self.signals) or 'none'}. Set signals[{name!r}]; in an experiment add "
            + (f"signals={{{maker}}}." if maker else "an annotator of your own that provides it.")
        )

    def with_signals(self, **signals: Array) -> "Rollout":
        """The same rollout with more signals."""
        return dataclasses.replace(self, signals={**self.signals, **signals})

    def filled(self) -> "Rollout":
        """The same rollout with every optional field written out."""
        *lead, R, T = self.tokens.shape
        G = self.reward.shape[-2]
        if self.row is None and R != G:
            raise ValueError(
                f"{R} rows but {G} trajectories: say which trajectory each row belongs to with row=[N, R]"
            )
        row = (
            jnp.broadcast_to(jnp.arange(R, dtype=jnp.int32), (*lead, R))
            if self.row is None
            else self.row
        )
        column = jnp.arange(T, dtype=jnp.int32)
        valid = (
            column <= jnp.where(self.action_mask, column, -1).max(-1, keepdims=True, initial=-1)
            if self.token_mask is None
            else self.token_mask
        )
        done = jnp.ones((*lead, G), bool) if self.done is None else self.done
        return dataclasses.replace(self, row=row, token_mask=valid, done=done)

    def check_shapes(self) -> "Rollout":
        """Raise a ValueError that names the field, its shape and the shape it should have. Reads no values: tracers will do."""
        N, R, T = _shape(
            "tokens",
            self.tokens,
            "N R T",
            "N prompts of R answers each, not one axis of N * R rows",
        )
        _, G, K = _shape(
            "reward",
            self.reward,
            "N G K",
            "one reward for each segment; with a single segment, reward[..., None]",
        )
        sizes = {"N": N, "R": R, "T": T, "G": G, "K": K, "K+1": K + 1}
        fields = {
            "reward": "N G K",
            "action_mask": "N R T",
            "logp": "N R T",
            "segment": "N R T",
            "segment_mask": "N G K",
        }
        for name, axes in (fields | {"row": "N R", "token_mask": "N R T", "done": "N G"}).items():
            _fits(name, getattr(self, name), axes.split(), sizes, optional=name not in fields)
        for name, x in self.signals.items():
            if name in SIGNALS:
                _fits(f"signals[{name!r}]", x, ["N", *SIGNALS[name].axes.split()], sizes)
        for name in ("action_mask", "segment_mask", "token_mask", "done"):
            x = getattr(self, name)
            if x is not None and x.dtype != bool:
                raise ValueError(f"{name} is {x.dtype}, expected bool: {name} != 0 makes one")
        self.filled()
        return self

    def check(self) -> "Rollout":
        """Check that the fields fit together; a ValueError has the field and the fix. Returns the rollout.

        A checked rollout can be given to every estimator and to the policy: shapes fit; rewards are finite, at most LARGEST_RETURN in a
        trajectory, and none is earned before the policy chose its first token; tokens, segments and rows are in range; and rows are
        contiguous behind their left padding, since the policy numbers positions by counting. Values are read if they are concrete.
        """
        self.check_shapes()
        if any(isinstance(x, Tracer) for x in jax.tree.leaves(self)):
            return self
        x = {
            name: np.asarray(field)
            for name, field in vars(self.filled()).items()
            if name != "signals"
        }
        check_rewards(x["reward"].astype(np.float64), x["segment_mask"])
        check_rows(x["tokens"], x["action_mask"], x["row"], x["token_mask"], self.reward.shape[1])
        check_segments(x["segment"], self.reward.shape[-1])
        check_earned(x["reward"], x["segment_mask"], x["action_mask"], x["segment"], x["row"])
        return self


def _shape(name, x, axes, hint):
    if len(x.shape) != len(axes.split()):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected [{axes.replace(' ', ', ')}]: {hint}"
        )
    return x.shape


def _fits(name, x, axes, sizes, optional=False):
    if x is None and optional:
        return
    shape = tuple(getattr(x, "shape", ()))
    if len(shape) != len(axes) or any(
        a in sizes and sizes[a] != s for a, s in zip(axes, shape, strict=False)
    ):
        known = ", ".join(f"{a}={sizes[a]}" for a in axes if a in sizes)
        raise ValueError(f"{name} has shape {shape}, expected [{', '.join(axes)}] with {known}")


def outcome(group: Rollout) -> Float[Array, "*N G"]:
    """Return of each trajectory: R_i = sum_k r_ik over the segments that took place.

    Returns of a group that differ by no more than the rounding of their sums are one number, and 0 where they cancel: 0.1 + 0.2 - 0.3 and
    0.2 - 0.3 + 0.1 are equal, and neither is more than 0.
    """
    total = jnp.where(group.segment_mask, group.reward, 0).sum(-1)
    return (
        merge_equal(total, return_rounding(group), trajectory_mask(group))
        if jnp.issubdtype(total.dtype, jnp.floating)
        else total
    )


def return_rounding(group: Rollout) -> Float[Array, "*N G"]:
    """Bound on the rounding error of each trajectory's return, from the magnitudes of its rewards."""
    size = jnp.abs(jnp.where(group.segment_mask, group.reward, 0))
    return rounding(size.sum(-1), (size > 0).sum(-1))


def trajectory_mask(group: Rollout) -> Bool[Array, "*N G"]:
    """Trajectories that took place at all: uneven groups are padded with `segment_mask = False`."""
    return group.segment_mask.any(-1)
