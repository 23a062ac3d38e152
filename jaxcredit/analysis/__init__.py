"""Recommendation of estimators for given rollouts, reports of runs, and pictures of token credit."""
