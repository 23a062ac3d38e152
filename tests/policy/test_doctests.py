"""Examples in the docstrings of the policy."""

import doctest

import pytest

from jaxcredit.policy import lora, positions, sampler, tokenizer


@pytest.mark.parametrize("module", [lora, positions, sampler, tokenizer])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
