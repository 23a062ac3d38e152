"""Docstrings of estimators state every knob, signal and shape, the result and the source."""

import inspect
import re

import pytest

from jaxcredit import credit
from jaxcredit.credit.lift import knobs_of


@pytest.mark.parametrize("name", credit.__all__)
def test_an_estimators_docstring_is_complete(name):
    estimator = getattr(credit, name)
    method, text = estimator.method, inspect.getdoc(estimator)
    knobs = knobs_of(estimator.unlifted.__wrapped__)
    assert [knob for knob in knobs if not re.search(rf"^    {knob}: ", text, re.M)] == []
    assert [part for part in ("Returns:", "Source:", method.paper) if part not in text] == []
    words = re.sub(r"\s+", " ", text)
    for signal, axes in method.needs.items():
        assert f"{signal} [{', '.join(['N', *axes.split()])}]" in words, signal
