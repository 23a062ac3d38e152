"""The data structure that sampling, signals, estimators and updates share."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.precision import merge_equal, rounding_bound
from jaxcredit.rollout.signal_table import AXES, SIGNALS
from jaxcredit.rollout.validation import check_earned, check_rewards, check_rows, check_segments

AnyRollout = TypeVar("AnyRollout", bound="Rollout")
OPTIONAL = ("row", "token_mask", "done")  # fields that `Rollout.filled` writes out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """Trajectories that a policy sampled for N prompts, with their rewards and signals. A pytree.

    The policy was run on R rows of T tokens per prompt. They make up G trajectories of at most K
    segments. Usually a trajectory is one row (R = G) and one segment (K = 1). Rewards and credit of
    segments have the shape [N, G, K], training works on rows [N, R, T], and `row` maps rows to
    trajectories. Without its axis N the structure is the *group* of one prompt, the argument of
    estimators and kernels.

    Attributes:
        tokens: [N, R, T] token ids: prompt, response, and text that tools or environments inserted.
        action_mask: [N, R, T] True on tokens that the policy sampled. Never inferred from ids.
        logp: [N, R, T] log-probability of each sampled token under the policy that sampled it, of
            softmax(logits / temperature) before top-k and top-p.
        segment: [N, R, T] segment of each token, 0 to K - 1; -1 outside any segment.
        reward: [N, G, K] reward earned at the end of each segment. The magnitudes of a
            trajectory's rewards add up to at most `validation.LARGEST_RETURN`.
        segment_mask: [N, G, K] True on segments that took place. A trajectory without any is
            padding of its group.
        signals: further arrays by name, with the axes of `jaxcredit.SIGNALS`.
        row: [N, R] trajectory of each row, 0 to G - 1. Rows of one trajectory follow each other in
            the order of their index. None: row i is trajectory i.
        token_mask: [N, R, T] True on tokens that are not padding, contiguous in each row. None:
            in each row, every column up to its last sampled token.
        done: [N, G] True on trajectories that ended by themselves, False on truncated ones. None:
            all ended.
    """

    tokens: Int[Array, "*N R T"]
    action_mask: Bool[Array, "*N R T"]
    logp: Float[Array, "*N R T"]
    segment: Int[Array, "*N R T"]
    reward: Float[Array, "*N G K"]
    segment_mask: Bool[Array, "*N G K"]
    signals: dict[str, Array] = dataclasses.field(default_factory=dict)
    row: Int[Array, "*N R"] | None = None
    token_mask: Bool[Array, "*N R T"] | None = None
    done: Bool[Array, "*N G"] | None = None

    def __getitem__(self, name: str) -> Array:
        """Signal of that name.

        Raises:
            KeyError: the rollout lacks the signal. The message has its meaning, its shape and the
                annotator that provides it.
        """
        if name in self.signals:
            return self.signals[name]
        if name not in SIGNALS:
            raise KeyError(
                f"no signal is called {name!r}; known signals: {', '.join(SIGNALS)} "
                "(add a row to jaxcredit.SIGNALS)"
            )
        axes, _, meaning, maker = SIGNALS[name]
        raise KeyError(
            f"this credit needs the signal {name!r} ({meaning}; shape [N {axes}]), which the "
            f"rollout does not carry. It carries: {', '.join(self.signals) or 'none'}. "
            f"Set signals[{name!r}]; in an experiment add "
            + (f"signals={{{maker}}}." if maker else "an annotator of your own that provides it.")
        )

    def with_signals(self: AnyRollout, **signals: Array) -> AnyRollout:
        """Copy of the rollout with further signals, which replace those of the same names."""
        return dataclasses.replace(self, signals={**self.signals, **signals})

    def filled(self) -> "FilledRollout":
        """Copy of the rollout with `row`, `token_mask` and `done` written out.

        Raises:
            ValueError: `row` is None, and there are more or fewer rows than trajectories.
        """
        *lead, R, T = self.tokens.shape
        G = self.reward.shape[-2]
        if self.row is None and R != G:
            raise ValueError(
                f"{R} rows but {G} trajectories: say which trajectory each row belongs to with "
                "row=[N, R]"
            )
        row = (
            jnp.broadcast_to(jnp.arange(R, dtype=jnp.int32), (*lead, R))
            if self.row is None
            else self.row
        )
        column = jnp.arange(T, dtype=jnp.int32)
        token_mask = (
            column <= jnp.where(self.action_mask, column, -1).max(-1, keepdims=True, initial=-1)
            if self.token_mask is None
            else self.token_mask
        )
        done = jnp.ones((*lead, G), bool) if self.done is None else self.done
        return FilledRollout(**{**vars(self), "row": row, "token_mask": token_mask, "done": done})

    def check_shapes(self: AnyRollout) -> AnyRollout:
        """Check that the shapes of the fields fit together and masks are bool. Returns the rollout.

        Reads no values, so tracers and `jax.ShapeDtypeStruct` work.

        Raises:
            ValueError: the message has the field, its shape and the shape that fits.
        """
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
        for name, axes in AXES.items():
            if (x := getattr(self, name)) is not None or name not in OPTIONAL:
                _check_axes(name, x, axes, sizes)
        for name, x in self.signals.items():
            if name in SIGNALS:
                _check_axes(f"signals[{name!r}]", x, SIGNALS[name].axes, sizes)
        for name in ("action_mask", "segment_mask", "token_mask", "done"):
            x = getattr(self, name)
            if x is not None and x.dtype != bool:
                raise ValueError(f"{name} is {x.dtype}, expected bool: {name} != 0 makes one")
        self.filled()
        return self

    def check(self: AnyRollout) -> AnyRollout:
        """Check that the fields fit together. Returns the rollout.

        Every estimator and the policy accept a checked rollout. Checked are the shapes; that
        rewards are finite, at most `validation.LARGEST_RETURN` in a trajectory, and none precedes
        the first token that the policy sampled; that tokens, segments and rows are in range; and
        that the tokens of a row are contiguous after left padding, since the policy counts
        positions. Values are checked only if they are concrete: under `jax.jit` only the shapes
        are.

        Raises:
            ValueError: the message has the field, the index and the fix.
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FilledRollout(Rollout):
    """Rollout without optional fields: `row`, `token_mask` and `done` are arrays.

    `Rollout.filled` makes one. Estimators receive their groups in this form.
    """

    # Required here, optional in the base class: `field()` drops the inherited default.
    row: Int[Array, "*N R"] = dataclasses.field()  # pyright: ignore
    token_mask: Bool[Array, "*N R T"] = dataclasses.field()  # pyright: ignore
    done: Bool[Array, "*N G"] = dataclasses.field()  # pyright: ignore


def _shape(name, x, axes, hint):
    if len(x.shape) != len(axes.split()):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected [{axes.replace(' ', ', ')}]: {hint}"
        )
    return x.shape


def _check_axes(name, x, axes, sizes):
    """Raises unless x has the axes ["N", *axes] with the known sizes."""
    axes = ["N", *axes.split()]
    shape = tuple(getattr(x, "shape", ()))
    if len(shape) != len(axes) or any(
        a in sizes and sizes[a] != s for a, s in zip(axes, shape, strict=False)
    ):
        known = ", ".join(f"{a}={sizes[a]}" for a in axes if a in sizes)
        raise ValueError(f"{name} has shape {shape}, expected [{', '.join(axes)}] with {known}")


def outcome(group: Rollout) -> Float[Array, "*N G"]:
    """Return of each trajectory, the sum of its rewards.

        R_i = sum_k r_ik   over the segments that took place

    A return within its rounding bound of 0 becomes 0. Any other return takes the value of the
    return with the least bound among those of its group that differ from it by no more than the
    larger of their two bounds. `return_rounding` computes the bounds. So 0.1 + 0.2 - 0.3 and 0.2 -
    0.3 + 0.1 are equal, and neither is above 0.

    Args:
        group: a rollout, of one prompt or of N.

    Returns:
        [G], or [N, G] for N prompts.
    """
    total = jnp.where(group.segment_mask, group.reward, 0).sum(-1)
    return (
        merge_equal(total, return_rounding(group), trajectory_mask(group))
        if jnp.issubdtype(total.dtype, jnp.floating)
        else total
    )


def return_rounding(group: Rollout) -> Float[Array, "*N G"]:
    """Bound on the rounding error of each trajectory's return, from its rewards' magnitudes.

    The bound is `kernels.rounding_bound` of the summed magnitudes of the segments that took place.
    The number of terms is the number of rewards that are not 0.

    Args:
        group: a rollout, of one prompt or of N.

    Returns:
        [G], or [N, G] for N prompts.
    """
    size = jnp.abs(jnp.where(group.segment_mask, group.reward, 0))
    return rounding_bound(size.sum(-1), (size > 0).sum(-1))


def trajectory_mask(group: Rollout) -> Bool[Array, "*N G"]:
    """True on trajectories that took place. Smaller groups are padded with `segment_mask` False."""
    return group.segment_mask.any(-1)
