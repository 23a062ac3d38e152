"""`jaxcredit plan`: memory equals that of the programs of a run; a config for GSM8K with Qwen3."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from paths import CONFIGS, HELPERS
from tiny_checkpoint import write_tiny_checkpoint

from jaxcredit.cli import loading as find
from jaxcredit.cli import main as cli
from jaxcredit.train import programs
from jaxcredit.train.planning.data_check import check_data

QWEN = str(CONFIGS / "gsm8k_qwen3.py")

# A separate process, because the tests' type checks want arrays in a Rollout, and plan uses shapes.
DRIVER = """
import dataclasses, io, json, sys
sys.path.insert(0, sys.argv[1])
import jax
import micro_experiment
from rich.console import Console
from jaxcredit.train.planning import lowering, memory, plan
from jaxcredit.train.planning.advice import memory_advice
from jaxcredit.train import programs
from jaxcredit.collect.batches import Batches
from jaxcredit.train.programs import compose_step, make_collector

exp = dataclasses.replace(micro_experiment.experiment(beta=0.1), prompts_per_step=8, micro_batch=4, mesh={"fsdp": 2, "tensor": 2})
made = programs.build(exp)
need = {name: memory.measure(lowered, beside).memory for name, lowered, beside in lowering.lowered_programs(exp, made)}
live = sum(x.nbytes for x in jax.live_arrays())

state, batches = made.init(jax.random.key(0)), Batches(len(exp.task.train), exp.prompts_per_step)
resident = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
collected = make_collector(exp, made, batches)(state.params, jax.random.key(0), next(batches))()
rollout = compose_step(exp, made).annotate(state, collected)
columns = made.credit(rollout)
real = {"update": made.update.lower(state, rollout, columns), "credit": made.credit.lower(rollout)}
prompts = [x[:, 0, :4] for x in (rollout.tokens, rollout.token_mask)]
prompts = [jax.device_put(x, made.batch) for x in prompts]
real["sample"] = made.draw.lower(state.params, *prompts, jax.random.key(0), **made.sample.keywords)
def told(lowered):
    m = lowered.compile().memory_analysis()
    return m.argument_size_in_bytes, m.output_size_in_bytes - m.alias_size_in_bytes, m.temp_size_in_bytes
real = {name: told(lowered) for name, lowered in real.items()}

def said(exp, available):
    memory.device_memory = lambda: available
    out = Console(file=io.StringIO(), width=200)
    return plan.plan(exp, out), out.file.getvalue()

task = exp.task
small = dataclasses.replace(exp, task=dataclasses.replace(task, train=[{**i, "prompt": "a" + i["prompt"]} for i in task.train]))
state_bytes = memory.bytes_per_device(made.state)
print(json.dumps({
    "need": need, "real": real, "live": live, "resident": resident, "state": memory.bytes_per_device(made.state),
    "fits": said(exp, 10**9), "small": said(small, state_bytes + 100),
    "tiny": memory_advice(exp, made, "update", 1000),
}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(HELPERS)],
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_bytes_are_those_of_the_programs_that_run(told):
    assert told["live"] < 100  # no weights were created
    assert told["state"] == told["resident"]  # bytes on one device
    assert set(told["need"]) == {"sample", "evaluate", "signals", "credit", "update"}
    for name, real in told["real"].items():
        assert sum(told["need"][name][:3]) == pytest.approx(sum(real), rel=0.1), name
    sample, _, _, beside = told["need"]["sample"]
    assert (
        told["state"] <= sample + beside < told["state"] * 1.2
    )  # parameters are arguments, the rest of the state is resident


@pytest.mark.slow
def test_what_fits_and_what_does_not(told):
    fits, text = told["fits"]
    assert (
        fits
        and text.count("fits") == 5
        and "not fit" not in text
        and "48 problems" in text
        and "longest prompt has 4 tokens" in text
    )
    fits, text = told["small"]
    assert not fits and "credit does not fit" in text
    assert "update does not fit" in text and "micro_batch=2 (prompts a pass, now 4:" in text
    assert "sample does not fit" in text and "prompts_per_step=2 (a step, now 8:" in text
    assert "48 exceed the largest bucket (4); add one of at least 5" in text
    more_devices, smaller_state = told["tiny"]
    assert "parameters and optimizer alone take" in more_devices and "mesh={'fsdp':" in more_devices
    assert "smaller model" in smaller_state


def lines(folder, part, count, question="What is {} + {}?"):
    text = [
        json.dumps(
            {"question": question.format(i, i), "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"}
        )
        for i in range(count)
    ]
    with open(folder / f"{part}.jsonl", "a") as file:
        file.write("\n".join(text) + "\n")


@pytest.fixture
def folder(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny")
    lines(tmp_path, "train", 12)
    lines(tmp_path, "test", 4, "What is twice {}? (not {})")
    return tmp_path


@pytest.mark.slow
def test_qwen3_on_gsm8k_from_a_folder(folder):
    """Weights and tokenizer of a checkpoint, bfloat16, a mesh of 2 x 2."""
    lines(folder, "train", 1, "Count. " * 200)
    words = [
        "--checkpoint",
        str(folder / "tiny"),
        "--data",
        str(folder),
        "--rows",
        "8",
        "--group",
        "2",
        "--prompt",
        "96",
        "--seq",
        "104",
    ]
    words += ["--fsdp", "2", "--tensor", "2", "--steps", "2", "--eval-prompts", "4", "--lr", "1e-3"]
    with pytest.warns(UserWarning, match="1 problems with prompts of more than 96 tokens"):
        cli.main(["train", QWEN, *words, "--runs", str(folder), "--run", "r"])
    last = json.loads((folder / "r/metrics.jsonl").read_text().splitlines()[-1])
    assert (
        last["step"] == 2
        and last["skipped"] == 0
        and last["sampler_logp_diff"] < 0.05
        and 0 < last["length"] <= 8
    )
    with pytest.warns(UserWarning, match="1 problems"):
        exp, _ = find.experiment(QWEN, words)
    assert (
        exp.policy.dtype == "bfloat16"
        and exp.policy.qk_norm
        and min(exp.policy.forbidden) == exp.tokenizer.vocab_size
    )
    state = programs.build(exp).init(jax.random.key(0))
    w = state.params["layers"]["w_up"]
    assert (
        w.dtype == "float32"
        and w.sharding.shard_shape(w.shape) == (2, 32, 64)
        and w.shape == (2, 64, 128)
    )


def test_without_a_checkpoint_there_is_a_plan_but_no_training():
    exp, _ = find.experiment(
        QWEN, ["--model", "8b", "--rows", "16", "--group", "8", "--seq", "512", "--fsdp", "2"]
    )
    assert (exp.policy.layers, exp.policy.width, exp.policy.tied) == (36, 4096, False)
    assert (
        exp.prompts_per_step,
        exp.group_size,
        exp.buckets,
        exp.max_new_tokens,
        exp.micro_batch,
    ) == (2, 8, (256,), 256, 2)
    (good, text), *rest = check_data(exp.check())
    assert good is None and not rest and "--checkpoint FOLDER" in text
    with pytest.raises(ValueError, match="To train, give --checkpoint FOLDER"):
        exp.load_params(None)
    with pytest.raises(ValueError, match="multiple of group"):
        find.experiment(QWEN, ["--rows", "20", "--group", "8"])


@pytest.mark.slow
@pytest.mark.skipif(
    "JAXCREDIT_DATA" not in os.environ,
    reason="JAXCREDIT_DATA names no folder with gsm8k/train.jsonl and test.jsonl",
)
@pytest.mark.filterwarnings("default:.*problems with prompts")
def test_qwen3_on_the_real_problems(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny")
    words = [
        "--checkpoint",
        str(tmp_path / "tiny"),
        "--data",
        str(Path(os.environ["JAXCREDIT_DATA"], "gsm8k")),
        "--rows",
        "16",
    ]
    words += [
        "--group",
        "4",
        "--prompt",
        "256",
        "--seq",
        "288",
        "--fsdp",
        "2",
        "--tensor",
        "2",
        "--steps",
        "3",
        "--eval-prompts",
        "8",
    ]
    cli.main(["train", QWEN, *words, "--runs", str(tmp_path), "--run", "r"])
    history = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in history] == [0, 1, 2, 3] and all(
        line["skipped"] == 0 for line in history[1:]
    )
