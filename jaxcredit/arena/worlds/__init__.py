"""Families of worlds with exactly known credit, one file each."""
