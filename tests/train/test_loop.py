"""Steps of the training loop: refused transfers, and names of their parts in a profile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_experiment import build, experiment

from jaxcredit.collect.batches import Batches
from jaxcredit.train.failures import ImplicitTransfer
from jaxcredit.train.programs import compose_step, make_collector
from jaxcredit.train.run import run


@pytest.mark.parametrize("name", ["credit", "update"])
def test_an_implicit_transfer_in_a_step_is_refused(name, tmp_path, monkeypatch):
    def compose(exp, programs):
        step = compose_step(exp, programs)
        work = getattr(step, name)

        def with_host_array(*args):
            out = work(*args)
            jnp.asarray(np.ones(3)) + 1
            return out

        return step._replace(**{name: with_host_array})

    monkeypatch.setattr("jaxcredit.train.run.build", build)
    monkeypatch.setattr("jaxcredit.train.loop.compose_step", compose)
    with pytest.raises(ImplicitTransfer, match=f"^{name} copies an array between host and device"):
        run(experiment(steps=2), tmp_path)


def test_the_parts_of_credit_and_update_are_named_in_a_profile():
    exp = experiment()
    programs = build(exp)
    state, batches = programs.init(jax.random.key(0)), Batches(48, exp.prompts_per_step)
    collect = make_collector(exp, programs, batches)
    rollout = collect(state.params, jax.random.key(1), next(batches))().rollout
    columns = programs.credit(rollout)

    def names(function, *args):
        return jax.make_jaxpr(function)(*args).jaxpr.pretty_print(name_stack=True)

    assert "credit" in names(programs.credit.__wrapped__, rollout)
    update = names(programs.update.__wrapped__, state, rollout, columns)
    assert [
        part for part in ("gradient", "forward", "loss", "optimizer") if part not in update
    ] == []
