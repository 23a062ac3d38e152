"""Helpers without JAX: text, tables, progress bars, ranges, optional dependencies, files."""
