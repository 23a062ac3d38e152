"""Checkpoint formats: reading and writing of Hugging Face folders, reading of GGUF files."""
