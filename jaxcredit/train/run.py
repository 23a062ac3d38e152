"""A whole run: resume or warm up, then train, evaluate, save and record until the last step or a polite request to stop."""

import contextlib
import dataclasses
import functools
import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from jaxcredit.collect.batches import Batches
from jaxcredit.collect.single_turn import single_turn, until_mixed
from jaxcredit.credit import method_of
from jaxcredit.parallel.processes import all_process_sum
from jaxcredit.tasks import statistics as evaluate
from jaxcredit.tasks.scoring import start_workers
from jaxcredit.train import evaluation as assess
from jaxcredit.train import failures as trouble
from jaxcredit.train.experiment import Experiment, round_up
from jaxcredit.train.loop import train
from jaxcredit.train.planning import flops
from jaxcredit.train.programs import Programs, build, steps_of
from jaxcredit.train.runs import source as run_source
from jaxcredit.train.runs import storage
from jaxcredit.train.runs.checkpoint import Checkpoints
from jaxcredit.train.runs.folder import BucketRunFolder, RunFolder, open_run_folder
from jaxcredit.train.runs.host_log import HostLog
from jaxcredit.train.runs.lock import Lock
from jaxcredit.train.runs.metrics import MetricsWriter
from jaxcredit.train.runs.preemption import Preemption, StopRequested
from jaxcredit.train.runs.profiling import Profiler
from jaxcredit.train.runs.timing import StepTimer
from jaxcredit.train.supervised import Interrupted, warm_up
from jaxcredit.train.update import TrainState

WARMUP = "warm-up"  # folder of the warm-up's checkpoints, below those of the run


class Stopped(SystemExit):
    """Exit after a request to stop: `step` is the last step, `kept` describes the saved state and `code` is the exit status."""

    def __init__(self, code: int, step: int, kept: str = ""):
        super().__init__(code)
        self.step, self.kept = step, kept or f"step {step} is saved"


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

    Invalid arguments are refused before any file of the folder is changed, except for the lock file.

    Args:
        exp: the experiment.
        folder: run folder, or gs://BUCKET/... address.
        resume: continue from the newest usable checkpoint, if there is one.
        overwrite: delete a run in `folder` first. A folder that is not a run is refused.
        source: config, args, credit and options (from `find.experiment`), kept in the folder with copies of the files.
        profile: first and last step of a profiler trace, written to `folder/profile`.

    Raises:
        FileExistsError: `folder` holds a run (without `resume` and `overwrite`) or other files.
        Locked: another process trains in `folder`.
        Stopped: SIGTERM or Ctrl-C ended the run after saving.
    """
    exp.check()
    with open_run_folder(folder).pull() as place, Preemption() as preempted:
        _agreed(lambda: _admit(place, resume, overwrite))
        programs = build(exp)
        batches = Batches(len(exp.task.train), exp.prompts_per_step, exp.seed)
        with _locked(place, resume, preempted) as lock:
            return _run(
                exp, place, lock, preempted, programs, batches, resume, overwrite, source, profile
            )


def _admit(place: RunFolder, resume: bool, overwrite: bool) -> None:
    """Raise FileExistsError unless a run may start or resume in this folder."""
    if overwrite:
        place.check_removable()
    elif place.kind() == "other":
        raise FileExistsError(
            f"{place.address} holds files that do not belong to a run: choose another --run name, or move them away"
        )
    elif not resume and (
        (place.path / "metrics.jsonl").exists() or Checkpoints.exist(place.checkpoints)
    ):
        raise FileExistsError(
            f"{place.address} holds a run already: go on with --resume auto, or choose another --run name"
        )


@contextlib.contextmanager
def _locked(place: RunFolder, resume: bool, preempted: Preemption) -> Iterator[Lock | None]:
    """Context with the run folder's lock, held by process 0 (None in others). Blocks until acquired; creates and marks a new folder."""
    lock, waited = None, False
    if jax.process_index() == 0:
        place.path.mkdir(parents=True, exist_ok=True)
        lock = Lock(place.address)

    def take() -> bool:
        nonlocal waited
        if lock is None:
            return True
        if not place.kind():
            place.write_marker()
            place.push()
        if not (message := lock.acquire(wait=resume)):
            return True
        if not waited:
            print(message, file=sys.stderr, flush=True)
        waited = True
        return False

    while not _agreed(take):
        if preempted.should_stop(0):
            raise Stopped(preempted.code, 0, "nothing had been learned yet")
        time.sleep(1)
    try:
        if waited:
            place.pull()  # files that the other machine uploaded meanwhile
        yield lock
    finally:
        if lock:
            lock.release()


def _agreed(check: Callable[[], Any]) -> bool:
    """Result of `check()` in process 0, broadcast to all processes. An exception in it is raised in all of them."""
    answer, error = False, None
    if jax.process_index() == 0:
        try:
            answer = bool(check())
        except Exception as raised:
            error = raised
    verdict = all_process_sum(float(answer) + 2 * (error is not None))
    if error is not None:
        raise error
    if verdict >= 2:
        raise RuntimeError("process 0 of this job failed before training: see its output")
    return verdict == 1


def _run(
    exp: Experiment,
    place: RunFolder,
    lock: Lock | None,
    preempted: Preemption,
    programs: Programs,
    batches: Batches,
    resume: bool,
    overwrite: bool,
    source: Mapping[str, Any] | None,
    profile: tuple[int, int] | None,
) -> dict[str, Any]:
    folder, first = place.path, jax.process_index() == 0
    start_workers(exp.task, exp.reward_workers)
    named = functools.partial(trouble.with_oom_advice, exp, programs)
    with contextlib.ExitStack() as stack:
        identity = None if overwrite else place.run_id()
        checkpoints = stack.enter_context(
            Checkpoints(
                place.checkpoints, every=exp.save_every, max_to_keep=exp.max_to_keep, run=identity
            )
        )
        state = named("init", programs.init)(jax.random.key(exp.seed))
        saved = checkpoints.restore(state) if resume and not overwrite else None
        begin = 0
        if saved:
            state, side, begin = saved
            batches.set_state(side["batches"])
        # All checks are done: files may be changed from here on.
        notes = _changes(source, folder, begin) if saved and source else []
        if first:
            if overwrite:
                place.clear()
            checkpoints.run = place.write_marker(checkpoints.run)
            if saved:
                storage.open_storage(f"{place.checkpoints}/{WARMUP}").delete_all()  # left by a kill
            if source:
                run_source.save(source, folder, begin)
        host = stack.enter_context(HostLog(folder))
        profiler = stack.enter_context(Profiler(folder / "profile", profile))
        for line in [
            f"{'go on from' if saved else 'start at'} step {begin} of {exp.steps}",
            *notes,
        ]:
            host.log(line)
        with MetricsWriter(
            folder,
            steps=exp.steps,
            start=begin,
            title=f"{exp.name} / {method_of(exp.credit).name}",
            config=_resolved(exp),
            address=place.address,
            recent_steps=max(exp.max_skipped_steps, trouble.FlatRewards.STEPS),
        ) as records:
            for line in notes:
                records.note(line)
            if not saved:
                state = named("evaluate", _first)(
                    exp, programs, state, records, checkpoints, batches, place, preempted
                )
            pieces, look, watch = (
                steps_of(exp, programs),
                named("evaluate", evaluation),
                StepTimer(),
            )
            sampling, flat = _collector(exp, programs, batches), trouble.FlatRewards()
            at = SimpleNamespace(step=begin, stop=False, state=state, batches=batches.get_state())
            remote = isinstance(place, BucketRunFolder)

            def collect(*args):
                """Dispatch sampling. Calling the return value awaits it. A request to stop interrupts both, unless sampling ahead."""
                with preempted.interruptible(not exp.sample_ahead):
                    waiting = named("sample", sampling)(*args)

                def wait():
                    with preempted.interruptible(not exp.sample_ahead):
                        return named("sample", waiting)()

                return wait

            def ahead() -> bool:
                """Not before a save: what is saved knows nothing of answers that nobody has learned from."""
                at.step += 1
                at.stop = preempted.should_stop(at.step)
                return exp.sample_ahead and not (
                    at.stop or checkpoints.due(at.step) or at.step == exp.steps
                )

            def save(step, state, drawn):
                if lock and remote:
                    lock.check()
                records.flush()
                place.push()
                checkpoints.save(step, state, {"batches": drawn})
                host.log(
                    f"save step {step}{', asked to stop' if at.stop or preempted.stop_requested else ''}"
                )

            def log(state, collected, metrics) -> bool:
                step = at.step
                profiler.after_step(step, state)
                if lock and not remote:
                    lock.check()
                metrics["flops"] = flops.step_flops(exp, collected.rollout, metrics["tokens"])
                metrics["time/work_s"] = watch.stop()
                saving = checkpoints.due(step) or step == exp.steps or at.stop
                if looking := step % exp.eval_every == 0 or step == exp.steps:
                    facts, shown = look(exp, programs, state.params)
                    metrics |= facts
                    records.log_samples(step, shown)
                records.log(step, metrics)
                host.log_step(
                    step,
                    **{
                        name: metrics[f"time/{name}"]
                        for name in ("work_s", "update_s", "sample_s", "reward_s")
                    },
                )
                at.state, at.batches = state, batches.get_state()
                if saving:
                    save(step, state, at.batches)
                elif looking:
                    records.flush()
                    place.push()
                flat.look(records.recent)
                lost = trouble.skipped(exp, records.recent)
                if lost >= exp.max_skipped_steps:
                    rollout = pieces["annotate"](state, collected)
                    columns = pieces["credit"](rollout)
                    checkpoints.wait()
                    raise trouble.Diverged(
                        trouble.explain_nonfinite(
                            exp, programs, state.params, rollout, columns, lost, checkpoints.steps()
                        )
                    )
                if at.stop and step < exp.steps:
                    checkpoints.wait()
                    raise Stopped(preempted.code, step)
                profiler.before_step(step + 1)
                watch.start()
                return step == exp.steps

            if begin < exp.steps:
                profiler.before_step(begin + 1)
                watch.start()
                try:
                    train(
                        state,
                        batches,
                        collect=collect,
                        annotate=named("signals", pieces["annotate"]),
                        credit=named("credit", pieces["credit"]),
                        update=named("update", pieces["update"]),
                        log=log,
                        ahead=ahead,
                    )
                except StopRequested:
                    save(at.step, at.state, at.batches)
                    checkpoints.wait()
                    raise Stopped(preempted.code, at.step) from None
            checkpoints.wait()
            return records.last


def _changes(source: Mapping[str, Any], folder: Path, step: int) -> list[str]:
    """What a resume changes of its run: options, and the config file. The seed, the batch and the architecture cannot be changed."""
    notes = []
    if changed := run_source.changed_options(folder, source):
        said = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items())
        notes.append(f"WARNING: from step {step} on this run has other options: {said}")
    with contextlib.suppress(OSError):
        if (folder / "config.py").read_bytes() != Path(source["config"]).read_bytes():
            notes.append(
                f"WARNING: from step {step} on this run has another config file: {source['config']} is not the copy in config.py"
            )
    return notes


def reopen(
    exp: Experiment, folder: str | Path, *, step: int | None = None
) -> tuple[Programs, Any, int]:
    """The programs of a finished or running run, its parameters at `step` (None: the newest usable) and that step."""
    programs = build(exp)
    place = open_run_folder(folder)
    with Checkpoints(place.checkpoints, run=place.run_id()) as checkpoints:
        saved = checkpoints.restore({"params": programs.state.params}, step=step, partial=True)
    if saved is None:
        raise FileNotFoundError(
            f"{folder} holds no usable checkpoint yet: let the run reach its first save (every {exp.save_every} steps)"
        )
    return programs, saved[0]["params"], saved[2]


def greedy(exp: Experiment, programs: Programs, weights) -> tuple[float, list[dict]]:
    """Held-out accuracy of greedy answers, and a few of them to look at."""
    facts, shown = evaluation(exp, programs, weights)
    return facts["eval/greedy_accuracy"], shown


def evaluation(exp: Experiment, programs: Programs, weights) -> tuple[dict[str, float], list[dict]]:
    """Metrics of greedy answers to the held-out problems, and a few answers to look at. Accuracy is the share of rewards of at least 1;
    unscored answers are in neither mean."""
    items, batch = exp.held_out()
    answers = assess.whole(
        list(
            assess.answer(
                programs.greedy,
                weights,
                exp.tokenizer,
                exp.task,
                items,
                **_how(exp, programs, batch),
            )
        )
    )
    shown = [
        {"prompt": item["prompt"], "answer": text[0], "score": float(score[0])}
        for item, text, score in zip(answers.items[:8], answers.texts, answers.scores, strict=False)
    ]
    scores = answers.scores[~np.isnan(answers.scores)]
    facts = {
        "eval/greedy_accuracy": assess.mean(scores >= 1),
        "eval/greedy_reward": assess.mean(scores),
    }
    return facts | {"eval/unscored": all_process_sum(answers.scores.size - scores.size)}, shown


def sampled(
    exp: Experiment,
    programs: Programs,
    weights,
    k: int,
    *,
    items=None,
    temperature: float | None = None,
    seed: int = 0,
) -> assess.Answers:
    """`k` answers to each held-out problem at the experiment's temperature."""
    items = list(itertools.islice(exp.task.test, exp.eval_prompts)) if items is None else items
    temperature = exp.temperature if temperature is None else temperature
    draw = functools.partial(programs.sample, rows=k, temperature=temperature)
    batch = min(
        round_up(len(items), exp.prompts_per_step),
        exp.prompts_per_step * max(1, exp.group_size // k),
    )
    return assess.whole(
        list(
            assess.answer(
                draw,
                weights,
                exp.tokenizer,
                exp.task,
                items,
                key=jax.random.key(seed),
                **_how(exp, programs, batch),
            )
        )
    )


def report(exp: Experiment, programs: Programs, weights, k: int, *, seed: int = 0) -> dict:
    """Everything `jaxcredit eval` says: greedy accuracy, mean@k, pass@1..k, intervals, lengths, truncation."""
    items, batch = exp.held_out()
    best = assess.whole(
        list(
            assess.answer(
                programs.greedy,
                weights,
                exp.tokenizer,
                exp.task,
                items,
                **_how(exp, programs, batch),
            )
        )
    )
    drawn = sampled(exp, programs, weights, k, items=items, seed=seed)
    ks = sorted({1, k} | {j for j in (2, 4, 8, 16) if j < k})
    return evaluate.summary(
        drawn.scores, greedy=best.scores[:, 0], lengths=drawn.lengths, done=drawn.done, ks=ks
    )


def _first(exp, programs, state, records, checkpoints, batches, place, preempted) -> TrainState:
    """What a fresh run does before its first step: supervise if asked, look at the accuracy, save."""
    facts = {}
    with contextlib.ExitStack() as stack:
        early = None
        if exp.warmup:
            early = stack.enter_context(
                Checkpoints(
                    f"{place.checkpoints}/{WARMUP}",
                    every=exp.save_every,
                    max_to_keep=1,
                    run=checkpoints.run,
                )
            )
            look = lambda weights: greedy(exp, programs, weights)[0]  # noqa: E731
            try:
                state, facts["warmup/steps"] = warm_up(
                    exp, programs, state, look, records.note, saves=early, stop=preempted
                )
            except Interrupted as interrupted:
                kept = (
                    f"step {interrupted.step} of the warm-up is saved"
                    if interrupted.step
                    else "nothing had been learned yet"
                )
                raise Stopped(preempted.code, 0, kept) from None
        try:
            with preempted.interruptible():
                seen, shown = evaluation(exp, programs, state.params)
        except StopRequested:
            if early:
                early.wait()
            raise Stopped(
                preempted.code,
                0,
                "the end of the warm-up is saved" if early else "nothing had been learned yet",
            ) from None
        facts |= seen
        if exp.warmup and facts["eval/greedy_accuracy"] == 0:
            warnings.warn(
                "after the warm-up no held-out problem is solved: reinforcement has nothing to reinforce; warm up longer",
                stacklevel=2,
            )
        records.log_samples(0, shown)
        records.log(0, facts)
        records.flush()
        place.push()
        if early:
            early.wait()
        checkpoints.save(0, state, {"batches": batches.get_state()})
        if early:  # is needed until the run's own first checkpoint is whole
            checkpoints.wait()
            early.delete_all()
    return state


def _collector(exp: Experiment, programs: Programs, batches: Batches):
    collect = single_turn(
        programs.sample,
        exp.tokenizer,
        exp.task,
        group_size=exp.group_size,
        buckets=exp.buckets,
        sharding=programs.batch,
        timeout_s=exp.reward_timeout_s,
        workers=exp.reward_workers,
    )
    if exp.max_sampling_rounds == 1:
        return collect
    return until_mixed(collect, lambda: next(batches), exp.max_sampling_rounds, programs.batch)


def _how(exp, programs, batch):
    rewards = {"timeout_s": exp.reward_timeout_s, "workers": exp.reward_workers}
    return {"buckets": exp.buckets, "batch": batch, "sharding": programs.batch, **rewards}


def _resolved(exp: Experiment) -> dict:
    """Every field of the experiment, problems as their number."""
    task = {
        "name": exp.task.name,
        "train": len(exp.task.train),
        "test": len(exp.task.test),
        "demos": len(exp.task.demos),
    }
    return {**{f.name: getattr(exp, f.name) for f in dataclasses.fields(exp)}, "task": task}
