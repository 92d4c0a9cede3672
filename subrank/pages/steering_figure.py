"""Dose and response of a steering, as a figure."""

from typing import TYPE_CHECKING

from editing.plotting import BLUE, GREEN, RED, error_bars, styled
from editing.steering.dose_response import Along, DoseResponse

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLOURS = {Along.FEATURES: BLUE, Along.RANDOM: GREEN, Along.MEAN_DIFFERENCE: RED}


def steering_figure(response: DoseResponse) -> "Figure":
    """Response of the promoted tokens, and KL elsewhere, against strength; a line with intervals for each method."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.08)
    for method in dict.fromkeys(dose.method for dose in response.doses):
        doses = sorted(response.of(method), key=lambda dose: dose.strength)
        for column, field in enumerate(("logit", "log_prob", "kl"), 1):
            measured = [(dose.strength, value) for dose in doses if (value := getattr(dose, field)) is not None]
            figure.add_trace(
                Scatter(
                    x=[strength for strength, _ in measured],
                    y=[value.value for _, value in measured],
                    error_y=error_bars([value for _, value in measured], thickness=1),
                    name=method,
                    legendgroup=method,
                    showlegend=column == 1,
                    mode="lines+markers",
                    line={"color": _COLOURS[method], "width": 3 if method is Along.FEATURES else 1.6},
                    hovertemplate=f"{method}, strength %{{x}}: %{{y:.3g}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="strength")
    figure.update_yaxes(title_text="Δ logit of promoted tokens", title_standoff=4, row=1, col=1)
    figure.update_yaxes(title_text="Δ log p of promoted tokens", title_standoff=4, row=1, col=2)
    figure.update_yaxes(title_text="KL elsewhere, nats/token", title_standoff=4, exponentformat="power", row=1, col=3)
    return styled(figure, height=400)
