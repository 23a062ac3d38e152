"""Environments with exactly known credit, one file each."""
