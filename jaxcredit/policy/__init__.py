"""The policy: one decoder, its sampler, adapters, tokenizers, known shapes and known weights."""

from jaxcredit.policy.config import Config
from jaxcredit.policy.tokenizer import HF, Chars, PlaceholderTokenizer, Tokenizer

__all__ = ["HF", "Chars", "Config", "PlaceholderTokenizer", "Tokenizer"]
