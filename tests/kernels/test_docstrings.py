"""Examples in docstrings of the package, of kernels and of losses give the results that they show."""

import doctest
import importlib
import pkgutil

import pytest

from jaxcredit import kernels, losses

MODULES = [
    "jaxcredit",
    *(
        f"{package.__name__}.{module.name}"
        for package in (kernels, losses)
        for module in pkgutil.iter_modules(package.__path__)
    ),
]


def test_most_modules_have_examples():
    examples = [
        test
        for name in MODULES
        for test in doctest.DocTestFinder().find(importlib.import_module(name))
        if test.examples
    ]
    assert len(examples) > 40


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
