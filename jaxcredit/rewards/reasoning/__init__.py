"""Rewards for the form and the length of reasoning."""
