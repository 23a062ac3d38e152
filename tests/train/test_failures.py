"""Messages of runs that cannot continue; step times, FLOPs and the logs of the hosts. Whole runs
are in test_run.py.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_experiment import experiment

from jaxcredit.parallel import params
from jaxcredit.policy import transformer
from jaxcredit.rollout import Rollout
from jaxcredit.train import failures as trouble
from jaxcredit.train import programs
from jaxcredit.train.planning import advice, flops, memory
from jaxcredit.train.runs import timing as clock
from jaxcredit.train.runs.host_log import HostLog
from jaxcredit.train.runs.profiling import step_range


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 27049066496 bytes.",
            27049066496,
        ),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes.", 1024),
        (
            "Allocator (GPU_0_bfc) ran out of memory trying to allocate 25.19GiB (rounded to 27049066496) requested by op",
            25.19 * 2**30,
        ),
        (
            "Ran out of memory in memory space hbm. Used 25.20G of 15.75G hbm. Exceeded hbm capacity by 9.45G.",
            25.2 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: nobody knows", None),
    ],
)
def test_how_much_was_asked_for(said, size):
    assert advice.requested_bytes(said) == (None if size is None else pytest.approx(size))


@pytest.fixture
def sixteen(monkeypatch):
    """A micro experiment of 16 prompts on a device of 10 MB, whose state takes a hundredth of it."""
    exp = dataclasses.replace(experiment(group=8), prompts_per_step=16, max_new_tokens=64)
    made = programs.build(exp)
    monkeypatch.setattr(advice, "device_memory", lambda *_: 10_000_000)
    return exp, made


def asks(n):
    return f"RESOURCE_EXHAUSTED: Out of memory while trying to allocate {n} bytes."


def test_memory_advice_names_knobs_and_by_how_much(sixteen):
    exp, made = sixteen
    told = advice.out_of_memory_message(exp, made, "update", asks(38_000_000))
    assert (
        re.search(r"micro_batch=4 \(prompts a pass, now 16: activations shrink to 25%", told)
        and "max_new_tokens=16 (tokens an answer, now 64)" in told
    )
    assert "vocab_chunk=64 (logits at once, now 256)" in told
    assert "micro_batch=8" in advice.out_of_memory_message(exp, made, "update", asks(11_000_000))
    told = advice.out_of_memory_message(exp, made, "sample", asks(75_000_000))
    assert (
        "prompts_per_step=2 (a step, now 16: 128 answers are sampled at once)" in told
        and "max_new_tokens=8" in told
        and "micro" not in told
    )
    assert "remat='full'" in advice.out_of_memory_message(
        dataclasses.replace(exp, policy=dataclasses.replace(exp.policy, remat="none")),
        made,
        "update",
        "RESOURCE_EXHAUSTED",
    )


def test_a_state_that_fills_the_device_needs_more_of_them(sixteen, monkeypatch):
    exp, made = sixteen
    monkeypatch.setattr(
        advice, "device_memory", lambda *_: memory.bytes_per_device(made.state) + 10
    )
    assert "mesh={'fsdp': 2}" in advice.out_of_memory_message(exp, made, "update", asks(5))


def test_the_program_an_error_names_is_the_one_that_is_advised(sixteen):
    def fails(said):
        def work():
            raise jax.errors.JaxRuntimeError(said)

        return trouble.with_oom_advice(*sixteen, "sample", work)

    with pytest.raises(trouble.OutOfMemory, match="out of memory in sample.*prompts_per_step="):
        fails(asks(1))()
    with pytest.raises(trouble.OutOfMemory, match="out of memory in update.*micro_batch="):
        fails("RESOURCE_EXHAUSTED: out of memory in jit_update")()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fails("INTERNAL: something else")()


def test_steps_in_a_row_are_those_in_which_nothing_moved():
    exp = dataclasses.replace(
        experiment(), minibatch=2, epochs=2
    )  # 4 prompts: four optimizer steps
    lines = [{"step": k, "skipped": s} for k, s in enumerate([4, 0, 4, 3, 4, 4])]
    assert (
        trouble.skipped_steps(exp, lines) == 2
        and trouble.skipped_steps(exp, lines[:4]) == 0
        and trouble.skipped_steps(exp, []) == 0
    )


def test_goodput_counts_work_over_all_the_time_since_the_run_began(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(clock.time, "time", lambda: now[0])
    first = {"time/total_s": 100.0}
    first |= clock.goodput_metrics(first, None)
    assert first["time/began"] == 900 and first["time/goodput"] == 0
    now[0] = 1100.0
    second = {"time/work_s": 50.0}
    second |= clock.goodput_metrics(second, first)
    assert second["time/goodput"] == 0.25  # 50 of 200
    now[0] = 1900.0  # it was down, and what it did since the checkpoint is done again
    third = {"time/work_s": 100.0}
    assert clock.goodput_metrics(third, second)["time/goodput"] == 0.15
    assert "time/mfu" not in third  # nobody knows what this CPU can do


def test_mfu_where_the_peak_is_known(monkeypatch):
    monkeypatch.setattr(clock, "peak_flops", lambda kind: 1e9)
    line = clock.goodput_metrics({"time/work_s": 2.0, "flops": 4e9}, None)
    assert line["time/mfu"] == pytest.approx(4e9 / (2 * 1e9 * jax.device_count()))


def test_peaks_go_by_the_longest_name():
    assert (
        clock.peak_flops("TPU v5 lite") == 197e12
        and clock.peak_flops("TPU v5p") == 459e12
        and clock.peak_flops("TPU v6 lite") == 918e12
    )
    assert (
        clock.peak_flops("NVIDIA H100 PCIe") < clock.peak_flops("NVIDIA H100 80GB HBM3")
        and clock.peak_flops("cpu") is None
    )


def test_flops_by_enumeration():
    """FLOPs counted one by one: all matmuls of each token, all attended pairs, the logits of the
    answers.
    """
    cfg = dataclasses.replace(experiment().policy, layers=3, kv_heads=1)
    weights = sum(
        int(np.prod(p.shape))
        for name, p in transformer.specs(cfg)["layers"].items()
        if name[0] == "w"
    )
    prompt, rows = [3, 1], [[2, 0], [4, 1]]
    tokens = sum(prompt) + sum(map(sum, rows))
    pairs = sum(q for p in prompt for q in range(1, p + 1))
    pairs += sum(
        p + q for p, ns in zip(prompt, rows, strict=True) for n in ns for q in range(1, n + 1)
    )
    want = (
        2 * weights * tokens
        + cfg.layers * 4 * cfg.heads * cfg.head_dim * pairs
        + 2 * cfg.width * cfg.vocab * 7
    )
    assert float(flops.forward_flops(cfg, jnp.asarray(prompt), jnp.asarray(rows))) == pytest.approx(
        want
    )

    exp = dataclasses.replace(
        experiment(beta=0.1), policy=cfg, minibatch=1, epochs=2
    )  # 6 passes, one for old log-probs, one reference
    assert flops.training_passes(exp) == 8 and flops.training_passes(experiment()) == 3
    valid = jnp.asarray(
        [
            [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]],
            [[0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0]],
        ],
        bool,
    )
    mask = valid & (jnp.arange(7) >= 3)
    one = jnp.ones((2, 2, 1))
    rollout = Rollout(mask * 1, mask, mask * 0.0, mask - 1, one, one > 0, token_mask=valid)
    assert float(flops.step_flops(exp, rollout, 14)) == pytest.approx(
        (8 + 2) * want
    )  # as many again were sampled and dropped


@pytest.mark.slow
def test_flops_are_those_the_compiler_counts():
    cfg = dataclasses.replace(
        experiment().policy,
        width=128,
        layers=2,
        ffn=512,
        heads=2,
        kv_heads=2,
        head_dim=64,
        vocab=512,
    )
    lowered = jax.jit(lambda p, t: transformer.logits(p, t, t >= 0, cfg)).lower(
        params.abstract(transformer.specs(cfg)), jnp.ones((1, 16), int)
    )
    counted = lowered.compile().cost_analysis()["flops"]  # of a scan the body is counted once
    once = dataclasses.replace(cfg, layers=1)
    assert counted == pytest.approx(
        float(flops.forward_flops(once, jnp.asarray([0]), jnp.asarray([[16]]))), rel=0.1
    )


@pytest.mark.parametrize(
    ("text", "steps"),
    [("10:13", (10, 13)), ("7", (7, 7)), ("3:2", None), ("a:b", None), ("0:4", None)],
)
def test_steps_to_trace(text, steps):
    if steps:
        assert step_range(text) == steps
        return
    with pytest.raises(ValueError, match="FIRST:LAST, for example 10:13"):
        step_range(text)


def test_a_host_says_how_it_ended(tmp_path):
    with pytest.raises(RuntimeError), HostLog(tmp_path) as host:
        host.log_step(3, work_s=jnp.float32(0.5))
        raise RuntimeError("the disk fell out")
    with pytest.raises(SystemExit), HostLog(tmp_path):
        raise SystemExit(143)
    told = (tmp_path / "hosts/00000.log").read_text()
    assert (
        told.count("begin: ") == 2
        and "RuntimeError: the disk fell out" in told
        and told.rstrip().endswith("end with code 143")
    )
    line = json.loads((tmp_path / "hosts/00000.jsonl").read_text())
    assert line["step"] == 3 and line["work_s"] == 0.5 and line["rss_gb"] > 0.01
