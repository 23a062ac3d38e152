"""Rewards for tool calls and browser actions."""
