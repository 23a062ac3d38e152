"""launch/slurm/gpu.sbatch under a real Slurm of one node: two tasks of the trainer stop on request,
are requeued, resume and finish.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launch_tools import until
from paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
DAEMONS = ("munged", "slurmctld", "slurmd")
SBIN = os.environ["PATH"] + ":/usr/sbin:/sbin"

# Rewards are slow until the file `go` exists, so that the stop comes in the middle of the run. Only
# the stop saves.
CONFIG = """
import itertools, os, time
import optax
from jaxcredit.train.experiment import Experiment
from jaxcredit.policy import presets
from jaxcredit.tasks import Task
from jaxcredit.policy import Chars

def score(meta, text, ids):
    if not os.path.exists({go!r}):
        time.sleep(0.01)
    return float(text[:1] == meta[:1])

def experiment(steps: int = 40) -> Experiment:
    items = [{{"prompt": "".join(w) + ">", "meta": "".join(reversed(w))}} for w in itertools.product("abcd", repeat=3)]
    return Experiment(
        name="slow", task=Task("slow", items[:48], items[48:], score), tokenizer=Chars("abcd>"),
        policy=presets.micro(7, width=16, layers=1, heads=2), optimizer=optax.adam(1e-2), prompts_per_step=8, group_size=4, buckets=(4,), max_new_tokens=4,
        steps=steps, eval_every=1000, save_every=1000, mesh={{"fsdp": 2}},
    )
"""

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={at}/munge.sock,cred_expire=10
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
GresTypes=gpu
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:8
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def free(n):
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in taken]
    for s in taken:
        s.close()
    return ports


@pytest.fixture
def slurm(tmp_path):
    """Function that runs a Slurm command on a cluster of this machine with eight simulated GPUs."""
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root: gpu.sbatch was not run")
    if missing := [name for name in DAEMONS if not shutil.which(name, path=SBIN)]:
        pytest.skip(f"{', '.join(missing)} not found (on Debian: apt-get install slurm-wlm munge)")
    at, host = tmp_path, socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (at / name).mkdir()
    (at / "key").write_bytes(os.urandom(1024))
    (at / "key").chmod(0o600)
    (at / "slurm.conf").write_text(CONF.format(at=at, host=host, ports=free(2)))
    (at / "gres.conf").write_text(f"NodeName=localhost Name=gpu File={at}/gpu[0-7]\n")
    (at / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    for i in range(8):
        (at / f"gpu{i}").touch()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "JAXCREDIT"))}
    env |= {"SLURM_CONF": str(at / "slurm.conf"), "PATH": f"{Path(sys.executable).parent}:{SBIN}"}
    munge = [
        "munged",
        "--foreground",
        "--force",
        "--num-threads=1",
        f"--socket={at}/munge.sock",
        f"--key-file={at}/key",
    ]
    munge += [
        f"--pid-file={at}/munge.pid",
        f"--log-file={at}/munge.log",
        f"--seed-file={at}/munge.seed",
    ]
    daemons = []
    try:
        for words in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"]):
            with open(at / f"{words[0]}.log", "w") as log:
                daemons.append(subprocess.Popen(words, env=env, stdout=log, stderr=log))
            until(lambda: (at / "munge.sock").exists(), 10)

        def call(*words, **more):
            done = subprocess.run(
                words, env=env | more, capture_output=True, text=True, cwd=ROOT, timeout=60
            )
            assert done.returncode == 0, done
            return done.stdout

        until(lambda: "idle" in call("sinfo", "--noheader", "--format=%T"), 60)
        yield call
        call("scancel", "--full", "--user=root")
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(60)


def test_a_job_is_stopped_politely_requeued_and_done(slurm, tmp_path):
    (tmp_path / "slow.py").write_text(CONFIG.format(go=str(tmp_path / "go")))
    script, log, metrics = (
        ROOT / "launch/slurm/gpu.sbatch",
        tmp_path / "job.log",
        tmp_path / "runs/a/metrics.jsonl",
    )
    words = [
        "--parsable",
        "--ntasks-per-node=2",
        f"--output={log}",
        script,
        tmp_path / "slow.py",
        "--runs",
        tmp_path / "runs",
    ]
    job = slurm(
        "sbatch", *map(str, words), "--run", "a", JAXCREDIT_DEVICE="cpu", JAX_NUM_CPU_DEVICES="1"
    ).strip()

    def facts():
        return dict(
            word.partition("=")[::2] for word in slurm("scontrol", "show", "job", job).split()
        )

    def steps():
        return (
            [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
            if metrics.exists()
            else []
        )

    def shown():
        return log.read_text() if log.exists() else ""

    try:
        assert facts()["TresPerNode"].endswith("gpu:8") and facts()["Requeue"] == "1"
        until(lambda: len(steps()) > 3, 600)
        slurm(
            "scancel", "--signal=TERM", job
        )  # to the tasks, as --signal does before the time limit
        until(lambda: facts()["Restarts"] == "1", 300)
        stopped = steps()[-1]
        (tmp_path / "go").touch()
        assert stopped % 10 == 0 and stopped < 40  # the tasks synchronize every ten steps
        until(lambda: facts()["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), 600)
        assert facts()["JobState"] == "COMPLETED" and facts()["ExitCode"] == "0:0"
    except BaseException:
        print(shown())
        raise
    assert steps() == list(range(41))
    assert (
        "process 0 of 2" in shown()
        and "process 1 of 2" in shown()
        and "back into the queue" in shown()
    )
    assert sorted(
        int(p.parent.name) for p in (tmp_path / "runs/a/checkpoints").glob("*/manifest.json")
    ) == [stopped, 40]  # max_to_keep is 2
