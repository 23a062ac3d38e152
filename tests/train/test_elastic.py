"""Runs that continue on fewer devices or processes with the same metrics up to the order of sums;
all processes stop at one step.
"""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import optax
import pytest
from launch_tools import free_port
from run_metrics import assert_metrics_close, metrics_without_times

from jaxcredit.cli import loading as find
from jaxcredit.cli import main as cli
from jaxcredit.train import programs
from jaxcredit.train.restore import restore_params
from jaxcredit.train.run import run
from jaxcredit.train.runs.checkpoint import verify

pytestmark = pytest.mark.slow

CONFIG = '''
"""The last letter of three, on a mesh."""
import itertools
import optax
from jaxcredit.train.experiment import Experiment
from jaxcredit.policy import presets
from jaxcredit.tasks import Task
from jaxcredit.policy.tokenizer import Chars

def score(meta, text, ids):
    return float(text[:1] == meta[:1])

def experiment(steps: int = 6, fsdp: int = 8) -> Experiment:
    chars = Chars("abcd>")
    items = [{"prompt": "".join(w) + ">", "meta": "".join(reversed(w))} for w in itertools.product("abcd", repeat=3)]
    return Experiment(
        name="micro", task=Task("micro", items[:48], items[48:], score), tokenizer=chars,
        policy=presets.micro(7, width=16, layers=1, heads=4, kv_heads=2), optimizer=optax.adam(1e-2, eps=1e-3),
        prompts_per_step=16, group_size=2, buckets=(4,), max_new_tokens=4, steps=steps, eval_every=10, save_every=50, mesh={"fsdp": fsdp},
    )
'''
# Slow steps, so that a signal can hit a given step.
SLOWLY = """
    import sys, time
    from jaxcredit.cli import main as cli
    from jaxcredit.train.runs import metrics as records
    log = records.MetricsWriter.log
    def paced(self, step, metrics):
        time.sleep(0.1)
        log(self, step, metrics)
    records.MetricsWriter.log = paced
    cli.main(sys.argv[1:])
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "micro.py").write_text(CONFIG)
    return str(tmp_path / "micro.py")


def test_eight_devices_then_four_in_another_mesh(config, tmp_path, monkeypatch):
    built = {}
    monkeypatch.setattr(
        "jaxcredit.train.run.build",
        lambda exp: built.setdefault(str(exp.mesh), programs.build(exp)),
    )
    eight, _ = find.experiment(config)
    eight = dataclasses.replace(eight, optimizer=optax.adam(1e-2, eps=1e-3))
    four = dataclasses.replace(eight, mesh={"fsdp": 2, "tensor": 2})
    run(eight, tmp_path / "whole")
    run(dataclasses.replace(eight, steps=3), tmp_path / "moved")
    run(four, tmp_path / "moved", resume=True)
    whole, moved = (
        metrics_without_times(tmp_path / "whole"),
        metrics_without_times(tmp_path / "moved"),
    )
    looked = 3  # at its accuracy, where it was the last step
    assert_metrics_close(
        *([line for line in lines if line["step"] != looked] for lines in (moved, whole)),
        rtol=5e-3,
        atol=1e-4,
    )
    assert len({line["loss"] for line in whole[1:]}) == 6 and len(moved) == 7
    _, a, _ = restore_params(eight, tmp_path / "whole")
    _, b, _ = restore_params(four, tmp_path / "moved")
    assert (
        len(jax.tree.leaves(a)[0].sharding.device_set) == 8
        and len(jax.tree.leaves(b)[0].sharding.device_set) == 4
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=1e-4), a, b
    )


@pytest.mark.timeout(1800)  # of a machine that does much else
def test_a_signal_to_one_process_stops_all_at_one_step_and_one_process_goes_on(config, tmp_path):
    words = ["train", config, "--runs", str(tmp_path), "--fsdp", "4", "--steps", "400"]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAXCREDIT_TRACE": "1"}
    job = [
        *words,
        "--run",
        "two",
        "--coordinator",
        f"127.0.0.1:{free_port()}",
        "--processes",
        "2",
        "--process",
    ]
    told = [open(tmp_path / f"{i}.txt", "w+") for i in range(2)]  # noqa: SIM115
    metrics = tmp_path / "two/metrics.jsonl"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SLOWLY), *job, str(i)],
            env=env,
            stdout=told[i],
            stderr=told[i],
        )
        for i in range(2)
    ]

    def said():
        return "\n".join((tmp_path / f"{i}.txt").read_text() for i in range(2))

    try:
        end = time.monotonic() + 900
        while not (metrics.exists() and '"step": 3,' in metrics.read_text()):
            assert time.monotonic() < end and all(j.poll() is None for j in jobs), said()
            time.sleep(0.05)
        jobs[1].send_signal(signal.SIGTERM)  # the other one hears of it
        codes = [j.wait(timeout=400) for j in jobs]
    finally:
        for j in jobs:
            j.kill()
            j.wait()
        for file in told:
            file.close()
    assert codes == [143, 143], said()
    saved = sorted(int(p.name) for p in (tmp_path / "two/checkpoints").iterdir())
    stopped = saved[-1]
    assert 3 < stopped < 400 and verify(tmp_path / f"two/checkpoints/{stopped:08d}") == ""
    assert metrics_without_times(tmp_path / "two")[-1]["step"] == stopped
    for i in range(2):  # each host's log says the same
        log = (tmp_path / f"two/hosts/{i:05d}.log").read_text()
        assert (
            f"save step {stopped}, asked to stop" in log
            and "end with code 143" in log
            and f"process {i} of 2" in log
        )

    more = [*words[:-1], str(stopped + 2)]
    cli.main([*more, "--run", "two", "--resume", "auto"])
    cli.main([*more, "--run", "one"])
    one, two = metrics_without_times(tmp_path / "one"), metrics_without_times(tmp_path / "two")
    assert len(one) == stopped + 3
    assert_metrics_close(
        *([line for line in lines if line["step"] > stopped - 3] for lines in (two, one)),
        rtol=5e-3,
        atol=1e-4,
    )
    assert all(a["tokens"] > 0 for a in itertools.islice(two, 1, None))
