"""Estimators for several agents that share one outcome."""
