"""Estimators with values of shared prefixes: trees, branches and continuations."""
