"""A run that is killed and resumed has the metrics of an uninterrupted one, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from run_metrics import metrics_without_times

KILLS = int(os.environ.get("JAXCREDIT_KILLS", "5"))  # .ci/night has 50

CONFIG = '''
"""Three letters backward, with a reward for every correct letter."""
import itertools
import optax
from jaxcredit.train.experiment import Experiment, Warmup
from jaxcredit.policy import presets
from jaxcredit.tasks import Task
from jaxcredit.policy.tokenizer import Chars

def score(meta, text, ids):
    return sum(a == b for a, b in zip(meta, text)) / 3

def experiment(steps: int = 40, seed: int = 0) -> Experiment:
    chars = Chars("abcd>")
    words = [("".join(w), "".join(reversed(w))) for w in itertools.product("abcd", repeat=3)]
    items = [{"prompt": word + ">", "meta": backward, "answer": backward} for word, backward in words]
    return Experiment(
        name="micro", task=Task("micro", items[:49], items[49:], score, items[:49]), tokenizer=chars,
        warmup=Warmup(steps=30, batch=16, until=0.9, every=3, optimizer=optax.adam(2e-3)),
        policy=presets.micro(chars.vocab_size, width=16, layers=1, heads=2), optimizer=optax.adam(1e-2),
        prompts_per_step=4, group_size=4, buckets=(4,), max_new_tokens=4, steps=steps, eval_every=8, save_every=5, max_to_keep=2, seed=seed,
    )
'''

# hang: step whose save waits between arrays and manifest until the process is killed.
# pace: seconds by which each step, also of the warm-up, is delayed, so that a signal can hit it.
DRIVER = """
    import sys, time
    from jaxcredit.cli import main as cli
    from jaxcredit.train import supervised as warmup
    from jaxcredit.train.runs import metrics as records, storage as store
    hang, pace, args = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    write, log, demonstrations = store.Disk.write, records.MetricsWriter.log, warmup.demonstrations
    def stuck(self, name, text):
        if name == f"{hang:08d}/manifest.json" and self.root.name == "checkpoints":
            time.sleep(600)
        write(self, name, text)
    def paced(self, step, metrics):
        time.sleep(pace)
        log(self, step, metrics)
    def shown(*args):
        time.sleep(pace)
        return demonstrations(*args)
    store.Disk.write, records.MetricsWriter.log, warmup.demonstrations = stuck, paced, shown
    cli.main(args)
"""


class Job:
    """`jaxcredit train` in a separate process, with a compilation cache shared by the module."""

    def __init__(self, home, run, *, hang=-1, pace=0.0, steps=40):
        env = {
            **os.environ,
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
        }
        env |= {
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAXCREDIT_TRACE": "1",
        }
        words = [
            "train",
            str(home / "micro.py"),
            "--run",
            run,
            "--runs",
            str(home),
            "--resume",
            "auto",
            "--steps",
            str(steps),
        ]
        self.metrics, self.told = home / run / "metrics.jsonl", home / f"{run}.txt"
        with open(self.told, "a") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(DRIVER), str(hang), str(pace), *words],
                env=env,
                stdout=out,
                stderr=out,
            )

    def until(self, there, limit=240):
        end = time.monotonic() + limit
        while not there():
            assert self.process.poll() is None and time.monotonic() < end, self.told.read_text()
            time.sleep(0.005)

    def reaches(self, step):
        # Steps in the file before the restored checkpoint do not count as reached by this process.
        self.until(
            lambda: (
                self.metrics.exists()
                and f'"step": {step},' in self.metrics.read_text().rsplit("\n", 2)[-2:][0]
            )
        )

    def end(self, signum=None):
        if signum:
            self.process.send_signal(signum)
        return self.process.wait(timeout=240)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("jobs")
    (home / "micro.py").write_text(CONFIG)
    job = Job(home, "whole")
    assert job.end() == 0, job.told.read_text()
    whole = metrics_without_times(home / "whole")
    assert [line["step"] for line in whole] == list(range(41))
    assert (
        len({line["loss"] for line in whole[1:]}) > 20
    )  # it learns, so that a repeated or skipped step changes the metrics
    return home


def assert_same(home, run):
    assert metrics_without_times(home / run) == metrics_without_times(home / "whole")
    assert (home / run / "samples.jsonl").read_bytes() == (
        home / "whole/samples.jsonl"
    ).read_bytes()


def checkpoint(home, run, step):
    return home / run / "checkpoints" / f"{step:08d}"


@pytest.mark.slow
def test_killed_inside_a_save_then_asked_to_stop(home):
    job = Job(home, "hurt", hang=10, pace=0.05)
    job.reaches(random.randint(11, 13))  # the run continues during the save of step 10
    job.until(lambda: (checkpoint(home, "hurt", 10) / "side.json").exists())
    assert job.end(signal.SIGKILL) == -signal.SIGKILL
    assert not (checkpoint(home, "hurt", 10) / "manifest.json").exists()
    job = Job(home, "hurt", pace=0.1)
    job.reaches(17)
    assert job.end(signal.SIGTERM) == 143, job.told.read_text()
    stopped = metrics_without_times(home / "hurt")[-1]["step"]
    assert 17 <= stopped < 40
    assert (checkpoint(home, "hurt", stopped) / "manifest.json").exists()
    job = Job(home, "hurt")
    assert job.end() == 0, job.told.read_text()
    assert_same(home, "hurt")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(-(-KILLS // 10)))
def test_killed_at_random_moments(home, seed):
    """SIGKILLs at random times, at most ten a run, during imports, compilation, steps and saves."""
    rng, run = random.Random(seed), f"random{seed}"
    for _ in range(min(10, KILLS - 10 * seed)):
        job = Job(home, run, pace=0.05)
        time.sleep(rng.uniform(1, 12))
        job.end(signal.SIGKILL)
    job = Job(home, run)
    assert job.end() == 0, job.told.read_text()
    assert_same(home, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "signum", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "asked to stop"]
)
def test_stopped_in_the_warm_up(home, signum):
    run = f"warm{int(signum)}"
    for step in (5, 15):
        job = Job(home, run, pace=0.1)
        job.until(
            lambda step=step: any(
                int(p.name) >= step for p in (home / run / "checkpoints/warm-up").glob("*[0-9]")
            )
        )
        assert job.end(signum) == (-signum if signum == signal.SIGKILL else 143), (
            job.told.read_text()
        )
        assert not job.metrics.exists() or job.metrics.read_text() == ""
    job = Job(home, run)
    assert job.end() == 0, job.told.read_text()
    assert "warm-up goes on from step" in job.told.read_text()
    assert_same(home, run)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_steps_but_not_the_run(home):
    job = Job(home, "damaged", pace=0.05)
    job.reaches(17)
    job.end(signal.SIGKILL)
    newest = max(p.parent for p in (home / "damaged" / "checkpoints").glob("*/manifest.json"))
    array = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(array, array.stat().st_size - 1)
    job = Job(home, "damaged")
    assert job.end() == 0, job.told.read_text()
    assert f"{newest.name} is damaged" in job.told.read_text()
    assert_same(home, "damaged")
