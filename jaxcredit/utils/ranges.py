"""Ranges of numbers, for command-line options and fields of an experiment."""

import math
import operator
from typing import Any, NamedTuple


class Range(NamedTuple):
    """Interval of numbers.

    Attributes:
        whole: integers only; otherwise finite numbers.
        least: lower end.
        most: upper end, included.
        above: whether `least` is excluded.

    >>> str(Range(True, 1)), str(Range(False, 0, 1))
    ('a whole number, 1 or more', 'a finite number from 0 to 1')
    """

    whole: bool
    least: float
    most: float = math.inf
    above: bool = False

    def holds(self, x: Any) -> bool:
        """Whether `x` is a number in this range. Booleans and strings are not."""
        try:
            number = operator.index(x) if self.whole else float(x)
        except (TypeError, ValueError, OverflowError):
            return False
        if isinstance(x, bool | str) or (not self.whole and not math.isfinite(number)):
            return False
        return (number > self.least if self.above else number >= self.least) and number <= self.most

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        if self.above:
            return f"{kind} above {self.least}" + (
                f", at most {self.most}" if self.most < math.inf else ""
            )
        return (
            f"{kind} from {self.least} to {self.most}"
            if self.most < math.inf
            else f"{kind}, {self.least} or more"
        )


COUNT = Range(True, 1)
FROM_0 = Range(True, 0)
SEED = Range(True, 0, 2**32 - 1)  # seeds that both NumPy and JAX accept
NOT_NEGATIVE = Range(False, 0)
POSITIVE = Range(False, 0, above=True)
SHARE = Range(False, 0, 1)
SHARE_ABOVE_0 = Range(False, 0, 1, above=True)


def check(ranges: dict[str, Range], values: Any, owner: str = "") -> None:
    """Check that attributes are in their ranges.

    Args:
        ranges: ranges by the name of the attribute.
        values: object with these attributes.
        owner: text before the name in the message, such as "warmup.".

    Raises:
        ValueError: an attribute is outside its range.
    """
    for name, allowed in ranges.items():
        x = getattr(values, name)
        if not allowed.holds(x):
            raise ValueError(f"{owner}{name} = {x!r}: it must be {allowed}")
