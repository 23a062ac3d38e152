"""The policy: a decoder (transformer), how it is sampled (decode), known shapes (presets) and known weights (pretrained)."""
