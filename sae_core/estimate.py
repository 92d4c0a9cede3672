"""A measured number with its interval: the one form in which results state uncertainty."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its 95% interval; what was resampled for it is said where it is made."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        return format(self)

    def __format__(self, spec: str) -> str:
        """The number, and its interval where it has one, each by `spec`, `.3f` if empty: `0.286 [0.241, 0.330]`."""
        spec = spec or ".3f"
        if math.isnan(self.low):
            return format(self.value, spec)
        return f"{format(self.value, spec)} [{format(self.low, spec)}, {format(self.high, spec)}]"

    def excludes(self, value: float) -> bool:
        """Whether the interval leaves `value` out."""
        return value < self.low or value > self.high
