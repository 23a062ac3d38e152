"""Estimators for several agents with a shared outcome."""
