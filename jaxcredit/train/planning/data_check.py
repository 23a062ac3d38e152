"""Check of an experiment's data: lengths of prompts and demonstrations, and the reward function."""

import itertools
import math
from collections.abc import Iterator

from jaxcredit.policy import PlaceholderTokenizer
from jaxcredit.tasks import score
from jaxcredit.tasks.scoring import RewardError
from jaxcredit.tasks.worker_pool import in_process_reason
from jaxcredit.train.experiment import Experiment

CHECKED = 512  # items of a split that are tokenized


def check_data(exp: Experiment) -> Iterator[tuple[bool | None, str]]:
    """Findings about tokenizer, problems, demonstrations and reward.

    Yields:
        (verdict, text): True if the training can use the data, False if it fails, None if the data
        was not checked.
    """
    tokenizer = exp.tokenizer
    if isinstance(tokenizer, PlaceholderTokenizer):
        yield None, f"data and tokenizer not checked: {tokenizer.why}"
        return
    ids, rows = tokenizer.vocab_size, exp.policy.vocab
    yield True, f"tokenizer: {ids:,} ids in the policy's {rows:,} rows"
    for split in ("train", "test"):
        yield _check_prompts(exp, split)
    if exp.warmup:
        yield _check_demonstrations(exp)
    yield _check_reward(exp)


def _check_prompts(exp: Experiment, split: str) -> tuple[bool, str]:
    problems = getattr(exp.task, split)
    prompts = [exp.tokenizer.chat(item["prompt"]) for item in itertools.islice(problems, CHECKED)]
    longest, bucket = max(map(len, prompts), default=0), max(exp.buckets)
    text = (
        f"{split}: {len(problems):,} problems of {exp.task.name}; "
        f"of the first {len(prompts)} the longest prompt has {longest} tokens"
    )
    if too_long := sum(len(prompt) > bucket for prompt in prompts):
        return False, (
            f"{text}: {too_long} exceed the largest bucket ({bucket}); "
            f"add one of at least {longest}, or leave those problems out"
        )
    return True, f"{text}, the largest bucket {bucket}"


def _check_demonstrations(exp: Experiment) -> tuple[bool, str]:
    demos, limit = exp.task.demos, exp.max_new_tokens
    too_long = sum(  # the stop token needs a place too
        len(exp.tokenizer.encode(item["answer"])) >= limit
        for item in itertools.islice(demos, CHECKED)
    )
    return not too_long, (
        f"demos: {len(demos):,}; {too_long} of the first {CHECKED} are longer than "
        f"max_new_tokens = {limit} tokens with the stop token"
    )


def _check_reward(exp: Experiment) -> tuple[bool, str]:
    task, item = exp.task, exp.task.train[0]
    options = {"timeout_s": exp.reward_timeout_s, "workers": exp.reward_workers}
    try:
        scores = score(task, [item["meta"]], [""], [[]], prompts=[item["prompt"]], **options)
    except RewardError as error:
        return False, f"reward: {error}"
    reward = float(scores.sum())
    shown = "unscored (None)" if math.isnan(reward) else f"{reward:g}"
    reason = in_process_reason(task.reward)
    in_process = bool(reason) or not exp.reward_workers
    place = f"in this process ({reason})" if in_process else "in a separate process"
    return True, f"reward: {shown} for an empty answer; it runs {place}"
