"""A run: training in a locked run folder, from the start or from a checkpoint."""

import contextlib
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxcredit.collect.batches import Batches
from jaxcredit.credit import method_of
from jaxcredit.parallel.processes import all_process_sum
from jaxcredit.tasks.scoring import start_workers
from jaxcredit.train.evaluation import evaluate_greedy, greedy_accuracy
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.failures import FlatRewards, with_oom_advice
from jaxcredit.train.loop import RunServices, Stopped, train
from jaxcredit.train.programs import Programs, build
from jaxcredit.train.runs import file_names, storage
from jaxcredit.train.runs import source as run_source
from jaxcredit.train.runs.checkpoint import Checkpoints
from jaxcredit.train.runs.folder import RunFolder, open_run_folder
from jaxcredit.train.runs.host_log import HostLog
from jaxcredit.train.runs.lock import Lock
from jaxcredit.train.runs.metrics import MetricsWriter
from jaxcredit.train.runs.preemption import Preemption, StopRequested
from jaxcredit.train.runs.profiling import Profiler
from jaxcredit.train.supervised import Interrupted, warm_up
from jaxcredit.train.update import TrainState

NOTHING_SAVED = "nothing had been learned yet"


def run(
    exp: Experiment,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    source: Mapping[str, Any] | None = None,
    profile: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Train an experiment in a run folder and return its last metrics.

    Invalid arguments are refused before any file of the folder is changed, except for the lock
    file.

    Args:
        exp: the experiment.
        folder: run folder, or gs://BUCKET/... address.
        resume: continue from the newest usable checkpoint, if there is one.
        overwrite: delete a run in `folder` first. A folder that is not a run is refused.
        source: config, args, credit and options (from `cli.loading.experiment`), kept in the folder
            with copies of the files.
        profile: first and last step of a profiler trace, written to `folder/profile`.

    Raises:
        FileExistsError: `folder` holds a run (without `resume` and `overwrite`) or other files.
        Locked: another process trains in `folder`.
        Stopped: SIGTERM or Ctrl-C ended the run after saving.
    """
    exp.check()
    with open_run_folder(folder).pull() as run_folder, Preemption() as preemption:
        _on_process_0(lambda: _check_folder(run_folder, resume, overwrite))
        programs = build(exp)
        batches = Batches(len(exp.task.train), exp.prompts_per_step, exp.seed)
        with (
            _locked(run_folder, resume, preemption) as lock,
            _open_checkpoints(exp, run_folder, overwrite) as checkpoints,
        ):
            start_workers(exp.task, exp.reward_workers)
            saved = checkpoints.restore(programs.state) if resume and not overwrite else None
            if saved:
                state, side, start = saved
                batches.set_state(side["batches"])
            else:
                init = with_oom_advice(exp, programs, "init", programs.init)
                state, start = init(jax.random.key(exp.seed)), 0
            resumed = saved is not None
            del saved  # the first update donates the state
            # All checks are done: files may be changed from here on.
            notes = _changes(source, run_folder.path, start) if resumed and source else []
            if jax.process_index() == 0:
                if overwrite:
                    run_folder.clear()
                checkpoints.run = run_folder.write_marker(checkpoints.run)
                if (
                    resumed
                ):  # a run that was killed after its warm-up left the warm-up's checkpoints
                    storage.open_storage(
                        f"{run_folder.checkpoints}/{file_names.WARMUP}"
                    ).delete_all()
                if source:
                    run_source.save(source, run_folder.path, start)
            with (
                HostLog(run_folder.path) as host,
                Profiler(run_folder.path / file_names.PROFILE, profile) as profiler,
            ):
                verb = "go on from" if resumed else "start at"
                for line in (f"{verb} step {start} of {exp.steps}", *notes):
                    host.log(line)
                with _open_metrics(exp, run_folder, start) as metrics:
                    for line in notes:
                        metrics.note(line)
                    services = RunServices(
                        run_folder, lock, preemption, checkpoints, metrics, host, profiler
                    )
                    if not resumed:
                        prepare = with_oom_advice(exp, programs, "evaluate", _prepare)
                        state = prepare(exp, programs, state, batches, services)
                    train(exp, programs, state, batches, services, start=start)
                    checkpoints.wait()
                    return metrics.last


def _check_folder(run_folder: RunFolder, resume: bool, overwrite: bool) -> None:
    """Raise FileExistsError unless a run may start or resume in this folder."""
    if overwrite:
        run_folder.check_removable()
    elif run_folder.kind() == "other":
        raise FileExistsError(
            f"{run_folder.address} holds files that do not belong to a run: choose another --run "
            "name, or move them away"
        )
    elif not resume and (
        (run_folder.path / file_names.METRICS).exists() or Checkpoints.exist(run_folder.checkpoints)
    ):
        raise FileExistsError(
            f"{run_folder.address} holds a run already: go on with --resume auto, or choose "
            "another --run name"
        )


@contextlib.contextmanager
def _locked(run_folder: RunFolder, resume: bool, preemption: Preemption) -> Iterator[Lock | None]:
    """Context with the run folder's lock, held by process 0 (None in others).

    Blocks until the lock is acquired; creates and marks a new folder.
    """
    lock, waited = None, False
    if jax.process_index() == 0:
        run_folder.path.mkdir(parents=True, exist_ok=True)
        lock = Lock(run_folder.address)

    def acquire() -> bool:
        nonlocal waited
        if lock is None:
            return True
        if not run_folder.kind():
            run_folder.write_marker()
            run_folder.push()
        if not (message := lock.acquire(wait=resume)):
            return True
        if not waited:
            print(message, file=sys.stderr, flush=True)
        waited = True
        return False

    while not _on_process_0(acquire):
        if preemption.should_stop(0):
            raise Stopped(preemption.code, 0, NOTHING_SAVED)
        time.sleep(1)
    try:
        if waited:
            run_folder.pull()  # files that the other machine uploaded meanwhile
        yield lock
    finally:
        if lock:
            lock.release()


def _on_process_0(check: Callable[[], Any]) -> bool:
    """Result of `check()` in process 0, broadcast to all processes, as are its exceptions."""
    result, error = False, None
    if jax.process_index() == 0:
        try:
            result = bool(check())
        except Exception as raised:
            error = raised
    code = all_process_sum(float(result) + 2 * (error is not None))
    if error is not None:
        raise error
    if code >= 2:
        raise RuntimeError("process 0 of this job failed before training: see its output")
    return code == 1


def _open_checkpoints(exp: Experiment, run_folder: RunFolder, overwrite: bool) -> Checkpoints:
    return Checkpoints(
        run_folder.checkpoints,
        every=exp.save_every,
        max_to_keep=exp.max_to_keep,
        run=None if overwrite else run_folder.run_id(),
    )


def _open_metrics(exp: Experiment, run_folder: RunFolder, start: int) -> MetricsWriter:
    return MetricsWriter(
        run_folder.path,
        steps=exp.steps,
        start=start,
        title=f"{exp.name} / {method_of(exp.credit).name}",
        config=_config_values(exp),
        address=run_folder.address,
        recent_steps=max(exp.max_skipped_steps, FlatRewards.STEPS),
    )


def _changes(source: Mapping[str, Any], folder: Path, step: int) -> list[str]:
    """Warnings for differences between a run and its resumption: options, and the config file."""
    notes = []
    if changed := run_source.changed_options(folder, source):
        changes = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items())
        notes.append(f"WARNING: from step {step} on this run has other options: {changes}")
    with contextlib.suppress(OSError):
        if (folder / file_names.CONFIG_COPY).read_bytes() != Path(source["config"]).read_bytes():
            notes.append(
                f"WARNING: from step {step} on this run has another config file: "
                f"{source['config']} is not the copy in config.py"
            )
    return notes


def _prepare(
    exp: Experiment, programs: Programs, state: TrainState, batches: Batches, run: RunServices
) -> TrainState:
    """State of a new run after its warm-up (if any), evaluation and checkpoint of step 0."""
    metrics, warmup_checkpoints = {}, None
    with contextlib.ExitStack() as stack:
        if exp.warmup:
            warmup_checkpoints = stack.enter_context(
                Checkpoints(
                    f"{run.folder.checkpoints}/{file_names.WARMUP}",
                    every=exp.save_every,
                    max_to_keep=1,
                    run=run.checkpoints.run,
                )
            )
            state, metrics["warmup/steps"] = _warm_up(exp, programs, state, run, warmup_checkpoints)
        try:
            with run.preemption.interruptible():
                eval_metrics, examples = evaluate_greedy(exp, programs, state.params)
        except StopRequested:
            if warmup_checkpoints:
                warmup_checkpoints.wait()
            saved = "the end of the warm-up is saved" if warmup_checkpoints else NOTHING_SAVED
            raise Stopped(run.preemption.code, 0, saved) from None
        metrics |= eval_metrics
        if exp.warmup and metrics["eval/greedy_accuracy"] == 0:
            warnings.warn(
                "after the warm-up no held-out problem is solved: reinforcement has nothing to "
                "reinforce; warm up longer",
                stacklevel=2,
            )
        run.metrics.log_samples(0, examples)
        run.metrics.log(0, metrics)
        run.metrics.flush()
        run.folder.push()
        if warmup_checkpoints:
            warmup_checkpoints.wait()
        run.checkpoints.save(0, state, {"batches": batches.get_state()})
        if warmup_checkpoints:  # needed until the run's own first checkpoint is complete
            run.checkpoints.wait()
            warmup_checkpoints.delete_all()
    return state


def _warm_up(
    exp: Experiment,
    programs: Programs,
    state: TrainState,
    run: RunServices,
    checkpoints: Checkpoints,
) -> tuple[TrainState, int]:
    """State after the warm-up, and its number of steps. A request to stop raises Stopped."""
    try:
        return warm_up(
            exp,
            programs,
            state,
            lambda params: greedy_accuracy(exp, programs, params),
            run.metrics.note,
            saves=checkpoints,
            stop=run.preemption,
        )
    except Interrupted as interrupted:
        saved = f"step {interrupted.step} of the warm-up is saved"
        raise Stopped(
            run.preemption.code, 0, saved if interrupted.step else NOTHING_SAVED
        ) from None


def _config_values(exp: Experiment) -> dict:
    """Fields of the experiment for config.json; of the task, the numbers of problems."""
    task = {
        "name": exp.task.name,
        "train": len(exp.task.train),
        "test": len(exp.task.test),
        "demos": len(exp.task.demos),
    }
    return {**{f.name: getattr(exp, f.name) for f in dataclasses.fields(exp)}, "task": task}
