"""Policies: a decoder, its sampler, LoRA adapters, tokenizers, presets and checkpoint formats."""

from jaxcredit.policy.config import Config
from jaxcredit.policy.tokenizer import HF, Chars, PlaceholderTokenizer, Tokenizer

__all__ = ["HF", "Chars", "Config", "PlaceholderTokenizer", "Tokenizer"]
