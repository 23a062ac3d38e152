"""Estimators with a learned value function."""
