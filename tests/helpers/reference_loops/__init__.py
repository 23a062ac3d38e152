"""Reference implementations of every estimator: loops in numpy and float64, written from the
formulas of the papers.

`loop_NAME(g, **knobs)` takes one prompt (see `reference_loops.prompt`) and returns the advantage
[R, T], or {column: [R, T]}. `batch_NAME(groups, **knobs)` takes all prompts of a batch, for
estimators with statistics across prompts, and returns {column: one array [R, T] a prompt}. There is
one module a family, as in `jaxcredit/credit/`. The code of the estimators is never called, so that
an error in it is not repeated here.
"""

import importlib
import pkgutil

FAMILIES = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
# The name of an estimator: its loop.
LOOPS = {
    name.partition("_")[2]: function
    for module in FAMILIES
    for name, function in vars(module).items()
    if name.startswith(("loop_", "batch_"))
}
