"""Estimators that weight single tokens: by entropy, attention, a reward model or pooled evidence."""
