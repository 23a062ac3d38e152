"""Verifiable tasks. A task is problems and a reward: see `Task`."""

from jaxcredit.tasks.gsm8k import gsm8k
from jaxcredit.tasks.guard import score
from jaxcredit.tasks.gym import gym, number_sorting, spell_backward
from jaxcredit.tasks.jsonl import from_jsonl
from jaxcredit.tasks.sums import sums
from jaxcredit.tasks.task import Task

__all__ = ["Task", "from_jsonl", "gsm8k", "gym", "number_sorting", "score", "spell_backward", "sums"]
