"""Verifiable tasks: problems to train and test on, and a reward function for answers."""

from jaxcredit.tasks.addition import sums
from jaxcredit.tasks.grade_school import gsm8k
from jaxcredit.tasks.jsonl import from_jsonl
from jaxcredit.tasks.reasoning_gym import gym, number_sorting, spell_backward
from jaxcredit.tasks.scoring import score
from jaxcredit.tasks.task import Task

__all__ = [
    "Task",
    "from_jsonl",
    "gsm8k",
    "gym",
    "number_sorting",
    "score",
    "spell_backward",
    "sums",
]
