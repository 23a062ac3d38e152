"""Checkpoints that can be trusted: saved in the background by Orbax, proved whole by a manifest, restored onto any mesh, bit for bit.

A checkpoint is the folder `STEP/` with the arrays (`arrays/`, written by Orbax), `side.json` (iterator, config hash, clock) and, as its
very last file, `manifest.json`: the size and checksum of every other file. No manifest, no checkpoint: a save killed halfway can
never be taken for a whole one. Older checkpoints are deleted only after the manifest of a newer one is in the store, a disk or a bucket.
"""

import concurrent.futures
import contextlib
import errno
import json
import os
import re
import time
import warnings
from pathlib import PurePath
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxcredit.parallel import processes
from jaxcredit.train.runs import storage
from jaxcredit.train.runs.preemption import Preemption

__all__ = ["CheckpointError", "CheckpointWarning", "Checkpoints", "Preemption", "verify"]
MANIFEST, SIDE, ARRAYS = "manifest.json", "side.json", "arrays"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says why and what to do."""


class CheckpointWarning(UserWarning):
    """A checkpoint was skipped or a save failed, and the run goes on."""


class Checkpoints:
    """The checkpoints of one run.

    `save` returns as soon as the arrays are copied to the host and writes in the background. A failed save is a warning while the run goes
    on (the next may succeed: space was freed); `wait` and `close` raise it if no later save made it good. Records of the same step must
    lie on the disk before `save` (`MetricsWriter.flush`), so that a resumed run finds them. `run` is the identity of the run: a checkpoint
    that holds another one is treated as damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        every: int = 100,
        max_to_keep: int = 3,
        run: str | None = None,
    ):
        if every < 1 or max_to_keep < 1:
            raise ValueError(f"every = {every} and max_to_keep = {max_to_keep} must be at least 1")
        self.store, self.every, self.max_to_keep, self.run = (
            storage.open_storage(folder),
            every,
            max_to_keep,
            run,
        )
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[int, int, concurrent.futures.Future] | None = None
        self._failed: CheckpointError | None = None
        self._last: int | None = None  # the newest step on the disk that belongs to this run

    @staticmethod
    def exist(folder: str | os.PathLike) -> bool:
        """Whether the folder contains any checkpoint, complete or not."""
        return bool(storage.open_storage(folder).folders())

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        self.close(quiet=kind is not None)

    def due(self, step: int) -> bool:
        """Whether `step` is one of those at which the run saves."""
        return step % self.every == 0

    def steps(self) -> list[int]:
        """Steps with a manifest, oldest first: complete when they were written, not yet verified."""
        return sorted(
            int(name)
            for name in self.store.folders()
            if _is_step(name) and self.store.has(f"{name}/{MANIFEST}")
        )

    def save(self, step: int, state: Any, side: dict | None = None) -> None:
        """Copy `state` to the host now, write it in the background; `side` is any JSON that belongs to it. Saves one step at most once."""
        self._settle()
        if step == self._last:
            return
        arrays, keys = _flat(state)
        tree = {name: [str(x.dtype), *x.shape] for name, x in arrays.items()}
        side = {
            "step": step,
            "run": self.run,
            "time": time.time(),
            "user": side or {},
            "keys": keys,
            "tree": tree,
        }
        json.dumps(side)  # what is not JSON fails here, before anything is written
        size = sum(x.nbytes for x in arrays.values())
        try:
            self._prepare(_at(step), size)
            self._orbax.save(
                self.store.path(f"{_at(step)}/{ARRAYS}"), args=ocp.args.PyTreeSave(arrays)
            )
        except Exception as e:
            self._fail(step, size, e)
            return
        self._pending = step, size, self._thread.submit(self._finish, step, size, side)

    def wait(self) -> None:
        """Until nothing is being written; raises the error of the newest save if it failed."""
        self._settle()
        if self._failed:
            raise self._failed

    def close(self, *, quiet: bool = False) -> None:
        """Finish what is being written and end the threads. With `quiet` a failed save stays a warning: another error is on its way."""
        try:
            self._settle() if quiet else self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def delete_all(self) -> None:
        """Delete all checkpoints of the folder, after pending writes."""
        self.wait()
        if jax.process_index() == 0:
            for step in self.steps():
                self.store.remove(_at(step), MANIFEST)
            self.store.delete_all()

    def restore(
        self, like: Any, *, step: int | None = None, partial: bool = False
    ) -> tuple[Any, dict, int] | None:
        """The newest usable checkpoint (or that of `step`) as (state, side, step), laid out as `like` says; None where there is none.

        `like` is a state or its shapes (`jax.ShapeDtypeStruct` with shardings), on any mesh. With `partial` it may hold a part of the saved
        state, for example {"params": ...}. A damaged checkpoint is named in a warning and the one before it is used.
        """
        self._settle()
        if step is None:
            step = self._newest_usable()
            if step is None:
                return None
        elif jax.process_index() == 0 and (damage := _damage(self.store, _at(step), self.run)):
            raise CheckpointError(
                f"checkpoint {self.store.path(_at(step))} {damage}: choose another of the steps {self.steps()}"
            )
        side = json.loads(self.store.read(f"{_at(step)}/{SIDE}"))
        state = _load(self._orbax, self.store.path(_at(step)), like, side, partial)
        self._last, self.run = step, self.run or side.get("run")
        return state, side["user"], step

    def _newest_usable(self) -> int | None:
        chosen = -1
        if jax.process_index() == 0:
            for step in reversed(self.steps()):
                damage = _damage(self.store, _at(step), self.run)
                if not damage:
                    chosen = step
                    break
                warnings.warn(
                    f"checkpoint {self.store.path(_at(step))} {damage}: skipped, trying the one before",
                    CheckpointWarning,
                    stacklevel=3,
                )
        if jax.process_count() > 1:
            chosen = int(processes.all_gather(np.int32(chosen))[0])
        return None if chosen < 0 else chosen

    def _prepare(self, target: str, size: int) -> None:
        """Room, and no leftovers: neither of killed saves nor of a future given up by resuming from an earlier step."""
        if jax.process_index() == 0:
            half = [
                name
                for name in self.store.folders()
                if _is_step(name) and not self.store.has(f"{name}/{MANIFEST}")
            ]
            for name in {*half, target}:
                self.store.remove(name, MANIFEST)
            self.store.reserve(target, size)
        if jax.process_count() > 1:
            processes.barrier()

    def _finish(self, step: int, size: int, side: dict) -> None:
        """In the background: wait for Orbax, write the side file and, last, the manifest; only then delete what is too old."""
        self._orbax.wait_until_finished()
        if jax.process_index() != 0:
            return
        target = _at(step)
        self.store.write(f"{target}/{SIDE}", json.dumps(side))
        self.store.write(f"{target}/{MANIFEST}", json.dumps(self.store.checksums(target)))
        steps = self.steps()
        good = [s for s in steps if s <= step][-self.max_to_keep :]
        for old in set(steps) - set(good):
            self.store.remove(_at(old), MANIFEST)

    def _settle(self) -> None:
        if self._pending is None:
            return
        (step, size, writing), self._pending = self._pending, None
        try:
            writing.result()
            self._last, self._failed = step, None
        except Exception as e:
            self._fail(step, size, e)

    def _fail(self, step: int, size: int, error: Exception) -> None:
        """Keep the error for `wait`, say it as a warning, and give the half-written bytes back."""
        usable: Any = "none that could be seen"
        with contextlib.suppress(Exception):  # a bucket out of reach can tell nothing
            if jax.process_index() == 0:
                self.store.remove(_at(step), MANIFEST)
            usable = self.steps() or "none"
        cause, mend = f"{type(error).__name__}: {error}", "see the cause"
        if getattr(error, "errno", None) == errno.ENOSPC or any(
            t in cause for t in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC")
        ):
            cause, mend = (
                f"the disk is full ({error})",
                f"free {size:,} bytes there, or take a smaller max_to_keep",
            )
        self._failed = CheckpointError(
            f"the checkpoint of step {step} ({size:,} bytes) could not be written to {self.store.root}: {cause}; {mend}. "
            f"Usable checkpoints: steps {usable}"
        )
        self._failed.__cause__ = error
        warnings.warn(f"{self._failed}. The run goes on.", CheckpointWarning, stacklevel=3)


def verify(folder: str | os.PathLike) -> str:
    """What is wrong with a checkpoint folder, in words; "" where every file is there with its size and checksum."""
    parent, _, name = os.fspath(folder).rstrip("/").rpartition("/")
    return _damage(storage.open_storage(parent), name)


def _at(step: int) -> str:
    return f"{step:08d}"


def _is_step(name: str) -> bool:
    return bool(re.fullmatch("[0-9]{8,18}", name)) and name == _at(int(name))


def _damage(where: storage.Disk | storage.Bucket, folder: str, run: str | None = None) -> str:
    try:
        manifest = json.loads(where.read(f"{folder}/{MANIFEST}"))
    except FileNotFoundError:
        return "has no manifest (its save was not completed)"
    except (ValueError, OSError, RecursionError) as e:
        return f"has an unreadable manifest ({e})"
    if not isinstance(manifest, dict) or not all(
        isinstance(entry, list) and len(entry) == 2 for entry in manifest.values()
    ):
        return "has a damaged manifest: it is not a mapping of file names to sizes and checksums"
    if SIDE not in manifest or not any(name.startswith(f"{ARRAYS}/") for name in manifest):
        return f"has a damaged manifest: it does not list {SIDE} and the arrays"
    facts = where.checksums(folder)
    for name, (size, crc) in manifest.items():
        if name not in facts:
            return f"is damaged: {name} is missing"
        if facts[name][0] != size:
            return f"is damaged: {name} has {facts[name][0]:,} bytes instead of {size}"
        if facts[name][1] != crc:
            return f"is damaged: the checksum of {name} is wrong"
    return _side_damage(where, folder, run)


def _side_damage(where: storage.Disk | storage.Bucket, folder: str, run: str | None) -> str:
    """Defect of a side file with a valid checksum: missing fields, another step or another run; "" if there is none."""
    try:
        side = json.loads(where.read(f"{folder}/{SIDE}"))
    except (ValueError, OSError, RecursionError) as e:
        return f"has an unreadable {SIDE} ({e})"
    kinds = {"step": int, "user": dict, "keys": dict, "tree": dict}
    if not isinstance(side, dict) or not all(
        isinstance(side.get(name), kind) for name, kind in kinds.items()
    ):
        return f"is damaged: {SIDE} does not hold {', '.join(kinds)}"
    if _is_step(folder) and side["step"] != int(folder):
        return f"is damaged: it holds step {side['step']}, not the step of its folder"
    if run and side.get("run") not in (None, run):
        return "belongs to another run"
    return ""


def _flat(state: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Leaves by their path, PRNG keys as their data; and the implementation of each key."""
    arrays, keys = {}, {}
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        name = _name(path)
        if _is_key(x):
            keys[name] = str(jax.random.key_impl(x))
            x = jax.random.key_data(x)
        arrays[name] = x if isinstance(x, jax.Array) else np.asarray(x)
    return arrays, keys


def _load(
    orbax: ocp.AsyncCheckpointer, target: PurePath, like: Any, side: dict, partial: bool
) -> Any:
    """The saved leaves that `like` asks for, with its shardings."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    leaves = {_name(path): x for path, x in paths}
    plain = {name: x if hasattr(x, "dtype") else np.asarray(x) for name, x in leaves.items()}
    wanted = {
        name: jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
        for name, x in plain.items()
    }
    _fits(
        target,
        side["tree"],
        {name: [str(x.dtype), *x.shape] for name, x in wanted.items()},
        partial,
    )
    item, args = {}, {}
    for name, x in wanted.items():
        if isinstance(x, jax.Array | jax.ShapeDtypeStruct):
            sharding = getattr(leaves[name], "sharding", None) or jax.sharding.SingleDeviceSharding(
                jax.local_devices()[0]
            )
            args[name] = ocp.ArrayRestoreArgs(
                sharding=sharding, global_shape=x.shape, dtype=x.dtype
            )
        else:
            args[name] = ocp.RestoreArgs(restore_type=np.ndarray)
        item[name] = jax.ShapeDtypeStruct(x.shape, x.dtype)
    request = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
    got = orbax.restore(target / ARRAYS, args=request)
    for name, impl in side["keys"].items():
        if name in got:
            got[name] = jax.random.wrap_key_data(got[name], impl=impl)
    got = {
        name: type(x)(got[name].item()) if isinstance(x, int | float) else got[name]
        for name, x in leaves.items()
    }
    return jax.tree.unflatten(treedef, list(got.values()))


def _fits(target: PurePath, saved: dict, wanted: dict, partial: bool) -> None:
    show = {name: f"{name} {dtype}{shape}" for name, (dtype, *shape) in {**saved, **wanted}.items()}
    missing = [show[n] for n in wanted if n not in saved]
    unknown = [] if partial else [show[n] for n in saved if n not in wanted]
    other = [
        f"{show[n]} (saved: {saved[n][0]}{saved[n][1:]})"
        for n in wanted
        if n in saved and saved[n] != wanted[n]
    ]
    found = [
        ("it lacks", missing),
        ("it has besides", unknown),
        ("of another shape or type", other),
    ]
    told = "; ".join(
        f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for what, names in found
        if names
    )
    if told:
        raise CheckpointError(
            f"checkpoint {target} does not fit this run's state ({told}): use the model and optimizer it was saved with"
        )


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
