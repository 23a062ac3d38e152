"""Estimators of turn credit for episodes with several turns."""
