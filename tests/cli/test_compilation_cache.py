"""Cache of compiled programs: bounded size, no partial entries, no failure if it is unusable."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from jaxcredit.cli import compilation_cache

# Two programs of some kB, compiled or read from the cache. `hits` counts jax's own events of
# programs that were read.
PROGRAM = """
import resource, signal, sys
from jaxcredit.cli import compilation_cache
compilation_cache.SECONDS = 0.0
folder = compilation_cache.begin()
if sys.argv[1:]:  # largest file in bytes: the kernel kills a process that exceeds it
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
import jax, jax.numpy as jnp
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
x = jnp.arange(12.0).reshape(3, 4)
def first(x):
    return jnp.linalg.norm(jnp.sin(x) @ x.T)
def second(x):
    return jax.nn.softmax(jnp.cos(x) @ x.T).sum(0)
numbers = [float(jax.jit(first)(x)).hex(), *(float(v).hex() for v in jax.jit(second)(x))]
print(folder, events.count("/jax/compilation_cache/cache_hits"), *numbers)
"""


def ran(tmp_path, *words, code=0, **env):
    """Cache folder, hits and results of PROGRAM in a new process."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))
    }
    ours |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), **env}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env=ours,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    assert "rror" not in done.stderr or "not kept" in done.stderr, done.stderr
    if code:
        return None
    folder, hits, *numbers = done.stdout.splitlines()[-1].split()
    return folder, int(hits), numbers, done.stderr


def entries(folder):
    return {file.name: file.stat().st_size for file in Path(folder).glob("*-cache")}


def test_a_kill_in_the_middle_of_a_write_leaves_nothing_that_is_read(tmp_path):
    ran(tmp_path, "1500", code=-25)  # SIGXFSZ
    (folder,) = (tmp_path / "jaxcredit/programs").iterdir()
    left = entries(folder)  # smaller ones before it were written whole
    (half,) = (name for name, size in left.items() if size == 1500)
    _, hits, numbers, _ = ran(tmp_path)
    whole = entries(folder)
    assert hits == len(left) - 1 and whole[half] > 1500  # compiled again, and written anew
    _, hits, again, _ = ran(tmp_path)
    assert hits == len(whole) >= 2 and again == numbers and entries(folder) == whole


def test_the_folder_stays_within_its_size(tmp_path):
    """The least recently used programs are removed first."""
    folder, _, numbers, _ = ran(tmp_path)
    most = max(entries(folder).values()) + 100
    for file in Path(folder).glob("*-*"):
        file.unlink()
    assert ran(tmp_path, JAX_COMPILATION_CACHE_MAX_SIZE=str(most))[2] == numbers
    assert entries(folder) and sum(entries(folder).values()) <= most


@pytest.mark.parametrize(
    "env",
    [
        {"JAXCREDIT_CACHE": "off"},
        {"JAX_COMPILATION_CACHE_DIR": "/nonexistent"},
        {"JAX_ENABLE_COMPILATION_CACHE": "0"},
    ],
    ids=str,
)
def test_it_is_switched_off_and_the_users_own_is_left(env, monkeypatch, tmp_path):
    code = (
        "from jaxcredit.cli import compilation_cache as c; import jax; "
        "print(c.begin(), jax.config.jax_compilation_cache_dir)"
    )
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")
    }
    ours |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), **env}
    done = subprocess.run(
        [sys.executable, "-c", code], env=ours, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["None", env.get("JAX_COMPILATION_CACHE_DIR", "None")], (
        done.stderr
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_said_once_and_nothing_else_changes(tmp_path):
    (tmp_path / "file").write_text("")
    folder, hits, _, said = ran(tmp_path, JAXCREDIT_CACHE=str(tmp_path / "file"))
    assert (folder, hits) == ("None", 0)
    assert (
        said.count("\n") == 1
        and "compiled programs are not cached" in said
        and str(tmp_path / "file") in said
    )


def test_each_kind_of_cpu_has_its_own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXCREDIT_CACHE", str(tmp_path))
    here = compilation_cache.folder()
    monkeypatch.setattr(compilation_cache.platform, "machine", lambda: "riscv64")
    assert (
        here.parent == compilation_cache.folder().parent == tmp_path
        and here != compilation_cache.folder()
    )


def test_an_entry_that_is_whole_is_kept_and_others_are_removed(tmp_path):
    for name, written in {
        "a-cache": "x",
        "a-atime": "12345678",
        "b-cache": "x",
        "c-cache": "x",
        "c-atime": "",
        "d-cache": "",
    }.items():
        (tmp_path / name).write_text(written)
    (tmp_path / "d-atime").write_text("12345678")
    compilation_cache.clean(tmp_path)
    assert {file.name for file in tmp_path.glob("?-*")} == {"a-cache", "a-atime"}
