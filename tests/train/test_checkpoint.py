import ctypes
import ctypes.util
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcredit.collect.batches import Batches
from jaxcredit.train.runs.checkpoint import CheckpointError, Checkpoints, CheckpointWarning, verify
from jaxcredit.train.runs.preemption import Preemption


def make_state(seed=0, width=64):
    params = {
        "embed": jax.random.normal(jax.random.key(seed), (32, width)),
        "layers": {"wq": jnp.arange(width, dtype=jnp.bfloat16)},
    }
    return {
        "params": params,
        "opt": optax.adamw(1e-3).init(params),
        "key": jax.random.key(seed + 7),
        "step": jnp.int32(seed),
        "clock": 3,
    }


def raw(x):
    x = (
        jax.random.key_data(x)
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        else x
    )
    return np.asarray(x)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert raw(x).dtype == raw(y).dtype
        assert raw(x).tobytes() == raw(y).tobytes()


def saved(folder, steps=(10, 20, 30), max_to_keep=5):
    with Checkpoints(folder, max_to_keep=max_to_keep) as ckpt:
        for s in steps:
            ckpt.save(s, make_state(s), {"at": s})
    return folder


def test_save_and_restore_is_bit_exact_with_key_and_iterator(tmp_path):
    stream = Batches(50, 8, seed=1)
    [next(stream) for _ in range(9)]
    state = make_state(3)
    with Checkpoints(tmp_path, every=5) as ckpt:
        assert ckpt.restore(state) is None
        assert [s for s in range(1, 12) if ckpt.due(s)] == [5, 10]
        ckpt.save(9, state, {"iterator": stream.get_state(), "hash": "abc"})
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x, state
    )
    with Checkpoints(tmp_path) as ckpt:
        for like in (make_state(0), shapes):
            got, side, step = ckpt.restore(like)
            assert_same(got, state)
            assert (step, side["hash"], got["clock"]) == (9, "abc", 3)
    assert jax.random.uniform(got["key"]) == jax.random.uniform(state["key"])
    again = Batches(50, 8, seed=1)
    again.set_state(side["iterator"])
    np.testing.assert_array_equal(next(again), next(stream))


def test_what_is_donated_after_save_is_what_lies_on_the_disk(tmp_path):
    step = functools.partial(jax.jit, donate_argnums=0)(lambda t: jax.tree.map(lambda x: x + 1, t))
    state = {f"w{i}": jnp.full((512, 1024), float(i)) for i in range(8)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with Checkpoints(tmp_path) as ckpt:
        ckpt.save(1, state)
        for _ in range(10):
            state = step(state)
        got, _, _ = ckpt.restore(shapes)
    assert all((got[f"w{i}"] == i).all() for i in range(8))


def test_restore_on_another_mesh(tmp_path):
    w = jax.random.normal(jax.random.key(0), (16, 8))
    spread = NamedSharding(
        jax.make_mesh((4, 2), ("fsdp", "tensor"), devices=jax.devices()), P("fsdp", "tensor")
    )
    with Checkpoints(tmp_path) as ckpt:
        ckpt.save(1, {"w": jax.device_put(w, spread), "b": w[0]})
        for mesh, spec in (((8,), P("x")), ((2,), P(None, "x")), ((1,), P())):
            target = NamedSharding(
                jax.make_mesh(mesh, ("x",), devices=jax.devices()[: mesh[0]]), spec
            )
            got, _, _ = ckpt.restore(
                {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=target)}, partial=True
            )
            assert got["w"].sharding == target
            np.testing.assert_array_equal(got["w"], w)


def test_keep_and_saving_a_step_twice(tmp_path):
    with Checkpoints(tmp_path, max_to_keep=2) as ckpt:
        for s in (1, 2, 3, 4, 4):
            ckpt.save(s, make_state(s))
        ckpt.wait()
        assert ckpt.steps() == [3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000003", "00000004"]


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize(
    "damage", [truncate, flip, lambda p: p.unlink()], ids=["truncated", "bit flipped", "deleted"]
)
@pytest.mark.parametrize(
    "which",
    [largest, lambda f: f / "side.json", lambda f: f / "manifest.json"],
    ids=["arrays", "side", "manifest"],
)
def test_a_damaged_newest_is_named_and_skipped(tmp_path, damage, which):
    saved(tmp_path)
    damage(which(tmp_path / "00000030"))
    with Checkpoints(tmp_path) as ckpt:
        if ckpt.steps() == [10, 20]:  # a folder without a manifest is not a checkpoint
            got, side, step = ckpt.restore(make_state())
        else:
            with pytest.warns(CheckpointWarning, match="00000030 .*skipped"):
                got, side, step = ckpt.restore(make_state())
        assert (step, side["at"]) == (20, 20)
        assert_same(got, make_state(20))
        with pytest.raises(CheckpointError, match="00000030 .*choose another"):
            ckpt.restore(make_state(), step=30)
        # The run continues from 20, and replaces the damaged checkpoint of step 30.
        ckpt.save(30, make_state(31), {"at": 31})
        assert ckpt.restore(make_state())[1]["at"] == 31


def test_every_single_flipped_bit_is_seen(tmp_path):
    folder = saved(tmp_path, steps=(1,)) / "00000001"
    assert verify(folder) == ""
    rng = np.random.default_rng(0)
    for path in [
        p
        for p in folder.rglob("*")
        if p.is_file() and p.name not in ("manifest.json",) and p.stat().st_size
    ]:
        data = path.read_bytes()
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        assert path.name in verify(folder)
        path.write_bytes(data)
    assert verify(folder) == ""


def test_all_damaged_is_no_checkpoint(tmp_path):
    saved(tmp_path, steps=(1, 2))
    for s in (1, 2):
        flip(largest(tmp_path / f"{s:08d}"))
    with Checkpoints(tmp_path) as ckpt, pytest.warns(CheckpointWarning) as told:
        assert ckpt.restore(make_state()) is None
    assert [f"0000000{s}" in str(w.message) for s, w in zip((2, 1), told, strict=True)] == [
        True,
        True,
    ]


def test_a_given_up_future_goes_when_the_new_one_is_complete(tmp_path):
    saved(tmp_path)
    with Checkpoints(tmp_path, max_to_keep=5) as ckpt:
        _, _, step = ckpt.restore(make_state(), step=10)
        assert step == 10
        ckpt.save(15, make_state(15))
        ckpt.wait()
        assert ckpt.steps() == [10, 15]


def test_another_model_is_told_apart_by_name(tmp_path):
    saved(tmp_path, steps=(1,))
    with Checkpoints(tmp_path) as ckpt:
        with pytest.raises(
            CheckpointError, match=r"embed float32\[32, 65\] \(saved: float32\[32, 64\]\)"
        ):
            ckpt.restore(make_state(width=65))
        with pytest.raises(CheckpointError, match="it lacks: extra"):
            ckpt.restore({**make_state(), "extra": jnp.zeros(2)})
        with pytest.raises(CheckpointError, match="it has besides: .*opt.0.mu.embed"):
            ckpt.restore({"params": make_state()["params"]})
        got, _, _ = ckpt.restore({"params": make_state()["params"]}, partial=True)
        assert_same(got["params"], make_state(1)["params"])


def test_no_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    saved(tmp_path, steps=(1,))
    full = lambda path: shutil._ntuple_diskusage(100, 90, 10)  # noqa: E731
    with Checkpoints(tmp_path) as ckpt:
        with monkeypatch.context() as m:
            m.setattr(shutil, "disk_usage", full)
            with pytest.warns(
                CheckpointWarning, match=r"disk is full.*free [\d,]+ bytes.*steps \[1\].*goes on"
            ):
                ckpt.save(2, make_state(2))
            with pytest.raises(CheckpointError, match="disk is full"):
                ckpt.wait()
            assert ckpt.restore(make_state())[2] == 1
        ckpt.save(3, make_state(3))  # space was freed: the error is cleared
        ckpt.wait()
        assert ckpt.steps() == [1, 3]


def test_no_room_in_the_middle_of_a_write(tmp_path, monkeypatch):
    saved(tmp_path, steps=(1,))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("jaxcredit.train.runs.storage.Disk.write", full)
    ckpt = Checkpoints(tmp_path)
    ckpt.save(2, make_state(2))
    with (
        pytest.warns(CheckpointWarning, match="step 2 .*disk is full"),
        pytest.raises(CheckpointError, match="disk is full"),
    ):
        ckpt.close()
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
    assert verify(tmp_path / "00000001") == ""


@pytest.fixture
def tiny_disk(tmp_path):
    """File system of four megabytes, which only root can mount."""
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    folder = tmp_path / "disk"
    folder.mkdir()
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=4m"):
        pytest.skip(f"cannot mount a tmpfs: {os.strerror(ctypes.get_errno())}")
    yield folder
    libc.umount2(str(folder).encode(), 2)


def test_a_disk_that_is_really_full(tiny_disk, monkeypatch):
    noise = lambda s, n: {"w": jax.random.bits(jax.random.key(s), (n, 1 << 18), jnp.uint32)}  # noqa: E731
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)
    )  # the check passes, the write fails
    ckpt = Checkpoints(tiny_disk, max_to_keep=2)
    ckpt.save(1, noise(1, 1))
    ckpt.wait()
    ckpt.save(2, noise(2, 5))
    with (
        pytest.warns(CheckpointWarning, match="step 2 .*disk is full"),
        pytest.raises(CheckpointError, match="disk is full"),
    ):
        ckpt.wait()
    got, _, step = ckpt.restore(noise(0, 1))
    assert step == 1
    assert_same(got, noise(1, 1))
    ckpt.save(3, noise(3, 1))  # the failed save has freed its space
    ckpt.close()
    assert ckpt.steps() == [1, 3]


KILLED = """
    import sys, time, jax, jax.numpy as jnp
    from jaxcredit.train.runs import checkpoint, storage as store
    folder, where = sys.argv[1:]
    write = store.Disk.write
    def slow(self, name, text):
        if where in name:
            print("inside", flush=True)
            time.sleep(60)
        write(self, name, text)
    ckpt = checkpoint.Checkpoints(folder, max_to_keep=1)
    ckpt.save(1, {"w": jnp.arange(1000.0)})
    ckpt.wait()
    if where == "orbax":
        ckpt._orbax.wait_until_finished = lambda: (print("inside", flush=True), time.sleep(60))
    else:
        store.Disk.write = slow
    ckpt.save(2, {"w": -jnp.arange(1000.0)})
    time.sleep(60)
"""


@pytest.mark.parametrize("where", ["orbax", "side.json", "manifest.json"])
def test_kill_inside_a_save_leaves_the_one_before(tmp_path, where):
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), where],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "inside\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert (tmp_path / "00000002").exists()
    with Checkpoints(tmp_path, max_to_keep=1) as ckpt:
        got, _, step = ckpt.restore({"w": jnp.zeros(1000)})
        assert step == 1
        np.testing.assert_array_equal(got["w"], np.arange(1000.0))
        ckpt.save(2, {"w": -jnp.arange(1000.0)})
        ckpt.wait()
        assert ckpt.steps() == [2]
    assert [p.name for p in tmp_path.iterdir()] == ["00000002"]


def test_side_must_be_json(tmp_path):
    with Checkpoints(tmp_path) as ckpt, pytest.raises(TypeError, match="JSON"):
        ckpt.save(1, make_state(), {"iterator": object()})
    assert not list(tmp_path.iterdir())


def test_sigterm_asks_once_and_the_handler_goes_away():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as stop:
        assert not stop.should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop.should_stop(2)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a second one ends the process
    assert signal.getsignal(signal.SIGTERM) is before


def test_manifest_is_json_with_sizes(tmp_path):
    manifest = json.loads((saved(tmp_path, steps=(1,)) / "00000001" / "manifest.json").read_text())
    assert manifest["side.json"][0] == (tmp_path / "00000001" / "side.json").stat().st_size
