"""A loop for every estimator, in numpy and float64, written from the formula of its paper: never from the code it checks.

`loop_NAME(g, **knobs)` answers [R, T] for one prompt; `batch_NAME(groups, **knobs)` answers {column: one array a prompt}; a loop with
several columns may answer {column: [R, T]}. One module a family; `tests/credit/test_credit.py` finds them by name.
"""
