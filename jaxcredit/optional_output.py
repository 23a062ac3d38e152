"""Outputs that a run can do without: the first failure of one is said once and ends that output, never the run."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

from jaxcredit.plain_text import one_line


class Optional:
    """Guards calls that write an optional output, or every method of the object that writes it (`make(*args)`).

    The first call that raises is a warning, and later calls do nothing. While a host log is open, warnings are lines in it too.
    """

    def __init__(self, name: str, make: Callable[..., Any] | None = None, *args: Any):
        self._name, self.failed = name, False
        self._writer: Any = None
        if make:
            self._writer = self(make, *args)

    def __call__(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of `work`; None once a call failed."""
        if self.failed:
            return None
        try:
            return work(*args, **kwargs)
        except (Exception, SystemExit) as error:  # rich raises SystemExit where nobody reads a pipe any more
            self.failed = True
            told = f"{self._name} failed ({cause(error)}) and is left out from here on; the training goes on"
        warnings.warn(told, stacklevel=2)
        return None

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self(lambda: getattr(self._writer, method)(*args, **kwargs))

    def close(self) -> None:
        """Close the writer. One that failed before is closed as far as it can be."""
        if not self.failed:
            self(lambda: self._writer.close())
        elif self._writer is not None:
            with contextlib.suppress(Exception, SystemExit):
                self._writer.close()


def cause(error: BaseException) -> str:
    """The kind of an error and its first line, on one line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return one_line(f"{type(error).__name__}: {first}" if first else type(error).__name__, most=300)
