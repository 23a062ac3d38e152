"""Rollouts in .npz files."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcredit.rollout.rollout import Rollout
from jaxcredit.rollout.signal_table import AXES, SIGNALS

KEYS = """a .npz file with one array per field of jaxcredit.Rollout, for N prompts, R rows of
T tokens, G trajectories of K segments.
Required: tokens [N, R, T] int, action_mask [N, R, T] bool (tokens that the policy sampled),
reward [N, G] or [N, G, K].
Optional: token_mask [N, R, T], segment [N, R, T], segment_mask [N, G, K], row [N, R], done [N, G],
logp [N, R, T] (of the sampler), trainer_logp [N, R, T], and any signal by its name (state, stratum,
value, process, agent, ...)"""
# Names of fields in files written by versions up to 0.1.
OLD_NAMES = {"mask": "action_mask", "real": "segment_mask", "valid": "token_mask"}


def load(path: str | Path) -> tuple[Rollout, np.ndarray | None]:
    """Read a rollout from a .npz file.

    Args:
        path: the file.

    Returns:
        The rollout, and the log-probabilities of its tokens under the trainer [N, R, T], None if
        the file has none.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, lacks a field, or its arrays do not fit together. The
            message has the file and `KEYS`.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # from numpy, zipfile, zlib, or `Rollout.check`
        text = str(error).strip() or type(error).__name__
        raise ValueError(
            text if str(path) in text else f"{path}: {text}; expected {KEYS}"
        ) from error


def _load(path):
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            raise ValueError("not a .npz file (np.savez writes one)")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            x = {OLD_NAMES.get(str(name), str(name)): arrays[name] for name in arrays.files}
    kinds = {
        name: x[name].dtype
        for name in x
        if x[name].dtype.kind not in ("iu" if name in ("tokens", "segment", "row") else "biuf")
    }
    if kinds:
        raise ValueError(
            f"{', '.join(f'{name} has dtype {kind}' for name, kind in kinds.items())}: "
            "tokens, segment and row are integers, other arrays numbers or bools"
        )
    needed = [name for name in ("tokens", "action_mask", "reward") if name not in x]
    unknown = [name for name in x if name not in {*AXES, *SIGNALS, "trainer_logp"}]
    if needed or unknown:
        problem = (
            f"lacks {', '.join(needed)}"
            if needed
            else f"holds {', '.join(unknown)}, which no field or signal is called"
        )
        raise ValueError(f"{path} {problem}; expected {KEYS}")
    mask = x["action_mask"].astype(bool)
    reward = x["reward"].astype(np.float32)
    reward = reward[..., None] if reward.ndim == 2 else reward
    segment = x.get("segment", np.where(mask, 0, -1) if reward.shape[-1] == 1 else None)
    if segment is None:
        raise ValueError(
            f"{path} has rewards of {reward.shape[-1]} segments but not the segment of each token: "
            "add segment"
        )
    rollout = Rollout(
        tokens=jnp.asarray(x["tokens"], jnp.int32),
        action_mask=jnp.asarray(mask),
        logp=jnp.asarray(x.get("logp", np.zeros(mask.shape)), jnp.float32),
        segment=jnp.asarray(segment, jnp.int32),
        reward=jnp.asarray(reward),
        segment_mask=jnp.asarray(x.get("segment_mask", np.ones(reward.shape)), bool),
        signals={name: jnp.asarray(value) for name, value in x.items() if name in SIGNALS},
        **{name: jnp.asarray(x[name]) for name in ("row", "token_mask", "done") if name in x},
    ).check()
    if "trainer_logp" in x and "logp" not in x:
        raise ValueError(f"{path} has trainer_logp without logp: their difference needs both")
    return rollout, x.get("trainer_logp")


def save(path: str | Path, rollout: Rollout, logp: np.ndarray | None = None) -> None:
    """Write a rollout to a .npz file that `load` reads.

    Args:
        path: the file.
        rollout: the rollout.
        logp: [N, R, T] log-probabilities of its tokens under the trainer.
    """
    fields: dict[str, Any] = {
        name: x for name, x in vars(rollout).items() if name != "signals" and x is not None
    }
    fields |= rollout.signals | ({} if logp is None else {"trainer_logp": logp})
    np.savez_compressed(path, **fields)
