"""Training on several devices and in several processes against one device."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from launch_tools import free_port
from run_metrics import assert_metrics_close, metrics_without_times

from jaxcredit.cli import loading as find
from jaxcredit.cli import main as cli
from jaxcredit.collect.batches import Batches
from jaxcredit.parallel import mesh
from jaxcredit.train import programs
from jaxcredit.train.evaluation import greedy_accuracy
from jaxcredit.train.loop import rollout_metrics
from jaxcredit.train.programs import compose_step, make_collector
from jaxcredit.train.supervised import warm_up

CONFIG = '''
"""The last of three letters, with warm-up, reference, minibatches, micro-batches and resampling."""
import itertools
import optax
from jaxcredit import signals
from jaxcredit.train.experiment import Experiment, Warmup
from jaxcredit.policy import presets
from jaxcredit.tasks import Task
from jaxcredit.policy.tokenizer import Chars

def score(meta, text, ids):
    return float(text[:1] == meta[:1])

def experiment(steps: int = 3, max_sampling_rounds: int = 1, fsdp: int = 0, all: bool = True) -> Experiment:
    chars = Chars("abcd>")
    items = [{"prompt": "".join(w) + ">", "meta": "".join(reversed(w))} for w in itertools.product("abcd", repeat=3)]
    adam = optax.adam(1e-2, eps=1e-3)  # with 1e-8 gradients of 1e-9, which are rounding, would become whole steps
    demos = [{**i, "answer": i["meta"]} for i in items[:32]]
    return Experiment(
        name="micro", task=Task("micro", items[:48], items[48:], score, demos), tokenizer=chars,
        policy=presets.micro(7, width=16, layers=2 if all else 1, heads=4, kv_heads=2),
        warmup=Warmup(steps=2, batch=16, every=2, optimizer=adam) if all else None, optimizer=adam,
        signals={"reference": signals.reference()} if all else {}, beta=0.1 if all else 0.0,
        prompts_per_step=16, group_size=2, minibatch=8 if all else None, micro_batch=4 if all else None, epochs=2 if all else 1, max_sampling_rounds=max_sampling_rounds,
        buckets=(4,), max_new_tokens=4, steps=steps,
        eval_every=2, save_every=2, mesh={"fsdp": fsdp} if fsdp else {},
    )
'''


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "micro.py"
    path.write_text(CONFIG)
    return str(path)


def trained(exp):
    """Programs, final state, metrics of each step and final accuracy, without a run folder."""
    made = programs.build(exp)
    state, _ = warm_up(
        exp,
        made,
        made.init(jax.random.key(exp.seed)),
        lambda weights: greedy_accuracy(exp, made, weights),
        lambda text: None,
    )
    for frozen, weight in zip(
        jax.tree.leaves(state.aux["reference"]), jax.tree.leaves(state.params), strict=True
    ):
        # The reference is the policy after the warm-up.
        np.testing.assert_array_equal(frozen, weight)
    batches, history = Batches(len(exp.task.train), exp.prompts_per_step, exp.seed), []

    collect, step = make_collector(exp, made, batches), compose_step(exp, made)
    for k in range(exp.steps):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), k)
        collected = collect(state.params, key, next(batches))()
        rollout = step.annotate(state, collected)
        columns = step.credit(rollout)
        state, metrics = step.update(state, rollout, columns)
        metrics = {**collected.metrics, **metrics, **rollout_metrics(rollout, columns)}
        history.append(
            jax.device_get({k: v for k, v in metrics.items() if not k.startswith("time/")})
        )
    return made, state, history, greedy_accuracy(exp, made, state.params)


@pytest.mark.slow
def test_eight_devices_train_as_one(config):
    one, _ = find.experiment(config, ["--max_sampling_rounds", "2"])
    _, alone, want, accuracy = trained(one)
    made, state, got, same = trained(dataclasses.replace(one, mesh={"fsdp": 4, "tensor": 2}))
    assert len(got) == 3 and accuracy == same
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(
                a[name], b[name], rtol=2e-4, atol=2e-5, err_msg=f"step {step}, {name}"
            )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), state.params, alone.params
    )
    where = jax.tree.map(lambda x: x.sharding, made.state)
    mesh.assert_placed(state, where)
    moments = state.opt_state[0].mu["layers"]["w_up"]
    assert moments.sharding.shard_shape(moments.shape) == (2, 4, 32) and moments.shape == (
        2,
        16,
        64,
    )
    frozen = state.aux["reference"]["layers"]["w_up"]
    assert frozen.sharding.is_equivalent_to(moments.sharding, 3)


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--no-all"], []], ids=["plain", "everything"])
def test_two_processes_train_as_one(config, tmp_path, options):
    """`jaxcredit train` in two processes with two devices each, against one process with four."""
    words = ["train", config, "--runs", str(tmp_path), "--fsdp", "4", *options]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAXCREDIT_TRACE": "1"}
    job = [
        "--run",
        "two",
        "--coordinator",
        f"127.0.0.1:{free_port()}",
        "--processes",
        "2",
        "--process",
    ]
    start = [sys.executable, "-c", "from jaxcredit.cli.main import main; main()"]
    with open(tmp_path / "0.txt", "w+") as first, open(tmp_path / "1.txt", "w+") as second:
        logs = first, second
        jobs = [
            subprocess.Popen(
                [*start, *words, *job, str(i)], env=env, stdout=logs[i], stderr=logs[i]
            )
            for i in range(2)
        ]
        try:
            codes = [job.wait(timeout=400) for job in jobs]
        finally:
            for job in jobs:
                job.kill()
                job.wait()
    output = [(tmp_path / f"{i}.txt").read_text() for i in range(2)]
    assert codes == [0, 0], "\n".join(output)
    assert "step 3/3" in output[0] and "step" not in output[1]  # only process 0 prints
    cli.main([*words, "--run", "one"])
    got, want = metrics_without_times(tmp_path / "two"), metrics_without_times(tmp_path / "one")
    assert len(want) == 4 and 0 < want[-1]["reward"] < 1
    assert_metrics_close(got, want)
    if options:
        return
    # One process resumes from the checkpoint of two.
    cli.main([*words, "--run", "two", "--steps", "4", "--resume", "auto"])
    cli.main([*words, "--run", "one", "--steps", "4", "--resume", "auto"])
    assert_metrics_close(
        metrics_without_times(tmp_path / "two"), metrics_without_times(tmp_path / "one")
    )
