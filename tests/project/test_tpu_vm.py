"""launch/tpu_vm.sh and launch/babysit.sh with a fake gcloud that records its arguments and has
folders as workers.
"""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from launch_tools import LAUNCH, ROOT, clean, metadata, program, sh, until

__all__ = ["metadata"]  # a fixture


@pytest.fixture
def cloud(tmp_path, metadata):
    fake = tmp_path / "cloud"
    fake.mkdir()
    program(
        tmp_path / "bin/gcloud",
        f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/helpers/fake_gcloud.py "$@"\n',
    )
    for worker in range(2):
        (fake / f"w{worker}.port").write_text(str(metadata(worker, "t-0,t-1")))
    return fake


def calls(cloud):
    return (
        [json.loads(line) for line in (cloud / "calls").read_text().splitlines()]
        if (cloud / "calls").exists()
        else []
    )


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
    assert (
        sh("bash", "-c", f"printf '%s\\n' {words}").stdout.splitlines() == command
    )  # quoted for the remote shell
    assert stop[:-1] == [*ssh, "--worker=all"] and logs[:-1] == [*ssh, "--worker=1"]
    assert delete == [*start, "queued-resources", "delete", "a", *where, "--force", "--quiet"]


@pytest.mark.parametrize(
    "words",
    [
        "create --type v6e-8",
        "state",
        "wait",
        "setup",
        "run -- train x.py",
        "status",
        "logs",
        "stop",
        "delete",
    ],
)
def test_a_dry_run_prints_and_does_nothing(cloud, tmp_path, words):
    verb, *more = words.split()
    done = sh(
        LAUNCH / "tpu_vm.sh",
        verb,
        "a",
        "--zone",
        "z",
        "--dry-run",
        *more,
        env=clean(tmp_path / "bin", FAKE=str(cloud)),
    )
    assert done.returncode == 0 and (
        verb == "wait" or done.stdout.startswith("gcloud compute tpus ")
    ), done
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
    done = sh(LAUNCH / "tpu_vm.sh", *words.split(), env=clean(tmp_path / "bin", FAKE=str(cloud)))
    assert done.returncode == 2 and mend in done.stderr
    assert not (cloud / "state").exists()


def test_no_answer_is_not_absence(tmp_path):
    program(tmp_path / "bin/gcloud", "#!/bin/sh\necho 'ERROR: the network is down' >&2; exit 1\n")
    done = sh(LAUNCH / "tpu_vm.sh", "state", "a", "--zone", "z", env=clean(tmp_path / "bin"))
    assert done.returncode == 1 and done.stdout == "" and "network is down" in done.stderr


@pytest.mark.slow
def test_gcloud_itself_knows_these_commands(tmp_path):
    """`gcloud meta lint-gcloud-commands` parses each command without a network."""
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not installed: its options were checked with a fake only")
    vm = functools.partial(sh, LAUNCH / "tpu_vm.sh")
    where = ["a", "--zone", "z", "--project", "p", "--dry-run"]
    printed = [
        vm("create", *where, "--type", "v6e-8", "--spot").stdout,
        *(vm(verb, *where).stdout for verb in ("state", "setup", "stop", "delete")),
    ]
    commands = "".join(printed).splitlines()
    assert len(commands) == 6
    env = clean(HOME=str(tmp_path), CLOUDSDK_CONFIG=str(tmp_path))
    for command, good in [
        *((command, True) for command in commands),
        (commands[0] + "--no-such-flag", False),
    ]:
        done = json.loads(
            sh(
                "gcloud", "meta", "lint-gcloud-commands", f"--command-string={command}", env=env
            ).stdout
        )[0]
        assert done["success"] == good, done["error_message"]


# A stand-in for the trainer on a worker: records its start and runs until the file `go` exists.
LONG = """#!{python}
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
options = dict(zip(sys.argv[1::2], sys.argv[2::2])) | dict(zip(sys.argv[2::2], sys.argv[3::2]))
folder = Path(options["--runs"], options["--run"])
with open(folder / "began", "a") as f: f.write(f"process {{options['--process']}} of {{options['--processes']}} resume {{options['--resume']}}\\n")
while not (folder / "go").exists(): time.sleep(0.05)
sys.exit({code})
"""


def babysit(cloud, tmp_path, code, **more):
    """babysit.sh as a process, and its run folder. The trainer exits with `code` when the folder
    has a file `go`.
    """
    repo = tmp_path / "repo"  # workers get the last commit: a new repository with the present files
    shutil.copytree(LAUNCH, repo / "launch")
    me = ["-c", "user.name=test", "-c", "user.email=test"]
    for words in (["init"], ["add", "."], [*me, "commit", "-m", "as it is"]):
        assert sh("git", "-C", repo, *words).returncode == 0
    program(tmp_path / "trainer", LONG.format(python=sys.executable, code=code))
    install = f'mkdir -p "$5/bin" && touch "$5/bin/python" && chmod +x "$5/bin/python" && cp {tmp_path}/trainer "$5/bin/jaxcredit"'
    program(tmp_path / "bin/uv", f'#!/bin/sh\n[ "$1" != venv ] || {{ {install}; }}\n')
    (tmp_path / "runs/a").mkdir(parents=True)
    env = clean(
        tmp_path / "bin", FAKE=str(cloud), JAXCREDIT_POLL="0.2", JAXCREDIT_GRACE="1", **more
    )
    words = [
        "a",
        "--zone",
        "z",
        "--type",
        "v5litepod-16",
        "--spot",
        "--",
        "train",
        "x.py",
        "--run",
        "a",
        "--runs",
        str(tmp_path / "runs"),
    ]
    with open(tmp_path / "said", "w") as log:
        return subprocess.Popen(
            [repo / "launch/babysit.sh", *words], env=env, stdout=log, stderr=log
        ), tmp_path / "runs/a"


def trainers(cloud):
    return [int((cloud / f"w{i}/.jaxcredit/pid").read_text()) for i in range(2)]


def test_a_run_outlives_its_machines(cloud, tmp_path):
    """After a preemption and a crash the run resumes under its name. At the end the slice is
    deleted.
    """
    sitter, folder = babysit(cloud, tmp_path, code=0)
    try:

        def lives(n):
            return until(
                lambda: (
                    (folder / "began").exists()
                    and len((folder / "began").read_text().splitlines()) == 2 * n
                )
            )

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
    assert sorted((folder / "began").read_text().splitlines()) == [
        f"process {i} of 2 resume auto" for i in (0, 0, 0, 1, 1, 1)
    ]
    assert not (cloud / "state").exists()
    log = (tmp_path / "said").read_text()
    assert "taken away (SUSPENDED)" in log and "exit 137, exit 143" in log
    verbs = [" ".join(words[2:4]) for words in calls(cloud)]
    assert (
        verbs.count("queued-resources create")
        == verbs.count("tpu-vm scp")
        == verbs.count("queued-resources delete")
        == 2
    )


def test_a_trainer_that_only_fails_is_given_up(cloud, tmp_path):
    sitter, folder = babysit(cloud, tmp_path, code=1, JAXCREDIT_RETRIES="1")
    (folder / "go").touch()
    try:
        assert sitter.wait(120) == 1
    finally:
        sitter.kill()
        sitter.wait()
    assert (
        "failed 2 times: giving up" in (tmp_path / "said").read_text()
        and not (cloud / "state").exists()
    )


def test_a_run_without_a_name_or_a_folder_is_not_watched(tmp_path):
    for words, missing in [("train x.py --runs r", "--run"), ("train x.py --run a", "--runs")]:
        done = sh(LAUNCH / "babysit.sh", "a", "--zone", "z", "--", *words.split())
        assert done.returncode == 2 and f"give the run {missing}:" in done.stderr
