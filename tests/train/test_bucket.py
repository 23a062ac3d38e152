"""Runs in a bucket, with a fake server of Google Cloud Storage for gcsfs and TensorStore."""

import json
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_gcs import Server
from launch_tools import free_port
from micro_experiment import build
from paths import MICRO
from run_metrics import metrics_without_times

from jaxcredit.cli import main as cli
from jaxcredit.train.runs import folder as home
from jaxcredit.train.runs import storage as store
from jaxcredit.train.runs.checkpoint import CheckpointError, Checkpoints, CheckpointWarning, verify
from jaxcredit.train.runs.json_lines import read_metrics

# gcsfs reads this at import: without credentials it cannot query the type of a bucket.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
gcsfs = pytest.importorskip("gcsfs")


@pytest.fixture(scope="module")
def storage():
    """Bucket `shelf`, for this process and its children."""
    server = Server("shelf")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)  # gcsfs
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        patch.setenv("GCE_METADATA_ROOT", "127.0.0.1:1")  # no credentials there either
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield store.gcs_filesystem()
    gcsfs.GCSFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


def state(seed: int) -> dict:
    return {
        "w": jax.random.normal(jax.random.key(seed), (32, 64)),
        "half": jnp.arange(8, dtype=jnp.bfloat16) * seed,
        "clock": seed,
    }


def names(storage, folder: str) -> set[str]:
    return {
        name.removeprefix(folder.removeprefix("gs://")).strip("/") for name in storage.find(folder)
    }


def test_checkpoints_are_saved_kept_and_restored_bit_for_bit(storage):
    with Checkpoints("gs://shelf/plain", max_to_keep=2) as checkpoints:
        assert checkpoints.steps() == [] and checkpoints.restore(state(0)) is None
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), {"at": step})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    with Checkpoints("gs://shelf/plain") as checkpoints:
        got, side, step = checkpoints.restore(state(0))
        assert (side, step, got["clock"]) == ({"at": 3}, 3, 3)
        for name in ("w", "half"):
            assert got[name].dtype == state(3)[name].dtype
            np.testing.assert_array_equal(
                np.asarray(got[name], np.float32), np.asarray(state(3)[name], np.float32)
            )
        assert checkpoints.restore({"w": state(0)["w"]}, step=2, partial=True)[2] == 2
    assert verify("gs://shelf/plain/00000003") == ""


def test_a_damaged_one_is_named_and_the_one_before_is_used(storage):
    with Checkpoints("gs://shelf/hurt", max_to_keep=9) as checkpoints:
        for step in (1, 2, 3, 4, 5):
            checkpoints.save(step, state(step))
    biggest = {
        s: max(
            storage.find(f"gs://shelf/hurt/0000000{s}", detail=True).values(),
            key=lambda info: info["size"],
        )
        for s in (2, 3, 4)
    }
    storage.rm(biggest[2]["name"])
    storage.pipe_file(biggest[3]["name"], storage.cat_file(biggest[3]["name"])[:-1])
    flipped = bytearray(storage.cat_file(biggest[4]["name"]))
    flipped[len(flipped) // 2] ^= 1
    storage.pipe_file(biggest[4]["name"], bytes(flipped))
    storage.rm("gs://shelf/hurt/00000005/manifest.json")  # as after an interrupted save
    said = [verify(f"gs://shelf/hurt/0000000{s}") for s in (1, 2, 3, 4, 5)]
    for words, text in zip(
        ("", "is missing", "bytes instead of", "the checksum of", "no manifest"), said, strict=True
    ):
        assert words in text and bool(words) == bool(text)
    with Checkpoints("gs://shelf/hurt", max_to_keep=9) as checkpoints:
        with pytest.warns(CheckpointWarning) as told:
            got, _, step = checkpoints.restore(state(0))
        assert [
            "gs://shelf/hurt/00000004 is damaged: the checksum" in str(w.message) for w in told
        ] == [True, False, False]
        assert step == 1 and got["clock"] == 1
        checkpoints.save(6, state(6))
        checkpoints.wait()
        assert not storage.exists(
            "gs://shelf/hurt/00000005"
        )  # the next save deletes an incomplete one
        with pytest.raises(CheckpointError, match="is damaged"):
            checkpoints.restore(state(0), step=3)


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_on_a_disk(storage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxcredit.train.run.build", build)
    cli.main(["train", MICRO, "--runs", str(tmp_path), "--run", "a", "--steps", "4"])
    cli.main(["train", MICRO, "--runs", "gs://shelf/runs/", "--run", "a", "--steps", "2"])
    assert names(storage, "gs://shelf/runs/a") >= {
        "metrics.jsonl",
        "config.py",
        "source.json",
        "hosts/00000.log",
        "curves.png",
    }
    home._bucket_run_folder.cache_clear()  # as on another machine
    cli.main(
        [
            "train",
            MICRO,
            "--runs",
            "gs://shelf/runs",
            "--run",
            "a",
            "--steps",
            "4",
            "--resume",
            "auto",
        ]
    )
    assert "gs://shelf/runs/a" in capsys.readouterr().out
    home._bucket_run_folder.cache_clear()
    assert (
        metrics_without_times("gs://shelf/runs/a") == metrics_without_times(tmp_path / "a")
        and len(read_metrics("gs://shelf/runs/a")) == 5
    )
    with pytest.raises(SystemExit):
        cli.main(["train", MICRO, "--runs", "gs://shelf/runs", "--run", "a"])
    assert "gs://shelf/runs/a holds a run already" in " ".join(capsys.readouterr().err.split())

    cli.main(
        ["compare", "gs://shelf/runs/a", str(tmp_path / "a"), "--out", str(tmp_path / "both.png")]
    )
    cli.main(["eval", "gs://shelf/runs/a", "--k", "2", "--json"])
    cli.main(["eval", str(tmp_path / "a"), "--k", "2", "--json"])
    there, here = (
        json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")
    )
    assert there == here and there["step"] == 4
    cli.main(["report", "gs://shelf/runs/a", "--prompts", "16"])
    assert (
        "gs://shelf/runs/a/report.md" in capsys.readouterr().out
        and storage.size("gs://shelf/runs/a/report.md") > 1000
    )

    cli.main(
        ["train", MICRO, "--runs", "gs://shelf/runs", "--run", "a", "--steps", "1", "--overwrite"]
    )
    assert [line["step"] for line in read_metrics("gs://shelf/runs/a")] == [
        0,
        1,
    ] and not storage.exists("gs://shelf/runs/a/report.md")


def test_records_wait_for_a_bucket_that_is_out_of_reach(storage, monkeypatch):
    place = home.open_run_folder("gs://shelf/late").pull()
    (place.path / "metrics.jsonl").write_text("{}\n")
    with monkeypatch.context() as patch:
        patch.setattr(
            place,
            "files",
            type(
                "Gone", (), {"put_file": lambda *_: (_ for _ in ()).throw(OSError("unplugged"))}
            )(),
        )
        with pytest.warns(
            UserWarning,
            match=r"gs://shelf/late cannot be written \(OSError: unplugged\): "
            "its newest records are in ",
        ):
            place.push()
        with (
            pytest.warns(UserWarning),
            pytest.raises(
                OSError,
                match="gs://shelf/late lacks files that are only in .*, "
                "and a download would overwrite them",
            ),
        ):
            place.pull()
    assert not storage.exists("gs://shelf/late") and place._has_unsent_files
    place.pull()  # uploads first
    assert (
        storage.cat_file("gs://shelf/late/metrics.jsonl") == b"{}\n" and not place._has_unsent_files
    )
    storage.pipe_file("gs://shelf/late/metrics.jsonl", b"[]\n")  # written by another machine
    (place.path / "old.txt").write_text("")
    assert (home.local_path("gs://shelf/late") / "metrics.jsonl").read_text() == "[]\n" and not (
        place.path / "old.txt"
    ).exists()


def test_what_is_said_of_other_addresses(storage, capsys, monkeypatch):
    assert store.bucket_address("gs:/shelf/a/") == "gs://shelf/a" and store.bucket_address(
        "runs/a"
    ) == "" == store.bucket_address("/runs/gs://")
    with pytest.raises(
        ValueError,
        match=r"s3://b/runs/a: run folders lie on a file system or in a bucket, gs://BUCKET",
    ):
        home.open_run_folder("s3://b/runs/a")
    for argv in (["train", MICRO, "--runs", "gs://nobodys"], ["eval", "gs://nobodys/micro"]):
        with pytest.raises(SystemExit):
            cli.main(argv)
        said = " ".join(capsys.readouterr().err.split())
        assert (
            "gs://nobodys/micro cannot be read" in said
            and "does the bucket exist" in said
            and "Traceback" not in said
        )


@pytest.mark.slow
def test_two_processes_without_a_common_disk_keep_their_run_in_a_bucket(storage, tmp_path):
    words = [
        "-c",
        "from jaxcredit.cli import main as cli; cli.main()",
        "train",
        MICRO,
        "--steps",
        "3",
        "--fsdp",
        "2",
        "--runs",
        "gs://shelf/jobs",
    ]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "TMPDIR": str(tmp_path)}
    job = [*words, "--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process"]
    jobs = [
        subprocess.Popen(
            [sys.executable, *job, str(i)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in (0, 1)
    ]
    told = [j.communicate(timeout=900)[0] for j in jobs]
    assert [j.returncode for j in jobs] == [0, 0], "\n".join(told)
    assert names(storage, "gs://shelf/jobs/micro") >= {
        "hosts/00000.log",
        "hosts/00001.log",
        "metrics.jsonl",
    }
    assert any("ocdbt.process_1" in name for name in names(storage, "gs://shelf/jobs/micro"))
    assert verify("gs://shelf/jobs/micro/checkpoints/00000003") == ""
    assert [line["step"] for line in read_metrics("gs://shelf/jobs/micro")] == [0, 1, 2, 3]
    assert not list(tmp_path.glob("jaxcredit-*"))  # uploaded files are deleted locally
