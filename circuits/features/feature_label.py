"""The label of a feature: what it responds to and what comes next, in words, and what that is worth on held-out text.

Whoever shows a feature (drawing, explorer, card, list, export) shows this and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_core.codec import from_plain, to_plain

UNCLEAR = "unclear"
MARGIN = 0.1
"""By how much a label must beat its control to count."""


@dataclass(frozen=True)
class FeatureLabel:
    """A feature in words."""

    context: str = ""
    """Where it is active: `inside ( …`, `on " Mary"`, `before ")"`."""
    output: str = ""
    """What comes next on its strongest examples, `→ ")" 8/8`, else the tokens it promotes, if they do: `→ ")" "]"`."""
    f1: float | None = None
    """Of `context`, on held-out text; None where nothing was scored."""
    control: float | None = None
    """Mean F1 of the same `context` as a label of other features of its site."""
    promotes: tuple[str, ...] = ()
    """The tokens whose logits it raises most by the direct path, whether or not they come next."""

    @property
    def is_clear(self) -> bool:
        """Whether `context` says more of this feature than of others of its site."""
        return self.f1 is not None and self.f1 >= (self.control or 0.0) + MARGIN

    @property
    def score(self) -> str:
        """`F1 0.93`, or `unclear`; empty where nothing was scored."""
        if self.f1 is None:
            return ""
        return f"F1 {self.f1:.2f}" if self.is_clear else UNCLEAR

    @property
    def short(self) -> str:
        """The label in a few words, for a list: the context, or `unclear`."""
        return (self.context if self.is_clear or self.f1 is None else "") or UNCLEAR

    @property
    def lines(self) -> tuple[str, ...]:
        """The rows of a box, below the feature's id."""
        score = "" if self.score == self.short else self.score
        return tuple(row for row in (self.short, self.output, score) if row)

    def to_json(self) -> dict[str, Any]:
        """Plain values, and beside them `score`, `short` and `lines`, for pages."""
        shown = {"score": self.score, "short": self.short, "lines": list(self.lines)}
        return to_plain(self) | shown

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "FeatureLabel":
        """The label that `to_json` wrote."""
        return from_plain(cls, value)
