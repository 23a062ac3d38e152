"""Estimators that give a trajectory one advantage: its return minus a baseline."""
