"""Folders and files of the checkout that several tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
GOLDENS = ROOT / "tests" / "goldens"
HELPERS = ROOT / "tests" / "helpers"
MICRO = str(
    HELPERS / "micro_experiment.py"
)  # a config of the smallest run, as a word of a command line
