import json

import numpy as np
import pytest

from jaxcredit.collect.batches import Batches, bucketed
from jaxcredit.parallel.processes import local_slice


def take(stream, n):
    return np.stack([next(stream) for _ in range(n)])


def test_every_epoch_is_another_permutation_and_leaves_nothing_out():
    # Whole batches of 4 end at 28 of 30 draws: the last of 3 epochs of 10 is cut.
    drawn = take(Batches(10, 4, seed=1), 15).ravel()
    epochs = drawn.reshape(6, 10)
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 6
    assert not np.array_equal(epochs[0], np.arange(10))
    assert not np.array_equal(drawn, take(Batches(10, 4, seed=2), 15).ravel())


@pytest.mark.parametrize("stop", [0, 3, 7])
def test_resume_mid_epoch_is_exact(stop):
    whole = take(Batches(23, 5, seed=3), 12)
    first = Batches(23, 5, seed=3)
    for _ in range(stop):
        next(first)
    second = Batches(23, 5, seed=3)
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert second.epoch == stop * 5 / 23
    np.testing.assert_array_equal(take(second, 12 - stop), whole[stop:])


@pytest.mark.parametrize("name", ["size", "batch", "seed"])
def test_another_stream_is_refused_by_name(name):
    stream = Batches(20, 4, seed=0)
    with pytest.raises(ValueError, match=f"{name} = 9"):
        stream.set_state({**stream.get_state(), name: 9})


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="out of 3"):
        Batches(3, 4)


def test_processes_share_a_batch_without_overlap():
    batch = next(Batches(100, 12, seed=5))
    parts = [batch[local_slice(12, process=p, processes=4)] for p in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts), batch)
    assert {len(p) for p in parts} == {3}
    assert local_slice(12) == slice(0, 12)
    with pytest.raises(ValueError, match="multiple of 5"):
        local_slice(12, process=0, processes=5)


def test_prompts_are_left_padded_into_the_smallest_bucket():
    tokens, valid = bucketed([[1, 2, 3], [4], [5, 6, 7, 8]], (16, 4, 8), pad=9)
    np.testing.assert_array_equal(tokens, [[9, 1, 2, 3], [9, 9, 9, 4], [5, 6, 7, 8]])
    np.testing.assert_array_equal(valid, [[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    assert bucketed([[1] * 5], (16, 4, 8))[0].shape == (1, 8)


def test_a_prompt_that_fits_no_bucket_is_named():
    with pytest.raises(ValueError, match=r"prompt 1 .* 9 tokens.* holds 8.*at least 9"):
        bucketed([[1], [2] * 9, [3]], (4, 8))
    with pytest.raises(ValueError, match="prompt 1 .* empty"):
        bucketed([[1], []], (4,))
