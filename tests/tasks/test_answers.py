"""Decoding and scoring of sampled answers."""

import numpy as np
import pytest

from jaxcredit.policy import Chars
from jaxcredit.tasks import Task
from jaxcredit.tasks.answers import decode_and_score
from jaxcredit.tasks.scoring import RewardError

TOKENIZER = Chars("0123456789")
ITEMS = [{"prompt": "two>", "meta": "2"}, {"prompt": "three>", "meta": "3"}]


def sampled(answers):
    """Token ids and mask [n, k, S] of texts, with other digits where the mask is false."""
    ids = [[TOKENIZER.encode(text) for text in row] for row in answers]
    S = 1 + max(len(a) for row in ids for a in row)
    tokens = np.full((len(ids), len(ids[0]), S), TOKENIZER.encode("9")[0], np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, row in enumerate(ids):
        for j, answer in enumerate(row):
            tokens[i, j, : len(answer)], mask[i, j, : len(answer)] = answer, True
    return tokens, mask


def test_each_answer_is_decoded_under_its_mask_and_scored_with_its_own_problem():
    seen = []

    def reward(meta, text, ids):
        seen.append((meta, text, ids))
        return None if text == "33" else float(text == meta)

    answers = [["2", "3", "20"], ["", "33", "3"]]
    result = decode_and_score(
        Task("digits", ITEMS, ITEMS, reward), TOKENIZER, *sampled(answers), ITEMS, workers=0
    )
    assert result.texts == answers
    np.testing.assert_array_equal(result.rewards, [[1, 0, 0], [0, np.nan, 1]])
    wanted = [(ITEMS[i]["meta"], text) for i, row in enumerate(answers) for text in row]
    assert sorted((meta, text) for meta, text, _ in seen) == sorted(wanted)
    assert all(list(ids) == TOKENIZER.encode(text) for _, text, ids in seen)


def test_no_problems_give_no_answers():
    task = Task("digits", ITEMS, ITEMS, lambda meta, text, ids: 1.0)
    tokens = np.zeros((0, 3, 4), np.int32)
    texts, rewards = decode_and_score(task, TOKENIZER, tokens, tokens > 0, [], workers=0)
    assert texts == [] and rewards.shape == (0, 3)


def test_an_error_of_the_reward_shows_the_prompt_and_the_answer():
    def reward(meta, text, ids):
        return 1 / (text != "33")

    task = Task("digits", ITEMS, ITEMS, reward)
    tokens, mask = sampled([["2", "3"], ["33", "3"]])
    with pytest.raises(RewardError, match=r"prompt: +'three>'\nresponse: '33'"):
        decode_and_score(task, TOKENIZER, tokens, mask, ITEMS, workers=0)
