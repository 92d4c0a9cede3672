"""Plots of the editing experiments, as plotly figures."""

from typing import TYPE_CHECKING

from editing.ioi import IOIResult
from editing.removal import RemovalResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLOURS = {
    "dictionary": "#1b4f9c",
    "PCA": "#d97706",
    "neurons": "#6b7280",
    "random basis": "#9ca3af",
    "random subsets": "#10b981",
    "features": "#1b4f9c",
    "features, plain ablation": "#7fa6dd",
    "LEACE": "#d97706",
    "mean difference": "#b3261e",
    "LEACE, tuned": "#f5b971",
    "mean difference, tuned": "#e08a84",
    "random features": "#10b981",
}


def ioi_figure(result: IOIResult) -> "Figure":
    """KL from the clean run and recovered logit difference, against number of features and against edit size."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=2, shared_yaxes=True, horizontal_spacing=0.06, vertical_spacing=0.14)
    for curve in result.curves:
        look = {"color": _COLOURS.get(curve.name), "width": 3 if curve.name == "dictionary" else 1.6}
        for row, field in ((1, "kl"), (2, "recovered")):
            for column, axis in ((1, "n_features"), (2, "edit_size")):
                figure.add_trace(
                    Scatter(
                        x=[getattr(p, axis) for p in curve.points],
                        y=[getattr(p, field) for p in curve.points],
                        name=curve.name,
                        legendgroup=curve.name,
                        showlegend=(row, column) == (1, 1),
                        mode="lines+markers",
                        line=look,
                        marker={"size": 4},
                        customdata=[[p.n_features, p.edit_size] for p in curve.points],
                        hovertemplate="%{customdata[0]} features, edit size %{customdata[1]:.2f}: %{y:.3f}",
                    ),
                    row=row,
                    col=column,
                )
    for column in (1, 2):
        figure.add_hline(
            y=result.floor["all_latents"], line={"dash": "dot", "color": "#1b4f9c", "width": 1}, row=1, col=column
        )
    for row in (1, 2):
        figure.update_xaxes(title_text="patched features", range=[0, 64], row=row, col=1)
        figure.update_xaxes(title_text="mean edit size |x' - x̄|", row=row, col=2)
    figure.update_yaxes(title_text="KL(clean ‖ patched), nats", row=1, col=1)
    figure.update_yaxes(title_text="logit difference recovered", row=2, col=1)
    return _styled(figure, height=640)


def removal_figure(result: RemovalResult) -> "Figure":
    """Capability left against damage done, one point per method and site."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    figure.add_hrect(y0=0.45, y1=0.55, fillcolor="#10b981", opacity=0.12, line_width=0, annotation_text="gone")
    for removal in (*result.methods, *result.elsewhere):
        here = removal.site == result.site
        figure.add_trace(
            Scatter(
                x=[max(removal.damage, 1e-6)],
                y=[removal.auroc],
                name=removal.method,
                legendgroup=removal.method,
                showlegend=here,
                mode="markers+text" if here else "markers",
                text=[removal.site] if here and removal.method == "features" else None,
                textposition="top center",
                opacity=1.0 if here else 0.35,
                marker={"size": 15 if here else 9, "color": _COLOURS.get(removal.method)},
                hovertemplate=f"{removal.method} at {removal.site}<br>AUROC %{{y:.3f}}<br>damage %{{x:.4f}} nats/token",
            )
        )
    figure.update_xaxes(title_text="damage elsewhere: KL per token from the unedited model, nats", type="log")
    figure.update_yaxes(title_text="capability left: AUROC of logit(she) - logit(he)", range=[-0.03, 1.03])
    return _styled(figure, height=460)


def _styled(figure: "Figure", *, height: int) -> "Figure":
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 20, "t": 30, "b": 60},
        font={"family": "Helvetica, Arial, sans-serif", "size": 13},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
    )
    return figure
