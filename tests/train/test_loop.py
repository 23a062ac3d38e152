"""The training loop: what it refuses in the middle of a step."""

import jax.numpy as jnp
import numpy as np
import pytest
from micro_experiment import build, experiment

from jaxcredit.train.failures import ImplicitTransfer
from jaxcredit.train.programs import compose_step
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
