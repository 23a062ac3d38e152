"""Imports of private or experimental modules: a list of each with the fallback where it is missing,
and a test of each fallback.
"""

import ast
import dataclasses
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from paths import ROOT

from jaxcredit.parallel import compat, mesh, processes
from jaxcredit.policy import fused_attention as fused
from jaxcredit.policy import transformer

PRIVATE = re.compile(
    r"jax\.(experimental|interpreters|lib|extend)\b|jaxlib\b|orbax\.(?!checkpoint$)|.*\b_\w"
)
SPLASH = "jax.experimental.pallas.ops.tpu.splash_attention"
# (file, module): the behavior if the module is missing.
LISTED = {
    (
        "jaxcredit/parallel/compat.py",
        "jax.experimental.mesh_utils",
    ): "jax.make_mesh: test_a_mesh_without_mesh_utils",
    (
        "jaxcredit/parallel/compat.py",
        "jax.experimental.topologies",
    ): "an error that says so: test_no_topologies",
    (
        "jaxcredit/policy/splash_attention.py",
        f"{SPLASH}.splash_attention_kernel",
    ): "plain attention: test_no_splash_attention",
    (
        "jaxcredit/policy/splash_attention.py",
        f"{SPLASH}.splash_attention_mask",
    ): "plain attention: test_no_splash_attention",
    (
        "tests/conftest.py",
        "jax.experimental.enable_x64",
    ): "jax.enable_x64, from jax 0.8 on; run by every session",
    (
        "tests/project/test_launch.py",
        "jax.experimental.topologies",
    ): "the test is skipped without libtpu",
}


def imports(text: str):
    """Modules and names that a file imports, also in programs inside its strings."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "import " in node.value
        ):
            yield from map(".".join, re.findall(r"\bfrom ([\w.]+) import (\w+)", node.value))
            yield from re.findall(r"^import ([\w.]+)", node.value, re.M)


def private():
    files = [
        file
        for folder in ("jaxcredit", "tests", "configs", "notebooks")
        for file in sorted((ROOT / folder).rglob("*.py"))
    ]
    own = {file.stem for file in files} | {"jaxcredit"}
    for file in files:
        if file == Path(__file__):
            continue
        for module in imports(file.read_text()):
            if (
                module.partition(".")[0] not in own
                and PRIVATE.match(module)
                and not module.startswith("__future__")
            ):
                yield str(file.relative_to(ROOT)), module


def test_every_private_import_is_listed():
    assert set(private()) == LISTED.keys()
    names = {name for name in globals() if name.startswith("test_")}
    for what in LISTED.values():
        assert set(re.findall(r"\btest_\w+", what)) <= names


@pytest.mark.parametrize(
    "line",
    [
        "from jax import _src",
        "import jax.experimental.pjit",
        "from jax.experimental import shard_alike",
        "from jax._src.lib import x",
    ],
)
def test_such_a_line_is_found(line):
    assert any(PRIVATE.match(module) for module in imports(line)), line


@pytest.fixture
def gone(monkeypatch):
    """Function that makes the import of a module fail until the end of the test."""

    def gone(name: str) -> None:
        parent, _, last = name.rpartition(".")
        monkeypatch.delattr(sys.modules.get(parent), last, raising=False)
        monkeypatch.setitem(sys.modules, name, None)

    return gone


def test_a_mesh_without_mesh_utils(gone):
    shapes = {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}
    before = [mesh.make(shape).devices for shape in shapes]
    gone("jax.experimental.mesh_utils")
    for shape, devices in zip(shapes, before, strict=True):
        assert (mesh.make(shape).devices == devices).all()


@pytest.mark.parametrize(
    "shape",
    [
        {"data": 4, "fsdp": 2, "tensor": 2},
        {"fsdp": 2, "data": 2, "tensor": 4},
        {"data": 2, "fsdp": 8},
    ],
    ids=str,
)
def test_the_grid_of_several_slices_is_jaxs_own(shape):
    mesh_utils = pytest.importorskip("jax.experimental.mesh_utils")
    devices = [
        SimpleNamespace(id=i, slice_index=i % 2, platform="cpu", device_kind="cpu", process_index=0)
        for i in range(16)
    ]
    within = tuple(size // 2 if axis == "data" else size for axis, size in shape.items())
    across = tuple(2 if axis == "data" else 1 for axis in shape)
    want = mesh_utils.create_hybrid_device_mesh(within, across, devices)
    ids = np.vectorize(lambda device: device.id)
    np.testing.assert_array_equal(ids(mesh.grid(shape, devices)), ids(want))


def test_no_topologies(gone):
    gone("jax.experimental.topologies")
    with pytest.raises(
        ImportError, match="cannot compile for TPUs that are not attached: plan without --topology"
    ):
        compat.tpu_devices("v5e:2x2")


def test_no_splash_attention(gone):
    import jaxcredit.policy.splash_attention  # noqa: F401

    gone("jaxcredit.policy.splash_attention")
    del sys.modules["jaxcredit.policy.splash_attention"]
    gone(SPLASH)
    cfg = transformer.Config(
        vocab=8, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=32, attention="auto"
    )
    with mesh.planned(
        [SimpleNamespace(platform="tpu", client=SimpleNamespace(platform_version=""))]
    ):
        assert fused.choose_attention(cfg) == (
            "plain",
            f"splash is not part of jax {jax.__version__}",
        )
        with pytest.raises(ValueError, match="use 'auto' or 'plain'"):
            fused.choose_attention(dataclasses.replace(cfg, attention="splash"))


def test_values_of_all_processes():
    """In one process; tests/parallel/test_parallel.py and tests/train/test_elastic.py use several
    processes.
    """
    for x in (np.int32(3), np.float32(0.5), True, np.arange(6.0, dtype=np.float32).reshape(2, 3)):
        got = processes.all_gather(x)
        assert got.shape == (1, *np.shape(x)) and got.dtype == np.asarray(x).dtype
        np.testing.assert_array_equal(got[0], x)
    processes.barrier()
    cut = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("a",)), PartitionSpec("a"))
    np.testing.assert_array_equal(
        processes.replicated(jax.device_put(np.arange(8), cut)), np.arange(8)
    )
