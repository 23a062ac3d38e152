"""Requests to stop: saved state, messages, and resumed runs equal to uninterrupted ones."""

import dataclasses
import os
import signal
import sys

import optax
import pytest
from micro_experiment import ITEMS, build, experiment, score
from paths import MICRO
from run_metrics import metrics_without_times

from jaxcredit.cli import main as cli
from jaxcredit.collect import single_turn as collect
from jaxcredit.tasks import Task
from jaxcredit.train import evaluation
from jaxcredit.train import supervised as warmup
from jaxcredit.train.experiment import Warmup
from jaxcredit.train.run import Stopped, run
from jaxcredit.train.runs.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:after the warm-up no held-out problem is solved")
DEMOS = [{**item, "answer": item["meta"]} for item in ITEMS]


@pytest.fixture(autouse=True)
def one_compile(monkeypatch):
    monkeypatch.setattr("jaxcredit.train.run.build", build)


def warm(steps=2):
    """Warm-up of six steps, evaluated and saved every second step."""
    plan = Warmup(steps=6, batch=16, until=2.0, every=2, optimizer=optax.adam(1e-2))
    return dataclasses.replace(
        experiment(steps=steps),
        task=Task("micro", ITEMS[:48], ITEMS[48:], score, DEMOS),
        warmup=plan,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "micro"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcredit.train.run.build", build)
        run(warm(), folder)
    assert not (folder / "checkpoints/warm-up").exists()
    return folder


# Calls during which the request arrives: evaluations in and after the warm-up, then scoring in two
# steps.
MOMENTS = {
    "the first step of the warm-up": (
        warmup,
        "demonstrations",
        1,
        "step 1 of the warm-up is saved",
    ),
    "a later step of the warm-up": (warmup, "demonstrations", 3, "step 3 of the warm-up is saved"),
    "a look in the warm-up": (evaluation, "answer_batches", 1, "step 2 of the warm-up is saved"),
    "the last look in the warm-up": (
        evaluation,
        "answer_batches",
        3,
        "step 6 of the warm-up is saved",
    ),
    "the look before the first step": (
        evaluation,
        "answer_batches",
        4,
        "the end of the warm-up is saved",
    ),
    "judging the first answers": (collect, "decode_and_score", 1, "step 0 is saved"),
    "judging later answers": (collect, "decode_and_score", 2, "step 1 is saved"),
}


def asking(monkeypatch, where, name, call, signum=signal.SIGTERM):
    """Send this process a signal in the given call of a function."""
    real, calls = getattr(where, name), 0

    def asked(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signum)
        return real(*args, **kwargs)

    monkeypatch.setattr(where, name, asked)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_asked_to_stop_goes_on_as_if_it_never_had(
    moment, whole, tmp_path, monkeypatch
):
    *where, kept = MOMENTS[moment]
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        asking(patch, *where)
        run(warm(), tmp_path / "micro")
    assert (stopped.value.code, stopped.value.saved) == (143, kept)
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before
    assert not (tmp_path / "micro/lock.json").exists()
    run(warm(), tmp_path / "micro", resume=True)
    assert metrics_without_times(tmp_path / "micro") == metrics_without_times(whole)
    assert (tmp_path / "micro/samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert not (tmp_path / "micro/checkpoints/warm-up").exists()


@pytest.mark.parametrize("call", [2, 5], ids=["in the middle", "at its end"])
def test_a_warm_up_that_is_killed_goes_on_as_if_it_never_had(call, whole, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    calls, save = 0, Checkpoints.save

    def killed(self, *args):
        nonlocal calls
        calls += 1
        if calls == call:  # saves at steps 2, 4 and 6 of the warm-up, then at step 0 of the run
            raise Killed
        save(self, *args)
        self.wait()

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", killed)
        run(warm(), tmp_path / "micro")
    run(warm(), tmp_path / "micro", resume=True)
    assert metrics_without_times(tmp_path / "micro") == metrics_without_times(whole)


def test_a_warm_up_that_was_stopped_is_a_run_that_is_not_begun_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        asking(patch, *MOMENTS["a later step of the warm-up"][:3])
        run(warm(), tmp_path / "micro")
    with pytest.raises(FileExistsError, match="holds a run already"):
        run(warm(), tmp_path / "micro")


def test_ctrl_c_saves_and_names_the_step_and_the_command_to_go_on(tmp_path, monkeypatch, capfd):
    asking(monkeypatch, collect, "decode_and_score", 3, signal.SIGINT)
    argv = [
        "train",
        MICRO,
        "--runs",
        str(tmp_path),
        "--steps",
        "9",
    ]
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 130
    told = capfd.readouterr().err
    assert "saving the last whole step (Ctrl-C again stops at once, without saving)" in told
    assert f"stopped as asked: step 2 is saved in {tmp_path}/micro; go on with" in told
    assert f"jaxcredit {' '.join(argv)} --resume auto" in told
    with Checkpoints(tmp_path / "micro/checkpoints") as checkpoints:
        assert checkpoints.steps()[-1] == 2


def test_the_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    log = sys.modules["jaxcredit.train.runs.metrics"].MetricsWriter.log

    def twice(self, step, metrics):
        log(self, step, metrics)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("jaxcredit.train.runs.metrics.MetricsWriter.log", twice)
    with pytest.raises(KeyboardInterrupt):
        run(experiment(steps=9), tmp_path / "micro")
