"""The look that all figures share, and error bars from intervals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sae_core.estimate import Estimate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, AMBER, RED, GREEN, PURPLE, GREY = "#1b4f9c", "#d97706", "#b3261e", "#10b981", "#7c3aed", "#6b7280"
"""What figures draw with first; blue is the dictionary's features wherever methods are compared."""


def styled(figure: "Figure", *, height: int, top: int = 30, size: int = 13) -> "Figure":
    """The figure on white, its legend in rows above the plots; `top` is the margin there, in pixels."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 65, "r": 15, "t": top, "b": 55},
        font={"family": "Helvetica, Arial, sans-serif", "size": size},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02 if top <= 30 else 1.1, "x": 0},
    )
    return figure


def error_bars(estimates: Sequence[Estimate], **look: Any) -> dict[str, Any]:
    """plotly's bars from values to the ends of their intervals: none beyond the value, and none without an interval."""
    up = [max(0.0, estimate.high - estimate.value) for estimate in estimates]
    down = [max(0.0, estimate.value - estimate.low) for estimate in estimates]
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 0.8, "width": 0}
    return bars | look
