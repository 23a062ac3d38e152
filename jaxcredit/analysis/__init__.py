"""Which estimator suits given rollouts, reports of runs, and pictures of token credit."""
