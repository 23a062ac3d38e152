"""The whole trainer on several devices, and in several processes, gives the numbers of one."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxcredit import cli, mesh, programs
from jaxcredit.data import Batches
from jaxcredit.run import _collector, greedy, steps_of
from jaxcredit.train import train
from jaxcredit.warmup import warm_up

CONFIG = '''
"""Three letters backward, with everything that could go wrong on a mesh: a warm-up, a reference, minibatches, micro-batches, resampling."""
import itertools
import optax
from jaxcredit import signals
from jaxcredit.experiment import Experiment, Warmup
from jaxcredit.policy import presets
from jaxcredit.tasks import Task
from jaxcredit.tokenize import Chars

def score(meta, text, ids):
    return sum(a == b for a, b in zip(meta, text)) / 3

def experiment(steps: int = 3, resample: int = 2, fsdp: int = 0, tensor: int = 1) -> Experiment:
    chars = Chars("abcd>")
    items = [{"prompt": "".join(w) + ">", "meta": "".join(reversed(w))} for w in itertools.product("abcd", repeat=3)]
    demos = [{**i, "answer": i["meta"]} for i in items[:32]]
    return Experiment(
        name="micro", task=Task("micro", items[:48], items[48:], score, demos), tokenizer=chars,
        policy=presets.micro(7, width=16, layers=2, heads=4, kv_heads=2, forbidden=(0, 2) if tensor < 0 else (0,)),
        warmup=Warmup(steps=2, batch=16, every=2, optimizer=optax.adamw(1e-2)), optimizer=optax.adam(1e-2),
        signals={"reference": signals.reference()}, beta=0.1,
        prompts=16, group=2, minibatch=8, micro=4, epochs=2, resample=resample, buckets=(4,), new=4, steps=steps,
        eval_every=2, save_every=2, mesh={"fsdp": fsdp, "tensor": tensor} if fsdp else {},
    )
'''


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "micro.py"
    path.write_text(CONFIG)
    return str(path)


def trained(exp):
    """The metrics of each step, the accuracy and the state at the end, without a run folder."""
    made = programs.build(exp)
    state, _ = warm_up(exp, made, made.init(jax.random.key(exp.seed)), lambda weights: greedy(exp, made, weights)[0], lambda text: None)
    for frozen, weight in zip(jax.tree.leaves(state.aux["reference"]), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(frozen, weight)  # the policy that the warm-up left, not the one before it
    batches, history = Batches(len(exp.task.train), exp.prompts, exp.seed), []

    def log(state, collected, metrics):
        history.append(jax.device_get({k: v for k, v in metrics.items() if not k.startswith("time/")}))
        return len(history) == exp.steps

    state = train(state, batches, collect=_collector(exp, made, batches), log=log, **steps_of(exp, made))
    return made, state, history, greedy(exp, made, state.params)[0]


def test_eight_devices_train_as_one(config):
    one, _ = cli.load(config)
    _, alone, want, accuracy = trained(one)
    made, state, got, same = trained(dataclasses.replace(one, mesh={"fsdp": 4, "tensor": 2}))
    assert len(got) == 3 and accuracy == same
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-4, atol=2e-5, err_msg=f"step {step}, {name}")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), state.params, alone.params)
    where = jax.tree.map(lambda x: x.sharding, made.state)
    mesh.assert_placed(state, where)
    moments = state.opt_state[0].mu["layers"]["w_up"]
    assert moments.sharding.shard_shape(moments.shape) == (2, 4, 32) and moments.shape == (2, 16, 64)
    frozen = state.aux["reference"]["layers"]["w_up"]
    assert frozen.sharding.is_equivalent_to(moments.sharding, 3)
