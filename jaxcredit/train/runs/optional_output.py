"""Optional outputs of a run (console, TensorBoard, plots), whose failure does not end the run."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

from jaxcredit.utils.plain_text import one_line


class OptionalOutput:
    """Guard around calls that write an optional output.

    If a call raises, this is a warning, and later calls have no effect.

    Args:
        name: name of the output in the warning.
        make: constructor of a writer. The guard has the writer's methods. None: the guard only
            calls functions, `guard(function, *args)`.
        args: arguments of `make`.

    Attributes:
        failed: whether a call has failed.
    """

    def __init__(self, name: str, make: Callable[..., Any] | None = None, *args: Any):
        self._name, self.failed = name, False
        self._writer: Any = None
        if make:
            self._writer = self(make, *args)

    def __call__(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of `work(*args, **kwargs)`; None if this call or an earlier one failed."""
        if self.failed:
            return None
        try:
            return work(*args, **kwargs)
        # rich raises SystemExit for a pipe without a reader.
        except (Exception, SystemExit) as error:
            self.failed = True
            message = (
                f"{self._name} failed ({cause(error)}) and is left out from here on; "
                "the training goes on"
            )
        warnings.warn(message, stacklevel=2)
        return None

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self(lambda: getattr(self._writer, method)(*args, **kwargs))

    def close(self) -> None:
        """Close the writer. After a failure, errors of closing are ignored."""
        if not self.failed:
            self(lambda: self._writer.close())
        elif self._writer is not None:
            with contextlib.suppress(Exception, SystemExit):
                self._writer.close()


def cause(error: BaseException) -> str:
    """Type of an error and the first line of its message, as one line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return one_line(f"{type(error).__name__}: {first}" if first else type(error).__name__, most=300)
