"""Helpers without JAX: plain text, tables, progress bars, number ranges, optional dependencies, atomic files."""
