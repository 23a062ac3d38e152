"""Sampling with another sharding than training: same answers, one resharding a rollout, no
all-gather a token.
"""

import dataclasses

import jax
import numpy as np
import pytest
from micro_experiment import experiment

from jaxcredit.parallel import mesh
from jaxcredit.parallel.processes import to_global_array
from jaxcredit.train import programs
from jaxcredit.train.planning import collectives, lowering, memory
from jaxcredit.train.planning.advice import KEEP_TRAINING_SHARDING, memory_advice

MESH = {"fsdp": 4, "tensor": 2}


@pytest.fixture(scope="module")
def made():
    exp = dataclasses.replace(experiment(), mesh=MESH)
    return [
        programs.build(dataclasses.replace(exp, sampling_rules=rules))
        for rules in (None, mesh.sampling_rules)
    ]


def test_the_same_answers_and_no_weight_is_gathered_for_a_token(made):
    stay, settle = made
    weights = stay.init(jax.random.key(3)).params
    assert stay.reshard_for_sampling is None
    settled = settle.reshard_for_sampling(weights)
    w = settled["layers"]["w_up"]
    assert weights["layers"]["w_up"].sharding.shard_shape(w.shape) == (
        w.shape[0],
        w.shape[1] // 4,
        w.shape[2] // 2,
    )
    assert w.sharding.shard_shape(w.shape) == (w.shape[0], w.shape[1], w.shape[2] // 2)
    prompt = to_global_array(np.random.default_rng(0).integers(0, 4, (4, 4), np.int32), stay.batch)
    valid = to_global_array(np.ones((4, 4), bool), stay.batch)
    a, b = (m.sample(weights, prompt, valid, jax.random.key(1)) for m in made)
    np.testing.assert_array_equal(a["tokens"], b["tokens"])
    np.testing.assert_allclose(a["logp"], b["logp"], atol=1e-5)

    devices = mesh.make(MESH)
    told = [
        collectives.bytes_sent(
            m.draw.lower(w, prompt, valid, jax.random.key(1), **m.sample.keywords)
            .compile()
            .as_text(),
            devices,
        )
        for m, w in zip(made, (weights, settled), strict=True)
    ]
    gathered = [
        sum(n for (kind, axis), n in sent.items() if kind == "all-gather" and "fsdp" in axis)
        for sent in told
    ]
    assert gathered[0] > 10 * gathered[1]


def test_the_plan_counts_the_move(made):
    exp = dataclasses.replace(experiment(), mesh=MESH, sampling_rules=mesh.sampling_rules)
    kinds = {}
    for name, lowered, beside in lowering.lowered_programs(exp, made[1]):
        kinds[name] = beside
        if name == "reshard":
            sent = collectives.bytes_sent(lowered.compile().as_text(), mesh.make(MESH))
            whole = (
                sum(x.size * 4 for x in jax.tree.leaves(made[1].state.params) if x.ndim > 1) / 2
            )  # what tensor leaves to a device
            assert 0.5 * whole < sum(sent.values()) < 1.2 * whole
        if name == "evaluate":
            break
    for name in ("reshard", "sample"):
        assert KEEP_TRAINING_SHARDING in memory_advice(exp, made[1], name, 10**9)
    assert kinds["sample"] == memory.bytes_per_device(
        made[1].state
    )  # training's own stays beside it
