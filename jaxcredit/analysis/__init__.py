"""Recommendation of estimators for rollouts, reports of runs, and pictures of token credit."""
