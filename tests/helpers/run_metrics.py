"""Comparison of the metrics of two runs, without those that depend on the clock."""

import numpy as np

from jaxcredit.train.runs.json_lines import read_metrics


def metrics_without_times(folder):
    """The lines of a run folder's metrics.jsonl, without metrics `time/...`."""
    return [
        {name: x for name, x in line.items() if not name.startswith("time/")}
        for line in read_metrics(folder)
    ]


def assert_metrics_close(actual, expected, rtol=1e-4, atol=1e-5):
    """Two lists of metrics have the same keys and close values at every step."""
    assert [line.keys() for line in actual] == [line.keys() for line in expected]
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(
            [a[k] for k in a],
            [b[k] for k in a],
            rtol=rtol,
            atol=atol,
            err_msg=f"step {a['step']}: {list(a)}",
        )
