"""Run folders: invalid names, other folders, refused resumes, damaged files, locks, deletion."""

import ast
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_gcs import Server
from micro_experiment import build, experiment
from paths import MICRO
from rich.console import Console
from run_metrics import metrics_without_times

from jaxcredit.cli import main as cli
from jaxcredit.policy import presets
from jaxcredit.train.run import run
from jaxcredit.train.runs import file_names
from jaxcredit.train.runs import folder as home
from jaxcredit.train.runs import storage as store
from jaxcredit.train.runs.checkpoint import CheckpointError, Checkpoints
from jaxcredit.train.runs.folder import RunFolder, run_address
from jaxcredit.train.runs.json_lines import read_metrics, truncate_after
from jaxcredit.train.runs.lock import LOCK, FolderGone, Lock, Locked, _this_process
from jaxcredit.train.runs.metrics import MetricsWriter
from jaxcredit.utils import files


@pytest.fixture(autouse=True)
def one_compile(monkeypatch):
    monkeypatch.setattr("jaxcredit.train.run.build", build)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("made") / "micro"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcredit.train.run.build", build)
        run(experiment(steps=4), folder)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "micro")


def contents(folder) -> dict:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_names_of_files_are_written_in_one_module():
    """Modules take names of files in a run folder from file_names.py."""
    names = {value for name, value in vars(file_names).items() if name.isupper()}
    names &= {name for name in names if "." in name} | {"hosts", "tensorboard", "checkpoints"}
    package = Path(file_names.__file__).parents[2]
    assert len(names) == 12
    for room in ("train", "analysis", "cli"):
        for path in (package / room).rglob("*.py"):
            strings = {
                node.value
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert path.name == "file_names.py" or not names & strings, path


# Names


@pytest.mark.parametrize(
    "name",
    [".", "..", "../thesis", "a/b", "/etc", "a\\b", "a\nb", "a\0b", "\x1b[31m", " a", "a" * 300],
)
def test_a_run_name_is_one_part_of_a_path(name, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("years")
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(
            [
                "train",
                MICRO,
                "--steps",
                "1",
                "--runs",
                str(tmp_path / "runs"),
                "--run",
                name,
                "--overwrite",
            ]
        )
    assert stop.value.code == 1 and "cannot be the name of a run" in " ".join(
        capsys.readouterr().err.split()
    )
    assert contents(tmp_path) == before and not (tmp_path / "runs").exists()


def test_where_runs_lie_must_be_said():
    with pytest.raises(ValueError, match="--runs is empty"):
        run_address("", "a")
    assert [run_address(runs, "a") for runs in ("runs", "runs/", "/", "gs://b/r/")] == [
        "runs/a",
        "runs/a",
        "/a",
        "gs://b/r/a",
    ]


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "..", "../a", "a/../../b", "a//b", "./a", "a/", "a\0"]
)
def test_a_name_from_outside_stays_inside(name):
    with pytest.raises(ValueError, match="must be relative"):
        files.inside(name)
    assert files.inside("hosts/00000.log") == "hosts/00000.log"


# Deleting

FOREIGN = {
    "a file": lambda f: (f / "thesis.tex").write_text("years"),
    "folders of runs": lambda f: (f / "a").mkdir() or (f / "a/metrics.jsonl").write_text("{}"),
    "metrics of something else": lambda f: (f / "metrics.jsonl").write_text("{}"),
    "a config of something else": lambda f: (f / "config.json").write_text("{}"),
    "another program's run.json": lambda f: (f / "run.json").write_text('{"run": "x"}'),
    "a damaged marker alone": lambda f: (f / "run.json").write_text('{"made_by": "jaxcre'),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_run_is_neither_deleted_nor_trained_in(what, tmp_path):
    folder = tmp_path / "micro"
    folder.mkdir()
    FOREIGN[what](folder)
    before = contents(folder)
    with pytest.raises(
        FileExistsError, match="is not a run that jaxcredit created.*--overwrite does not delete it"
    ):
        run(experiment(), folder, overwrite=True)
    if what != "metrics of something else":
        for resume in (False, True):
            with pytest.raises(FileExistsError, match="holds files that do not belong to a run"):
                run(experiment(), folder, resume=resume)
    assert contents(folder) == before


def test_a_link_is_not_followed(copy, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    before = contents(copy)
    with pytest.raises(FileExistsError, match="is a link to .*does not follow links"):
        run(experiment(), tmp_path / "link", overwrite=True)
    assert contents(copy) == before


@pytest.mark.parametrize("older", [False, True], ids=["marked", "made before markers"])
def test_a_run_is_deleted_when_the_new_one_is_checked(older, copy, monkeypatch):
    if older:
        (copy / "run.json").unlink()
    (copy / "report.md").write_text("old")
    before = contents(copy)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no such device"):
        patch.setattr(
            "jaxcredit.train.run.build",
            lambda exp: (_ for _ in ()).throw(RuntimeError("no such device")),
        )
        run(experiment(steps=1), copy, overwrite=True)
    assert contents(copy) == before
    run(experiment(steps=1), copy, overwrite=True)
    assert [line["step"] for line in read_metrics(copy)] == [0, 1] and not (
        copy / "report.md"
    ).exists()
    assert RunFolder(copy).run_id() and not (copy / LOCK).exists()


# Refusals


CHANGED = {
    "another batch": {"prompts_per_step": 8},
    "another seed": {"seed": 1},
    "another architecture": {"policy": presets.micro(7, width=32, layers=1, heads=2)},
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_refused_resume_changes_nothing(what, copy, tmp_path):
    before = contents(copy)
    (tmp_path / "config.py").write_text("x = 1")
    source = {"config": str(tmp_path / "config.py"), "args": [], "credit": None}
    with pytest.raises((ValueError, CheckpointError)):
        run(
            dataclasses.replace(experiment(steps=6), **CHANGED[what]),
            copy,
            resume=True,
            source=source,
        )
    assert contents(copy) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"config": 3}', "\0\0"])
def test_a_damaged_config_json_is_said_and_written_anew(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    console = Console(file=io.StringIO(), width=200)
    with MetricsWriter(tmp_path, steps=1, config={"group": 4}, console=console):
        pass
    assert "config.json of this folder was damaged" in console.file.getvalue()
    assert json.loads((tmp_path / "config.json").read_text())["config"]["group"] == 4


def test_small_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    files.write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["config.json"]


# Damaged lines

BROKEN = [
    b"\0",
    b'{"step": 2, "rew',
    b"[1]",
    b"null",
    b'{"reward": 1.0}',
    b'{"step": "2"}',
    b"\xff\xfe",
    b"[" * 20000,
]


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
def test_a_damaged_line_costs_itself_alone(broken, tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "reward": 0.5}).encode() + b"\n" for step in range(6)]
    path.write_bytes(b"".join([*whole[:2], broken + b"\n", *whole[3:]]) + b'{"step": 6, "rew')
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 3, 4, 5]
    assert truncate_after(path, 4) == 1
    assert path.read_bytes() == b"".join([*whole[:2], *whole[3:5]])
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == broken + b"\n"
    assert truncate_after(path, 4) == 0 and path.read_bytes() == b"".join([*whole[:2], *whole[3:5]])


def test_a_resume_keeps_the_lines_behind_a_damaged_one(copy, capsys):
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = (copy / name).read_bytes().splitlines(keepends=True)
        lines[1] = lines[1].replace(b":", b"\0", 1)
        (copy / name).write_bytes(b"".join(lines))
    run(experiment(steps=5), copy, resume=True)
    assert [line["step"] for line in read_metrics(copy)] == [0, 2, 3, 4, 5]
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "metrics.jsonl: damaged lines (1) are moved to" in said
        and "samples.jsonl: damaged lines (1)" in said
    )


# A second trainer


def held(folder, **fields):
    entry = {
        **_this_process(),
        "since": "long ago",
        "token": "theirs",
        "beat": time.time(),
        **fields,
    }
    (folder / LOCK).write_text(json.dumps(entry))


def dead() -> int:
    """Id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_second_trainer_is_refused_and_changes_nothing(copy):
    lock = Lock(copy)
    assert lock.acquire(wait=False) == ""
    before = contents(copy)
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(
            Locked, match=rf"process {os.getpid()} on .* has been training in .*micro since .*UTC"
        ):
            run(experiment(steps=6), copy, **how)
    assert contents(copy) == before
    lock.release()
    assert not (copy / LOCK).exists()
    run(experiment(steps=5), copy, resume=True)


@pytest.mark.parametrize(
    "fields",
    [{"pid": dead}, {"started": "1"}, {"pid": -3}, {"pid": "x"}, {"pid": os.getpid}],
    ids=["ended", "id given out again", "no id", "no number", "this process"],
)
def test_the_lock_of_a_dead_process_of_this_machine_is_stolen_at_once(fields, tmp_path):
    fields = {k: v() if callable(v) else v for k, v in {"pid": os.getppid(), **fields}.items()}
    held(tmp_path, **fields)
    lock = Lock(tmp_path)
    assert lock.acquire(wait=False) == ""
    lock.check()
    lock.release()


@pytest.mark.parametrize(
    "fields", [{"host": "another"}, {"boot": "another"}, {"namespace": "another"}]
)
def test_a_lock_of_another_machine_is_watched(fields, tmp_path):
    held(tmp_path, pid=dead(), **fields)
    with pytest.raises(Locked, match="has been training"):
        Lock(tmp_path, beat_s=0.05, stale_s=0.2).acquire(wait=False)
    lock = Lock(tmp_path, beat_s=0.05, stale_s=0.2)
    told = lock.acquire(wait=True)
    assert "left" in told and "unless its heartbeat changes" in told
    time.sleep(0.3)
    assert lock.acquire(wait=True) == ""
    lock.release()


@pytest.mark.parametrize("age", [0, 1e6], ids=["fresh", "of a clock that is far behind"])
def test_a_heartbeat_of_another_machine_is_heard(age, tmp_path):
    held(tmp_path, host="another", beat=time.time() - age)
    lock = Lock(tmp_path, beat_s=60)
    assert lock.acquire(wait=True)
    held(tmp_path, host="another", beat=time.time() - age + 1)
    with pytest.raises(Locked, match="on another has been training"):
        lock.acquire(wait=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0"])
def test_a_damaged_lock_is_watched_like_a_foreign_one(text, tmp_path):
    (tmp_path / LOCK).write_text(text)
    lock = Lock(tmp_path, beat_s=0.01, stale_s=0.05)
    assert lock.acquire(wait=True)
    time.sleep(0.1)
    assert lock.acquire(wait=True) == ""
    lock.release()


def test_the_heartbeat_moves_and_a_lost_lock_stops_its_holder(tmp_path):
    lock = Lock(tmp_path, beat_s=0.02)
    lock.acquire(wait=False)
    first = json.loads((tmp_path / LOCK).read_text())["beat"]
    end = time.monotonic() + 60
    while json.loads((tmp_path / LOCK).read_text())["beat"] == first:
        assert time.monotonic() < end
        time.sleep(0.01)
    (tmp_path / LOCK).unlink()
    lock.check()  # a deleted lock file is written again by a later heartbeat
    while not (tmp_path / LOCK).exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    with lock.store.exclusive():
        held(tmp_path, host="another")
    with pytest.raises(FolderGone, match="on another has taken"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "another"


def test_a_run_folder_deleted_meanwhile_ends_the_run_and_is_not_made_anew(tmp_path, monkeypatch):
    log = MetricsWriter.log

    def deleting(self, step, metrics):
        log(self, step, metrics)
        if step == 3:
            while not (tmp_path / "micro/checkpoints/00000002/manifest.json").exists():
                time.sleep(0.01)
            shutil.rmtree(tmp_path / "micro")

    monkeypatch.setattr(MetricsWriter, "log", deleting)
    with pytest.raises(FolderGone, match="micro was deleted or moved during training"):
        run(experiment(steps=20), tmp_path / "micro")
    assert list(tmp_path.iterdir()) == []


# A bucket


@pytest.fixture(scope="module")
def bucket():
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    gcsfs = pytest.importorskip("gcsfs")
    server = Server("shelf")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        patch.setenv("GCE_METADATA_ROOT", "127.0.0.1:1")
        gcsfs.GCSFileSystem.clear_instance_cache()
        home._bucket_run_folder.cache_clear()
        yield server
    gcsfs.GCSFileSystem.clear_instance_cache()
    home._bucket_run_folder.cache_clear()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "name", ["../../PWNED", "hosts/../../PWNED", "/PWNED", "a//PWNED", "./PWNED"]
)
def test_an_object_whose_name_leads_out_is_not_written(name, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = f"runs/{abs(hash(name))}"
    bucket.store("shelf", f"{folder}/metrics.jsonl", b'{"step": 0}\n', None)
    bucket.store("shelf", f"{folder}/{name}", b"a stranger's\n", None)
    with pytest.raises(
        ValueError, match="an object in the bucket has a name outside the run folder"
    ):
        read_metrics(f"gs://shelf/{folder}")
    assert not list(tmp_path.rglob("PWNED"))
    with pytest.raises(ValueError, match="must be relative"):
        read_metrics("gs://shelf/runs/..")


def test_in_a_bucket_only_runs_are_deleted_and_one_trainer_works(bucket):
    bucket.store("shelf", "jobs/thesis/thesis.tex", b"years", None)
    with pytest.raises(FileExistsError, match="is not a run that jaxcredit created"):
        run(experiment(), "gs://shelf/jobs/thesis", overwrite=True)
    assert "jobs/thesis/thesis.tex" in bucket.objects["shelf"]
    home.open_run_folder("gs://shelf/jobs/a").write_marker()
    home.open_run_folder("gs://shelf/jobs/a").push()
    bucket.store("shelf", "jobs/a/report.md", b"old", None)
    bucket.store("shelf", "jobs/ab/report.md", b"another run's", None)
    lock = Lock("gs://shelf/jobs/a")
    lock.acquire(wait=False)
    with pytest.raises(Locked, match="has been training in gs://shelf/jobs/a"):
        run(experiment(), "gs://shelf/jobs/a", overwrite=True)
    lock.release()
    home.open_run_folder("gs://shelf/jobs/a").pull().clear()
    left = sorted(name for name in bucket.objects["shelf"] if name.startswith("jobs/a"))
    assert left == ["jobs/a/run.json", "jobs/ab/report.md"]


# Checkpoints


def state(step):
    import jax.numpy as jnp

    return {"w": jnp.full(8, float(step))}


@pytest.fixture
def saved(tmp_path):
    with Checkpoints(tmp_path, max_to_keep=5, run="mine") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), {"at": step})
    return tmp_path


def tampered(name, text):
    """Replace a file of the newest checkpoint, and adapt the manifest."""

    def change(folder):
        newest = folder / "00000003"
        (newest / name).write_text(text)
        if name != "manifest.json":
            (newest / "manifest.json").unlink()
            (newest / "manifest.json").write_text(
                json.dumps(store.open_storage(folder).checksums("00000003"))
            )

    return change


def swapped(folder):
    for old, new in (("00000003", "x"), ("00000002", "00000003"), ("x", "00000002")):
        (folder / old).rename(folder / new)


DAMAGE = {
    f"a manifest of {text}": tampered("manifest.json", text)
    for text in ("{}", "[]", "null", "3", '"a"', '{"side.json": 3}', "[[")
}
DAMAGE |= {
    f"a side of {text}": tampered("side.json", text)
    for text in ("{}", "[]", "null", '{"step": 3}', "\0", '{"step": "3"}')
}
DAMAGE |= {"the step of another": lambda folder: (folder / "00000003").rename(folder / "00000007")}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_manifest_or_side_is_named_and_the_one_before_is_used(what, saved):
    DAMAGE[what](saved)
    with (
        Checkpoints(saved, run="mine") as checkpoints,
        pytest.warns(UserWarning, match="0000000[37] .*skipped, trying the one before"),
    ):
        _, side, step = checkpoints.restore(state(0))
    assert (side["at"], step) == (2, 2)


def test_swapped_steps_are_both_refused(saved):
    swapped(saved)
    with (
        Checkpoints(saved, run="mine") as checkpoints,
        pytest.warns(UserWarning, match="not the step of its folder"),
    ):
        assert checkpoints.restore(state(0))[2] == 1


def test_a_checkpoint_of_another_run_is_refused_and_one_of_before_is_taken(saved):
    with (
        Checkpoints(saved, run="another") as checkpoints,
        pytest.warns(UserWarning, match="belongs to another run"),
    ):
        assert checkpoints.restore(state(0)) is None
    side = json.loads((saved / "00000003/side.json").read_text())
    del side["run"]  # as in checkpoints made before runs had ids
    tampered("side.json", json.dumps(side))(saved)
    with Checkpoints(saved, run="another") as checkpoints:
        assert checkpoints.restore(state(0))[2] == 3


@pytest.mark.parametrize("name", ["²", "00000099x", "٣٣٣٣٣٣٣٣", "9", "9" * 200])
def test_folders_that_are_no_steps_are_left_alone(name, saved):
    (saved / name).mkdir()
    (saved / name / "manifest.json").write_text("{}")
    with Checkpoints(saved, run="mine") as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]


def test_a_run_without_its_marker_goes_on_under_its_identity(copy, made):
    (copy / "run.json").unlink()
    run(experiment(steps=6), copy, resume=True)
    assert RunFolder(copy).run_id() == RunFolder(made).run_id()
    assert metrics_without_times(copy)[:5] == metrics_without_times(made)
