"""Whole runs of a micro policy: files, refused settings, and complete recovery after errors."""

import dataclasses
import gzip
import itertools
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from micro_experiment import ITEMS, build, experiment, score
from run_metrics import metrics_without_times

from jaxcredit import credit
from jaxcredit.parallel import params
from jaxcredit.policy import transformer
from jaxcredit.policy.tokenizer import Chars
from jaxcredit.tasks import Task
from jaxcredit.train.experiment import Warmup
from jaxcredit.train.failures import Diverged, OutOfMemory
from jaxcredit.train.programs import build as build_programs
from jaxcredit.train.programs import compose_step
from jaxcredit.train.restore import restore_params
from jaxcredit.train.run import Stopped, run
from jaxcredit.train.runs.checkpoint import CheckpointWarning
from jaxcredit.train.runs.json_lines import read_metrics
from jaxcredit.train.runs.metrics import MetricsWriter

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: (
        compiled.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
    )
)


@pytest.fixture(autouse=True)
def one_compile(monkeypatch):
    monkeypatch.setattr("jaxcredit.train.run.build", build)


def change(exp=None, /, **fields):
    return dataclasses.replace(exp or experiment(), **fields)


def task(reward=score, items=ITEMS, **fields):
    return Task("micro", items[:48], items[48:], reward, **fields)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Folder of a run of six steps, and the number of compiled programs at each logged step."""
    folder, log, counts = tmp_path_factory.mktemp("run") / "micro", MetricsWriter.log, {}

    def counted(self, step, metrics):
        counts[step] = len(compiled)
        log(self, step, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcredit.train.run.build", build)
        patch.setattr(MetricsWriter, "log", counted)
        run(experiment(steps=6), folder, profile=(3, 4))
    return folder, counts


def test_what_a_run_leaves(done):
    folder, _ = done
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(7))
    assert [line["step"] for line in lines if "eval/greedy_accuracy" in line] == [0, 2, 4, 6]
    for name in (
        "loss",
        "reward",
        "entropy",
        "clip_fraction",
        "prefix_collisions",
        "sampler_logp_diff",
        "truncated",
        "tokens",
        "time/tokens_per_s",
    ):
        assert all(np.isfinite(line[name]) for line in lines[1:]), name
    assert all(line["sampler_logp_diff_max"] < 1e-4 for line in lines[1:])
    assert all(
        line["flops"] > 1e5 and 0 < line["time/work_s"] and 0 < line["time/goodput"] < 1
        for line in lines[1:]
    )
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((folder / "tensorboard").glob("events*"))
    said = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {line["step"] for line in said} == {0, 2, 4, 6} and {"prompt", "answer", "score"} <= set(
        said[0]
    )
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["group_size"] == 4 and config["task"] == {
        "name": "micro",
        "train": 48,
        "test": 16,
        "demos": 0,
    }
    assert sorted(p.name for p in (folder / "checkpoints").iterdir() if p.is_dir()) == [
        "00000004",
        "00000006",
    ]


def test_hosts_and_a_profile(done):
    folder, _ = done
    told = (folder / "hosts/00000.log").read_text()
    assert (
        "start at step 0 of 6" in told and "save step 4" in told and told.rstrip().endswith("end")
    )
    own = [json.loads(line) for line in (folder / "hosts/00000.jsonl").read_text().splitlines()]
    assert [line["step"] for line in own] == list(range(1, 7)) and all(
        x["work_s"] >= x["sample_s"] for x in own[2:]
    )
    traces = list((folder / "profile").rglob("*.trace.json.gz"))
    assert len(traces) == 1
    said = gzip.decompress(traces[0].read_bytes()).decode()
    for name in ("sample", "credit", "update"):
        assert f'"name":"{name}"' in said
    assert [f'"step_num":"{k}"' in said for k in (2, 3, 4, 5)] == [False, True, True, False]


def test_nothing_compiles_after_the_first_steps(done):
    _, counts = done
    assert counts[0] > 0, (
        "compiling is not being counted"
    )  # the step itself may have been compiled for another test
    assert counts[6] == counts[2]


def test_a_folder_that_holds_a_run_is_left_alone(done):
    folder, _ = done
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match=r"holds a run already.*--resume auto.*--run"):
        run(experiment(), folder)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_resume_goes_on_and_a_damaged_newest_checkpoint_costs_steps_only(done, tmp_path):
    run(experiment(steps=4), tmp_path)
    array = max(
        (p for p in (tmp_path / "checkpoints/00000004").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    os.truncate(array, array.stat().st_size - 1)
    with pytest.warns(CheckpointWarning, match="00000004 is damaged.*trying the one before"):
        run(experiment(steps=6), tmp_path, resume=True)

    assert metrics_without_times(tmp_path) == metrics_without_times(done[0])


def test_a_finished_run_resumed_stays_as_it_is(done):
    before = (done[0] / "metrics.jsonl").read_bytes()
    assert run(experiment(steps=6), done[0], resume=True)["step"] == 6
    assert (done[0] / "metrics.jsonl").read_bytes() == before


# Errors of the reward in the fifth batch: steps 1 to 4 and their checkpoint remain, and the run
# resumes from it.


def raises(meta, text):
    raise KeyError("gold")


def alarms(meta, text):
    """A reward that sets an alarm signal, as math-verify does, and hangs."""
    signal.alarm(5)
    signal.alarm(0)
    time.sleep(1e6)


REWARDS = {
    "alarms": (alarms, r"(?s)did not return within 0\.3 s.*prompt: .*response: "),
    "leaves": (
        lambda meta, text: os._exit(7),
        r"(?s)ended its process \(exit code 7\).*prompt: .*response: ",
    ),
    "huge": (
        lambda meta, text: 1e39,
        r"(?s)returned 1e\+39, and rewards go up to 1e\+30.*prompt: .*response: ",
    ),
    "raises": (raises, r"(?s)raised KeyError.*prompt: .*response: .*Make it return a number"),
    "nan": (
        lambda meta, text: float("nan"),
        r"(?s)returned nan, which is not finite.*Return a finite float",
    ),
    "hangs": (
        lambda meta, text: time.sleep(60),
        r"(?s)did not return within 0\.3 s.*Bound its loops",
    ),
}


@pytest.mark.parametrize("kind", REWARDS)
def test_a_reward_that_fails_stops_the_run_and_loses_nothing(kind, tmp_path):
    fails, message = REWARDS[kind]
    calls = 0

    def reward(meta, text, ids):
        nonlocal calls
        calls += 1
        return (
            fails(meta, text) if calls > 8 + 2 * 16 + 8 + 4 else score(meta, text, ids)
        )  # the look before, two steps, a look, and some

    exp = change(task=task(reward), reward_timeout_s=0.3, save_every=1, steps=4)
    with pytest.raises(RuntimeError, match=message):
        run(exp, tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2]
    last = run(change(exp, task=task()), tmp_path, resume=True)
    assert last["step"] == 4 and [line["step"] for line in read_metrics(tmp_path)] == [
        0,
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_while_a_reward_hangs_saves_the_last_whole_step(number, tmp_path):
    calls = 0

    def reward(meta, text, ids):
        nonlocal calls
        calls += 1
        if calls > 8 + 2 * 16 + 8 + 4:
            os.kill(os.getppid(), number)
            time.sleep(1e6)
        return score(meta, text, ids)

    exp = change(task=task(reward), reward_timeout_s=1e5, save_every=100, steps=3)
    with pytest.raises(Stopped):
        run(exp, tmp_path / "stopped")
    assert [line["step"] for line in read_metrics(tmp_path / "stopped")] == [0, 1, 2]
    run(change(exp, task=task()), tmp_path / "stopped", resume=True)
    run(change(exp, task=task()), tmp_path / "whole")
    assert metrics_without_times(tmp_path / "stopped") == metrics_without_times(tmp_path / "whole")


def test_a_resume_reads_no_pretrained_weights_and_makes_no_other_state(tmp_path, monkeypatch):
    loads = []

    def load_params(shardings):
        loads.append(shardings)
        return jax.jit(lambda key: params.init(transformer.specs(exp.policy), key))(
            jax.random.key(7)
        )

    exp = change(experiment(steps=2), load_params=load_params)
    programs = build_programs(exp)
    monkeypatch.setattr("jaxcredit.train.run.build", lambda exp: programs)
    run(exp, tmp_path / "parts")
    assert len(loads) == 1
    run(change(exp, steps=4), tmp_path / "parts", resume=True)
    assert len(loads) == 1
    run(change(exp, steps=4), tmp_path / "whole")
    assert metrics_without_times(tmp_path / "parts") == metrics_without_times(tmp_path / "whole")


def poisoned(monkeypatch, batches):
    """The credit of these batches is not finite."""
    calls = itertools.count(1)

    @jax.jit
    def poison(advantage):
        return advantage.at[0, 0].set(jnp.nan)

    def compose(exp, programs):
        def credit(rollout):
            columns = step.credit(rollout)
            if next(calls) not in batches:
                return columns
            return {**columns, "advantage": poison(columns["advantage"])}

        step = compose_step(exp, programs)
        return step._replace(credit=credit)

    monkeypatch.setattr("jaxcredit.train.loop.compose_step", compose)


def test_a_step_without_a_finite_gradient_is_skipped_and_the_run_goes_on(tmp_path, monkeypatch):
    poisoned(monkeypatch, {2})
    run(change(experiment(steps=4), max_skipped_steps=2), tmp_path)
    lines = read_metrics(tmp_path)[1:]
    assert [line["skipped"] for line in lines] == [0, 1, 0, 0] and lines[1][
        "update_norm"
    ] == 0 < lines[2]["update_norm"]
    assert lines[1]["loss"] is None and all(
        np.isfinite(line["loss"]) for line in (lines[0], lines[2], lines[3])
    )


def test_many_in_a_row_stop_the_run_with_a_diagnosis_and_the_last_good_state_is_kept(
    tmp_path, monkeypatch
):
    poisoned(monkeypatch, {*range(3, 100)})
    message = r"(?s)[34] steps in a row had no finite gradient.*First not finite: the credit's column advantage \(.*Fix: correct the estimator"
    with pytest.raises(Diverged, match=message + r".*checkpoints of steps .*are good"):
        run(change(experiment(steps=40), max_skipped_steps=3), tmp_path)
    lines = read_metrics(tmp_path)
    assert (
        sum(line.get("skipped", 0) for line in lines) >= 3 and lines[-1]["step"] <= 6
    )  # metrics are read a step late
    monkeypatch.undo()
    monkeypatch.setattr("jaxcredit.train.run.build", build)
    _, weights, step = restore_params(experiment(), tmp_path)
    assert step >= 2 and all(np.isfinite(x).all() for x in jax.tree.leaves(weights))
    assert (
        run(change(experiment(steps=step + 2), max_skipped_steps=3), tmp_path, resume=True)[
            "skipped"
        ]
        == 0
    )


def test_too_little_memory_is_told_with_what_to_change(tmp_path, monkeypatch):
    def full(state, rollout, columns):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 27049066496 bytes."
        )

    monkeypatch.setattr(
        "jaxcredit.train.loop.compose_step",
        lambda exp, programs: compose_step(exp, programs)._replace(update=full),
    )
    with pytest.raises(
        OutOfMemory, match=r"out of memory in update.*micro_batch=1 \(prompts a pass, now 4"
    ):
        run(experiment(), tmp_path)
    assert "OutOfMemory" in (tmp_path / "hosts/00000.log").read_text()


# Errors that are raised before anything is compiled.

BAD = {
    "a missing signal": (
        dict(credit=credit.san),
        r"san needs the signal stratum.*Add to the config.*signals.strata\(\).*nothing more: .*grpo",
    ),
    "a group of one": (
        dict(group_size=1),
        r"tempo compares the trajectories of a group, and group_size = 1: sample at least 2 a prompt",
    ),
    "beta without a reference": (dict(beta=0.1), r"beta = 0.1 .*signals\.reference\(\)"),
    "a large tokenizer": (
        dict(tokenizer=Chars("abcdefgh>")),
        "the tokenizer has 11 ids, the policy embeds 7; take the tokenizer of",
    ),
    "a minibatch that does not divide": (
        dict(minibatch=3),
        "minibatch must divide prompts_per_step: 3 does not divide 4",
    ),
    "micro that does not divide": (dict(minibatch=2, micro_batch=4), "micro_batch"),
    "a warm-up without demonstrations": (dict(warmup=Warmup()), "task 'micro' has no demos"),
    "more prompts than there are": (
        dict(prompts_per_step=64),
        "a step takes 64 prompts and the task has 48",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_work_is_said_before_any_device_work(what, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcredit.train.run.build", lambda exp: pytest.fail("programs were built"))
    fields, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        run(change(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_processes_without_a_mesh_are_refused(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(
        ValueError,
        match="2 processes without a mesh would train a model each: set mesh, such as {'fsdp': -1}",
    ):
        experiment().check()


def test_a_prompt_longer_than_the_bucket_is_named(tmp_path):
    items = [*ITEMS[:48], {"prompt": "abcdabcd>", "meta": "dcbadcba"}]
    with pytest.raises(
        ValueError,
        match="has 9 tokens, the largest prompt bucket holds 4: add a bucket of at least 9, or shorten",
    ):
        run(change(task=Task("micro", items[:48], items[48:], score)), tmp_path)


@pytest.mark.slow
def test_ppo_trains_without_peers_with_its_critic_while_a_reference_holds_it(tmp_path):
    run(experiment(steps=4, group=1, critic=True, beta=0.1), tmp_path)
    lines = read_metrics(tmp_path)
    assert all(np.isfinite(line["loss"]) for line in lines[1:])
    assert lines[1]["critic/explained_variance"] == pytest.approx(0, abs=1e-6), (
        "a critic begins at 0"
    )
    assert abs(lines[4]["critic/explained_variance"]) > 1e-4
    assert lines[1]["kl"] == pytest.approx(0, abs=1e-9) and lines[4]["kl"] > 1e-6


def test_dynamic_sampling_keeps_mixed_groups_and_counts_what_it_cost(tmp_path):
    """A tenth of the groups have no signal; three sampling rounds suffice."""
    dull = {item["meta"] for item in ITEMS[::4]}
    reward = lambda meta, text, ids: 0.0 if meta in dull else score(meta, text, ids)  # noqa: E731
    run(change(task=task(reward), max_sampling_rounds=6), tmp_path)
    lines = read_metrics(tmp_path)[1:]
    assert all(
        line["signal_group_fraction"] == 1 and line["groups_without_signal"] == 0 for line in lines
    )
    assert (
        sum(line["groups_dropped"] for line in lines) > 0
        and max(line["sampling_rounds"] for line in lines) > 1
    )
    per_round = 4 * 4 * 4  # at most, tokens
    assert all(line["tokens"] <= line["sampling_rounds"] * per_round for line in lines)
    assert any(line["tokens"] > per_round for line in lines)


def test_dynamic_sampling_falls_back_when_the_rounds_run_out(tmp_path):
    run(change(task=task(lambda meta, text, ids: 1.0), max_sampling_rounds=2, steps=2), tmp_path)
    for line in read_metrics(tmp_path)[1:]:
        assert (
            line["sampling_rounds"] == 2
            and line["groups_without_signal"] == 4
            and line["groups_dropped"] == 4
        )
        assert (
            line["signal_group_fraction"] == 0
            and line["credit_rms"] == 0
            and line["grad_norm"] == 0
        )


@pytest.mark.slow
def test_a_warm_up_ends_at_its_target_and_is_told(tmp_path, capsys):
    demos = [{**item, "answer": item["meta"]} for item in ITEMS]
    plan = Warmup(steps=200, batch=64, until=0.3, every=20, optimizer=optax.adamw(2e-2))
    exp = change(task=task(demos=demos), warmup=plan, steps=1, eval_every=1)
    run(exp, tmp_path)
    first = read_metrics(tmp_path)[0]
    assert 20 <= first["warmup/steps"] < 200 and first["eval/greedy_accuracy"] >= 0.3
    assert "warm-up 20/200" in capsys.readouterr().out
