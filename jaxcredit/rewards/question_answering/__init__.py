"""Rewards for question answering with search or a knowledge graph."""
