"""Comparing the metrics of runs: what depends on the clock is left out."""

import numpy as np

from jaxcredit.train.runs.json_lines import read_metrics


def timeless(folder):
    return [
        {name: x for name, x in line.items() if not name.startswith("time/")}
        for line in read_metrics(folder)
    ]


def close(got, want, rtol=1e-4, atol=1e-5):
    assert [line.keys() for line in got] == [line.keys() for line in want]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(
            [a[k] for k in a],
            [b[k] for k in a],
            rtol=rtol,
            atol=atol,
            err_msg=f"step {a['step']}: {list(a)}",
        )
