"""Estimators of step credit: process rewards, return decomposition and reward shaping."""
