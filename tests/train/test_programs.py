"""How the programs of a run are compiled."""

from types import SimpleNamespace

import jax
import pytest
from micro_experiment import experiment

from jaxcredit.parallel import mesh
from jaxcredit.train import programs

LEVEL = "xla_backend_optimization_level"


def test_only_a_cpu_is_told_how_to_compile_and_not_against_the_users_flags(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    assert programs.compiler_options() == {LEVEL: 2}
    with mesh.planned([SimpleNamespace(platform="tpu")]):
        assert programs.compiler_options() is None
    monkeypatch.setenv("XLA_FLAGS", f"--{LEVEL}=0")
    assert programs.compiler_options() is None


def test_what_compiles_is_told(monkeypatch):
    """Every program gets the compiler options: an unknown option is an error in each."""
    monkeypatch.setattr(programs, "compiler_options", lambda: {"xla_nonsense": 1})
    exp = experiment()
    made = programs.build(exp)
    state, key = made.state, jax.eval_shape(lambda: jax.random.key(0))
    prompt = [jax.ShapeDtypeStruct((exp.prompts_per_step, 4), dtype) for dtype in ("int32", "bool")]
    for call in (
        lambda: made.init(jax.random.key(0)),
        lambda: made.draw.lower(state.params, *prompt, key, **made.sample.keywords).compile(),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_nonsense"):
            call()
