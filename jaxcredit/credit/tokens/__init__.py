"""Estimators that weight tokens by entropy, attention, a reward model or pooled evidence."""
