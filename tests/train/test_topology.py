"""Plans for TPU topologies, and bytes that compiled programs send."""

import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from missing_packages import NO_LIBTPU
from paths import CONFIGS, HELPERS, MICRO

from jaxcredit.cli import main as cli
from jaxcredit.parallel import mesh
from jaxcredit.train.planning import collectives, memory, topology

# HLO text of the TPU compiler: a loop whose condition holds its length; groups by axes, lists and
# strides; an asynchronous gather that appears in several computations; a reduce-scatter as an
# all-reduce of which a part is used; a Pallas kernel whose configuration has several lines.
TPU = """HloModule jit_step, num_partitions=8

%body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %kernel = bf16[8,16]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 512}"
}}, metadata={op_name="splash"}
  %g = bf16[32,16]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
  %one = bf16[8,16] fusion(%g), kind=kLoop, calls=%piece
  ROOT %t = (s32[], bf16[8,16]) tuple(%i, %y)
}

%cond (p: (s32[], bf16[8,16])) -> pred[] {
  %n = s32[]{:T(128)} constant(36)
  %zero = s32[] constant(0)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%fused (q: f32[64]) -> f32[64] {
  ROOT %sum = f32[64]{0} all-reduce(%q), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}

%all-reduce-scatter.1 (r: f32[64]) -> f32[32] {
  %all = f32[64]{0} all-reduce(%r), channel_id=3, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %part = f32[32]{0} dynamic-slice(%all, %me)
}

%piece (a: bf16[8,16]) -> bf16[8,16] {
  %again = bf16[32,16]{1,0} all-gather(%x), channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
}

ENTRY %main (a: bf16[8,16]) -> f32[64] {
  %w = (s32[]{:T(128)}, bf16[8,16]{1,0}) while(%init), condition=%cond, body=%body
  %f = f32[64]{0} fusion(%b), kind=kCustom, calls=%fused
  %c = f32[32]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
  %s = f32[8]{0} reduce-scatter(%c), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, to_apply=%add
  %h = (f32[4]{0}, f32[16]{0}) all-gather-start(%d), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %k = f32[16]{0} all-gather-done(%h)
  ROOT %p = f32[64]{0} collective-permute(%e), source_target_pairs={{0,0},{1,3},{3,1}}
}
"""


def test_bytes_sent_by_axis():
    devices = mesh.make({"fsdp": 4, "tensor": 2})
    sent = collectives.bytes_sent(TPU, devices)
    assert sent == {
        ("all-gather", "fsdp"): 36 * 32 * 16 * 2 * 3 / 4 + 16 * 4 * 3 / 4,
        ("all-reduce", "tensor"): 2 * 64 * 4 / 2,
        ("reduce-scatter", "fsdp"): 8 * 4 * 3,
        ("reduce-scatter", "tensor"): 64 * 4 / 2,
        ("collective-permute", "fsdp"): 64 * 4,
    }
    assert collectives.sum_by_axis(sent)["tensor"] == 256 + 128


SLICES = """ENTRY %main (a: f32[256,1024]) -> f32[256,1024] {
  %g = bf16[1024,1024]{1,0} all-gather(%a), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
  %send = (f32[256,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%b, %t), channel_id=2, is_host_transfer=true, frontend_attributes={\
_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[256,8,128]{2,1,0}, u32[], token[]) recv(%t), channel_id=1, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %done = token[] send-done(%send), channel_id=2, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
}
"""


def test_bytes_sent_between_slices():
    chips = np.array(
        [types.SimpleNamespace(slice_index=i) for i in range(3) for _ in range(4)]
    ).reshape(3, 4)
    pod = types.SimpleNamespace(devices=chips, axis_names=("data", "fsdp"), size=12)
    assert collectives.bytes_sent(SLICES, pod) == {
        ("all-gather", "fsdp"): 1024 * 1024 * 2 * 3 / 4,
        ("all-reduce", "data"): 256 * 1024 * 4 * 2 * 2 / 3,
    }


def test_bytes_sent_by_a_program_that_runs():
    """Five iterations that gather [16, 8] float32 over four devices, and a sum over all eight."""
    devices = mesh.make({"fsdp": 4, "tensor": 2})
    cut, whole = (NamedSharding(devices, PartitionSpec(*axes)) for axes in (("fsdp",), ()))

    def turn(x, _):
        return jax.lax.with_sharding_constraint(
            jnp.sin(jax.lax.with_sharding_constraint(x, whole)), cut
        ), None

    def f(x):
        return jax.lax.scan(turn, x, length=5)[0]

    text = (
        jax.jit(f, out_shardings=cut)
        .lower(jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=cut))
        .compile()
        .as_text()
    )
    assert collectives.bytes_sent(text, devices) == {("all-gather", "fsdp"): 5 * 16 * 8 * 4 * 3 / 4}


def test_without_libtpu_the_error_names_the_mend(monkeypatch, capsys):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", MICRO, "--topology", "v5e:2x2"])
    assert stopped.value.code == 1 and "pip install 'jaxcredit[tpu]'" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_line_through_two_batches():
    """10 + 3 n bytes for n prompts: 7 fit into 31, unless the third compilation needs more."""

    class Exp:
        mesh, rules, group_size = {"fsdp": 4}, mesh.fsdp, 2

    asked = []

    def ask(n, more=0, refuse=99):
        asked.append(n)
        return memory.CompiledProgram(
            memory.MemoryUse(10, 0, 3 * n + (more if n > 2 else 0), 0), 0.0, {}, n >= refuse
        )

    def largest(**how):
        asked.clear()
        return memory.largest_batch(Exp, 31, lambda n: ask(n, **how))

    original, memory.with_batch_size = memory.with_batch_size, lambda exp, shards, n: n
    try:
        assert "28 prompts (56 rows)" in largest() and asked == [1, 2, 7]
        assert "less than 28 prompts" in largest(more=1)
        assert "not one prompt" in largest(
            refuse=1
        ) and "4 prompts in one pass (the compiler refuses two" in largest(refuse=2)
    finally:
        memory.with_batch_size = original


def test_what_the_compiler_says_when_it_refuses():
    said = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 25.20G of 15.75G hbm."
    assert memory._refused_use(said, 7, 3) == memory.MemoryUse(0, 0, int(25.2 * 2**30), 3)
    said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (34.55G) exceeds available HBM."
    assert memory._refused_use(said, 7, 0).peak == 7 + int(34.55 * 2**30)


@pytest.mark.slow
def test_two_plans_for_tpus(tmp_path):
    """A small run fits v5e:2x2. Qwen3-8B does not, because its state is larger than the chips."""
    pytest.importorskip("libtpu", reason=NO_LIBTPU)
    start = [sys.executable, "-c", "from jaxcredit.cli.main import main; main()", "plan"]
    env = {**os.environ, "PYTHONPATH": str(HELPERS)}

    def told(*words, on="v5e:2x2"):
        done = subprocess.run(
            [*start, *words, "--topology", on], env=env, capture_output=True, text=True, timeout=550
        )
        return done.returncode, done.stdout + done.stderr

    code, text = told(MICRO)
    assert (
        code == 0
        and text.count(" fits: ") == 4
        and "TPU v5 lite (v5e:2x2), mesh {'fsdp': 4}, attention splash" in text
    ), text
    assert "of 15.75 GiB a device" in text and "each device sends fsdp: " in text and "FLOP" in text
    code, text = told(
        MICRO, "--slices", "2", "--fsdp", "2", on="2xv5e:2x2"
    )  # only all-reduces cross the network between slices
    assert (
        code == 0
        and "mesh {'data': 2, 'fsdp': 2, 'tensor': 2}" in text
        and " data: all-reduce " in text.split("update fits")[1]
    ), text
    words = "--model", "8b", "--rows", "32", "--group", "8", "--seq", "512"
    code, text = told(str(CONFIGS / "gsm8k_qwen3.py"), *words)
    assert (
        code == 1
        and "update does not fit: " in text
        and "the state alone takes 22.89 GiB a device" in text
    ), text
