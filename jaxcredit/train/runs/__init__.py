"""Run folders: checkpoints, metrics, plots, logs, locks, and requests to stop."""
