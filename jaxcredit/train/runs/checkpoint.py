"""Checkpoints of the training state, saved by Orbax in the background and verified by a manifest.

A checkpoint is a folder named after its step, padded with zeros to 8 digits. It has the arrays
(`arrays/`), `side.json` (position of the batch iterator, run id, shapes) and `manifest.json`, which
has size and checksum of every other file. The manifest is written last. A folder without a manifest
is not a checkpoint, so that an interrupted save is never restored. Once the manifest is stored,
checkpoints of later steps and those beyond `max_to_keep` are deleted.
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
    """A checkpoint could not be written or read."""


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was skipped, or a save failed and the run continues."""


class Checkpoints:
    """Checkpoints of a run, as a context manager.

    `save` copies the arrays to the host, and writes them in the background. A failed save is a
    warning, because the next one may succeed. `wait` and `close` raise its error unless a later
    save succeeded.

    Args:
        folder: path or gs:// address of the checkpoints.
        every: number of steps between saves.
        max_to_keep: number of the newest checkpoints that are not deleted.
        run: unique id of the run. Checkpoints with another id count as damaged. None: any id.

    The `with` block ends with `close`; after an exception a failed save is only a warning.

    Raises:
        ValueError: `every` or `max_to_keep` is below 1.
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
        self._last: int | None = None  # newest step that this object saved or restored

    @staticmethod
    def exist(folder: str | os.PathLike) -> bool:
        """Whether the folder contains a folder, such as a complete or an incomplete checkpoint."""
        return bool(storage.open_storage(folder).folders())

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        self.close(quiet=kind is not None)

    def due(self, step: int) -> bool:
        """Whether `step` is a multiple of `every`, 0 included."""
        return step % self.every == 0

    def steps(self) -> list[int]:
        """Steps with a manifest, oldest first. Their files are not verified."""
        return sorted(
            int(name)
            for name in self.store.folders()
            if _is_step(name) and self.store.has(f"{name}/{MANIFEST}")
        )

    def save(self, step: int, state: Any, side: dict | None = None) -> None:
        """Copy the state to the host, and write it in the background.

        The call has no effect if `step` is the last one that was saved or restored. Otherwise an
        existing checkpoint of `step` is replaced, and those of later steps are deleted. The metrics
        of the step have to be written before (`MetricsWriter.flush`), so that a resumed run finds
        them.

        Args:
            step: number of the step.
            state: pytree of arrays, PRNG keys and numbers.
            side: dict of JSON values to restore with the state.

        Raises:
            TypeError: `side` is not JSON.
        """
        self._finish_pending()
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
        json.dumps(side)  # raises before anything is written, if `side` is not JSON
        size = sum(x.nbytes for x in arrays.values())
        try:
            self._prepare(_step_folder(step), size)
            self._orbax.save(
                self.store.path(f"{_step_folder(step)}/{ARRAYS}"), args=ocp.args.PyTreeSave(arrays)
            )
        except Exception as e:
            self._fail(step, size, e)
            return
        self._pending = step, size, self._thread.submit(self._finish, step, size, side)

    def wait(self) -> None:
        """Wait until the newest save is complete. Raises its CheckpointError if it failed."""
        self._finish_pending()
        if self._failed:
            raise self._failed

    def close(self, *, quiet: bool = False) -> None:
        """Finish the pending save and end the threads.

        Args:
            quiet: True: a failed save is a CheckpointWarning. False: its CheckpointError is raised.
        """
        try:
            self._finish_pending() if quiet else self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def delete_all(self) -> None:
        """Wait for the pending save, then delete the folder with all its content.

        Raises:
            CheckpointError: the newest save failed. Nothing is deleted.
        """
        self.wait()
        if jax.process_index() == 0:
            for step in self.steps():
                self.store.remove(_step_folder(step), MANIFEST)
            self.store.delete_all()

    def restore(
        self, like: Any, *, step: int | None = None, partial: bool = False
    ) -> tuple[Any, dict, int] | None:
        """Restore the newest checkpoint that agrees with its manifest, or that of `step`.

        With `step=None`, damaged checkpoints are skipped with a CheckpointWarning.

        Args:
            like: state, or its shapes (`jax.ShapeDtypeStruct` with shardings) on any mesh. The
                restored arrays have these shardings.
            step: number of the step; None: the newest usable one.
            partial: whether `like` may be a part of the saved state, such as {"params": ...}.

        Returns:
            (state, side, step), where side is {} if none was saved; None if there is no usable
            checkpoint.

        Raises:
            CheckpointError: the checkpoint of `step` is absent or damaged, or names, shapes or
                dtypes of `like` differ from the saved ones.
        """
        self._finish_pending()
        if step is None:
            step = self._newest_usable()
            if step is None:
                return None
        elif jax.process_index() == 0 and (
            damage := _damage(self.store, _step_folder(step), self.run)
        ):
            raise CheckpointError(
                f"checkpoint {self.store.path(_step_folder(step))} {damage}: "
                f"choose another of the steps {self.steps()}"
            )
        side = json.loads(self.store.read(f"{_step_folder(step)}/{SIDE}"))
        state = _load(self._orbax, self.store.path(_step_folder(step)), like, side, partial)
        self._last, self.run = step, self.run or side.get("run")
        return state, side["user"], step

    def _newest_usable(self) -> int | None:
        chosen = -1
        if jax.process_index() == 0:
            for step in reversed(self.steps()):
                damage = _damage(self.store, _step_folder(step), self.run)
                if not damage:
                    chosen = step
                    break
                warnings.warn(
                    f"checkpoint {self.store.path(_step_folder(step))} {damage}: "
                    "skipped, trying the one before",
                    CheckpointWarning,
                    stacklevel=3,
                )
        if jax.process_count() > 1:
            chosen = int(processes.all_gather(np.int32(chosen))[0])
        return None if chosen < 0 else chosen

    def _prepare(self, target: str, size: int) -> None:
        """Delete incomplete checkpoints and an old one of the same step, and reserve space."""
        if jax.process_index() == 0:
            incomplete = [
                name
                for name in self.store.folders()
                if _is_step(name) and not self.store.has(f"{name}/{MANIFEST}")
            ]
            for name in {*incomplete, target}:
                self.store.remove(name, MANIFEST)
            self.store.reserve(target, size)
        if jax.process_count() > 1:
            processes.barrier()

    def _finish(self, step: int, size: int, side: dict) -> None:
        """Wait for Orbax, write the side file and the manifest, and delete old checkpoints.

        Runs in the background thread.
        """
        self._orbax.wait_until_finished()
        if jax.process_index() != 0:
            return
        target = _step_folder(step)
        self.store.write(f"{target}/{SIDE}", json.dumps(side))
        self.store.write(f"{target}/{MANIFEST}", json.dumps(self.store.checksums(target)))
        steps = self.steps()
        newest = [s for s in steps if s <= step][-self.max_to_keep :]
        for old in set(steps) - set(newest):
            self.store.remove(_step_folder(old), MANIFEST)

    def _finish_pending(self) -> None:
        if self._pending is None:
            return
        (step, size, writing), self._pending = self._pending, None
        try:
            writing.result()
            self._last, self._failed = step, None
        except Exception as e:
            self._fail(step, size, e)

    def _fail(self, step: int, size: int, error: Exception) -> None:
        """Warn, keep the error for `wait`, and delete the incomplete checkpoint."""
        usable: Any = "unknown"
        with contextlib.suppress(Exception):  # an unreachable bucket
            if jax.process_index() == 0:
                self.store.remove(_step_folder(step), MANIFEST)
            usable = self.steps() or "none"
        cause, remedy = f"{type(error).__name__}: {error}", "see the cause"
        if getattr(error, "errno", None) == errno.ENOSPC or any(
            t in cause for t in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC")
        ):
            cause, remedy = (
                f"the disk is full ({error})",
                f"free {size:,} bytes there, or take a smaller max_to_keep",
            )
        self._failed = CheckpointError(
            f"the checkpoint of step {step} ({size:,} bytes) could not be written to "
            f"{self.store.root}: {cause}; {remedy}. "
            f"Usable checkpoints: steps {usable}"
        )
        self._failed.__cause__ = error
        warnings.warn(f"{self._failed}. The run goes on.", CheckpointWarning, stacklevel=3)


def verify(folder: str | os.PathLike) -> str:
    """Description of the damage of a checkpoint, "" if there is none.

    In an undamaged checkpoint every file has its size and checksum, and the side file its fields.

    Args:
        folder: path or gs:// address of the its folder, such as `checkpoints/00000010`.
    """
    parent, _, name = os.fspath(folder).rstrip("/").rpartition("/")
    return _damage(storage.open_storage(parent), name)


def _step_folder(step: int) -> str:
    return f"{step:08d}"


def _is_step(name: str) -> bool:
    return bool(re.fullmatch("[0-9]{8,18}", name)) and name == _step_folder(int(name))


def _damage(store: storage.Disk | storage.Bucket, folder: str, run: str | None = None) -> str:
    try:
        manifest = json.loads(store.read(f"{folder}/{MANIFEST}"))
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
    present = store.checksums(folder)
    for name, (size, crc) in manifest.items():
        if name not in present:
            return f"is damaged: {name} is missing"
        if present[name][0] != size:
            return f"is damaged: {name} has {present[name][0]:,} bytes instead of {size}"
        if present[name][1] != crc:
            return f"is damaged: the checksum of {name} is wrong"
    return _side_damage(store, folder, run)


def _side_damage(store: storage.Disk | storage.Bucket, folder: str, run: str | None) -> str:
    """Damage of a side file with a valid checksum: missing fields, or another step or run."""
    try:
        side = json.loads(store.read(f"{folder}/{SIDE}"))
    except (ValueError, OSError, RecursionError) as e:
        return f"has an unreadable {SIDE} ({e})"
    types = {"step": int, "user": dict, "keys": dict, "tree": dict}
    if not isinstance(side, dict) or not all(
        isinstance(side.get(name), type_) for name, type_ in types.items()
    ):
        return f"is damaged: {SIDE} does not hold {', '.join(types)}"
    if _is_step(folder) and side["step"] != int(folder):
        return f"is damaged: it holds step {side['step']}, not the step of its folder"
    if run and side.get("run") not in (None, run):
        return "belongs to another run"
    return ""


def _flat(state: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Leaves by name, with PRNG keys as their data, and the implementation of each key."""
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
    """Saved leaves of the names in `like`, with its shardings, as a tree like `like`."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    leaves = {_name(path): x for path, x in paths}
    plain = {name: x if hasattr(x, "dtype") else np.asarray(x) for name, x in leaves.items()}
    wanted = {
        name: jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
        for name, x in plain.items()
    }
    _check_shapes(
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
    restored = orbax.restore(target / ARRAYS, args=request)
    for name, impl in side["keys"].items():
        if name in restored:
            restored[name] = jax.random.wrap_key_data(restored[name], impl=impl)
    restored = {
        name: type(x)(restored[name].item()) if isinstance(x, int | float) else restored[name]
        for name, x in leaves.items()
    }
    return jax.tree.unflatten(treedef, list(restored.values()))


def _check_shapes(target: PurePath, saved: dict, wanted: dict, partial: bool) -> None:
    show = {name: f"{name} {dtype}{shape}" for name, (dtype, *shape) in {**saved, **wanted}.items()}
    missing = [show[n] for n in wanted if n not in saved]
    unknown = [] if partial else [show[n] for n in saved if n not in wanted]
    other = [
        f"{show[n]} (saved: {saved[n][0]}{saved[n][1:]})"
        for n in wanted
        if n in saved and saved[n] != wanted[n]
    ]
    differences = [
        ("it lacks", missing),
        ("it has besides", unknown),
        ("of another shape or type", other),
    ]
    message = "; ".join(
        f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for what, names in differences
        if names
    )
    if message:
        raise CheckpointError(
            f"checkpoint {target} does not fit this run's state ({message}): "
            "use the model and optimizer it was saved with"
        )


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
