"""Manifests, task files, pins and the container file in launch/ are valid; launch/README.md lists
how each file was tested.
"""

import re
import shlex
import string
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from paths import ROOT

from jaxcredit.train.runs.preemption import Preemption

LAUNCH = ROOT / "launch"
VALUES = {"RUN": "a", "IMAGE": "registry.example/jaxcredit:tpu", "BUCKET": "runs-of-mine"}


# GKE

# Fields of a JobSet (jobset.x-k8s.io/v1alpha2) and their types. kubernetes-validate checks the Job
# specs inside.
JOBSET = {
    "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
    "failurePolicy": {
        "maxRestarts": int,
        "restartStrategy": str,
        "rules": [
            {
                "name": str,
                "action": str,
                "targetReplicatedJobs": [str],
                "onJobFailureReasons": [str],
            }
        ],
    },
    "successPolicy": {"operator": str, "targetReplicatedJobs": [str]},
    "replicatedJobs": [
        {"name": str, "replicas": int, "template": {"metadata": dict, "spec": dict}}
    ],
    "suspend": bool,
    "ttlSecondsAfterFinished": int,
}


def check_schema(schema, value, where="spec"):
    """`value` has only fields of `schema`, with its types."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        for name, part in value.items():
            assert name in schema, f"{where} has no field {name}"
            check_schema(schema[name], part, f"{where}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for i, part in enumerate(value):
            check_schema(schema[0], part, f"{where}[{i}]")
    else:
        assert isinstance(value, schema), f"{where} is {value!r}, not a {schema.__name__}"


def jobset(name):
    text = string.Template((LAUNCH / "gke" / name).read_text()).substitute(VALUES)
    return yaml.safe_load(text)


JOBSETS = sorted(path.name for path in (LAUNCH / "gke").glob("*.yaml"))


@pytest.mark.parametrize("name", JOBSETS)
def test_a_jobset_is_one(name):
    made = jobset(name)
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    check_schema(JOBSET, made["spec"])
    for rule in made["spec"]["failurePolicy"]["rules"]:
        assert rule["action"] in (
            "FailJobSet",
            "RestartJobSet",
            "RestartJobSetAndIgnoreMaxRestarts",
        )
        assert set(rule["onJobFailureReasons"]) <= {
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "FailedIndexes",
            "PodFailurePolicy",
        }


@pytest.mark.parametrize("name", JOBSETS)
def test_its_jobs_are_jobs(name):
    validate = pytest.importorskip(
        "kubernetes_validate",
        reason="kubernetes-validate is not installed (pip install 'jaxcredit[launch]')",
    )
    for replicated in jobset(name)["spec"]["replicatedJobs"]:
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "job"},
            **replicated["template"],
        }
        validate.validate(job, "1.31", strict=True)
        job["spec"]["template"]["spec"]["containers"][0]["comand"] = ["x"]
        with pytest.raises(validate.ValidationError):
            validate.validate(job, "1.31", strict=True)


@pytest.mark.parametrize("name", JOBSETS)
def test_a_polite_stop_is_no_failure(name):
    """Exit code 143 and a lost node restart the JobSet without counting; a crash counts as a
    restart.
    """
    spec = jobset(name)["spec"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (trainer,) = pod["containers"]
    codes, nodes = job["podFailurePolicy"]["rules"]
    assert codes["action"] == nodes["action"] == "FailJob"
    assert codes["onExitCodes"] == {
        "containerName": trainer["name"],
        "operator": "In",
        "values": [Preemption.EXIT],
    }
    assert nodes["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert spec["failurePolicy"]["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    # A pod failure policy requires restartPolicy Never. One failed pod is enough, because the other
    # pods wait for it.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert "command" not in trainer and shlex.join(trainer["args"]).endswith(
        "--run a --runs /runs --resume auto"
    )
    assert {m["name"] for m in trainer["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_hosts_are_counted_right():
    tpu, gpu = (
        jobset(f"jobset-{device}.yaml")["spec"]["replicatedJobs"][0] for device in ("tpu", "gpu")
    )
    job = tpu["template"]["spec"]
    chips = [
        int(n)
        for n in job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split(
            "x"
        )
    ]
    limits = job["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert chips[0] * chips[1] == job["completions"] * limits["google.com/tpu"]
    job = gpu["template"]["spec"]
    env = {e["name"]: e.get("value") for e in job["template"]["spec"]["containers"][0]["env"]}
    assert int(env["JAXCREDIT_PROCESSES"]) == job["completions"] == job["parallelism"]
    assert (
        env["JAXCREDIT_COORDINATOR"] == f"a-{gpu['name']}-0-0.a:8482"
        and env["JAXCREDIT_DEVICE"] == "gpu"
    )


# SkyPilot

SKY = sorted((LAUNCH / "sky").glob("*.yaml"))
TASK = {"name", "workdir", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"}


@pytest.mark.parametrize("path", SKY, ids=lambda path: path.name)
def test_a_task_recovers(path):
    task = yaml.safe_load(path.read_text())
    assert set(task) <= TASK
    recovery = task["resources"]["job_recovery"]
    assert (
        recovery["recover_on_exit_codes"] == [Preemption.EXIT]
        and task["resources"]["use_spot"] is True
    )
    assert (
        subprocess.run(
            ["bash", "-n"], input=task["setup"] + "\n" + task["run"], text=True, capture_output=True
        ).stderr
        == ""
    )
    last = shlex.split(task["run"].splitlines()[-1])
    assert last[:2] == ["exec", "launch/entry.sh"] and last[-2:] == ["--resume", "auto"]
    assert (ROOT / task["envs"]["CONFIG"]).is_file() and last[last.index("--runs") + 1] in task[
        "file_mounts"
    ]
    assert {name for name, value in task["envs"].items() if value is None} == {
        "RUN",
        "BUCKET",
    }  # given by --env


@pytest.mark.slow
@pytest.mark.parametrize("path", SKY, ids=lambda path: path.name)
def test_skypilots_own_loader_takes_it(path, tmp_path):
    pytest.importorskip(
        "sky",
        reason="SkyPilot is not installed (pip install skypilot, 320 MB): its loader was not run",
    )
    load = (
        "import sys, sky, yaml; task = yaml.safe_load(open(sys.argv[1])); "
        "sky.Task.from_yaml_config(task, env_overrides=dict(RUN='a', BUCKET='b'))"
    )
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(path.read_text().replace("\nrun:", "\nrunn:"))
    for file, good in [(path, True), (wrong, False)]:
        done = subprocess.run(
            [sys.executable, "-c", load, str(file)], capture_output=True, text=True, cwd=ROOT
        )
        assert (done.returncode == 0) == good, done.stderr


# Pins and the container


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins():
    lines = (LAUNCH / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_dependency_is_pinned():
    table, pinned = project(), pins()
    extras = table["optional-dependencies"]
    for text in [
        *table["dependencies"],
        *(text for name in ("train", "tpu", "cuda", "data", "models") for text in extras[name]),
    ]:
        need = Requirement(text)
        name = re.sub("[-_.]+", "-", need.name.lower())
        assert name in pinned, (
            f"launch/constraints.txt lacks {need.name}: rewrite it with the command in its first lines"
        )
        assert need.specifier.contains(pinned[name]), (
            f"launch/constraints.txt has {name} {pinned[name]}, "
            f"pyproject.toml requires {need.specifier}"
        )
    for name in ("jaxlib", "libtpu", "jax-cuda13-plugin"):
        assert name in pinned


def test_the_container_file_copies_what_is_there():
    text = (LAUNCH / "Containerfile").read_text()
    lines = [
        line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")
    ]
    words = [line.split() for line in lines]
    assert {w[0] for w in words} == {
        "ARG",
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "ENV",
        "ENTRYPOINT",
        "CMD",
    }
    assert re.fullmatch(r"ARG BASE=python:3\.\d+\.\d+-slim-\w+", lines[0])  # the full version
    for w in words:
        if w[0] == "COPY":
            assert all((ROOT / source).exists() for source in w[1:-1]), w
    (run,) = [line.removeprefix("RUN ") for line in lines if line.startswith("RUN")]
    assert subprocess.run(["bash", "-n"], input=run, text=True, capture_output=True).stderr == ""
    extras = set(
        re.search(r"gpu\) extra=(\S+)", run)[1].split(",")
        + re.search(r"tpu\) extra=(\S+)", run)[1].split(",")
    )
    assert extras <= set(project()["optional-dependencies"])
    assert (
        run.count("train,") == 3 and "$extra,train," in (LAUNCH / "install.sh").read_text()
    )  # the trainer needs the extra
    assert lines[-2] == 'ENTRYPOINT ["launch/entry.sh"]'  # the form without a shell


# README


def test_the_readme_says_of_each_file_how_far_it_was_tried():
    text = (LAUNCH / "README.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", text, re.M)
    files = {str(p.relative_to(LAUNCH)) for p in LAUNCH.rglob("*") if p.is_file()} - {"README.md"}
    assert {name for name, _ in rows} == files
    assert {how.strip() for _, how in rows} <= {
        "executed",
        "executed against a fake",
        "schema-checked",
        "only written",
    }
