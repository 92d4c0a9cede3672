"""The page of a steering: texts side by side, and dose and response beside the controls."""

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from editing.ioi.figure import styled
from editing.steering.continuations import Continuation
from editing.steering.dose_response import Along, DoseResponse
from editing.steering.edits import Mode
from sae_core.estimate import Estimate
from subrank.pages.page import plot, table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLOURS = {Along.FEATURES: "#1b4f9c", Along.RANDOM: "#10b981", Along.MEAN_DIFFERENCE: "#b3261e"}
_MEANING = {
    Mode.SCALE: "Strength s multiplies the activation by s: 1 changes nothing, 0 turns it off. "
    "The edit acts where the feature is active, and only there.",
    Mode.CLAMP: "Strength s sets the activation to s times its maximum on the text, at every position after BOS.",
    Mode.OFF: "The activation is set to zero.",
}


def steering_section(response: DoseResponse, texts: Sequence[Continuation]) -> str:
    """What the model writes at every strength, and what each strength does to its predictions."""
    return (
        f"<p>{' '.join(map(escape, described(response)))} {_MEANING[response.mode]}</p>"
        "<h3>Text</h3>" + texts_section(texts) + "<h3>Dose and response</h3>" + _doses(response)
    )


def described(response: DoseResponse) -> list[str]:
    """A sentence for every feature, and one about the tokens they promote."""
    rows = zip(response.features, response.maximum, response.density, strict=True)
    each = [
        f"{name}: at most {most:.3g} on the text, active on {density:.2%} of its tokens."
        for name, most, density in rows
    ]
    likelier = f" Most probability is given to: {', '.join(response.likelier)}." if response.likelier else ""
    return [*each, f"Directly promoted: {', '.join(response.promoted)}.{likelier}"]


def texts_section(texts: Sequence[Continuation]) -> str:
    """The continuations of every prompt, one block per strength; changed tokens are marked."""
    parts = []
    for prompt, group in groupby(texts, key=lambda text: text.prompt):
        parts.append(f'<p style="white-space: pre-wrap"><b>{escape(prompt)}</b> …</p>')
        for text in group:
            words = "".join(f"<mark>{escape(run)}</mark>" if new else escape(run) for run, new in text.marked())
            parts.append(
                '<div style="display: flex; gap: 1em; margin: .3em 0; border-bottom: 1px solid #eee">'
                f'<div style="min-width: 5.5em; text-align: right; color: #6b7280">{escape(label(text))}</div>'
                f'<div style="white-space: pre-wrap">{words}{" ■" if text.ended else ""}</div></div>'
            )
    note = (
        "All texts of a prompt are drawn with the same noise. Marked: tokens that the text without edit does not have, "
        "the two being aligned by runs of at least three. ■: the text came to its end."
    )
    return "".join(parts) + f'<p class="note">{note}</p>'


def label(text: Continuation) -> str:
    """The strength of a text, or that it has none."""
    return "unedited" if text.strength is None else f"{text.strength:g}"


def _doses(response: DoseResponse) -> str:
    if not response.n_places:
        return "<p>The features are not active on the held-out text: nothing to measure there.</p>"
    rows = [
        (
            dose.method,
            f"{dose.strength:g}",
            _interval(dose.logit, ".2f"),
            _interval(dose.log_prob, ".2f"),
            _interval(dose.kl, ".2g"),
            f"{dose.edit_size:.2f}",
        )
        for dose in response.doses
    ]
    head = ("method", "strength", "Δ logit", "Δ log p", "KL elsewhere", "edit size")
    where = "at any position" if response.mode is Mode.CLAMP else "where the features are active"
    note = (
        f"Means over {response.n_contexts} held-out contexts, with 95% bootstrap intervals over contexts. Δ logit and "
        f"Δ log p: change for the promoted tokens, {where} ({response.n_places} places); logits less their mean over "
        "all tokens. KL elsewhere: KL(unedited ‖ edited), nats per token, in the same contexts where the features are "
        f"silent and the unedited model gives the promoted tokens less than 1% together ({response.n_neutral_places} "
        "places). Edit size: mean |h' − h|, at the first site the same for every method by construction."
    )
    slopes = "; ".join(f"{method} {_interval(slope, '.2f')}" for method, slope in response.slope.items())
    sentence = f"<p>Δ logit per unit of strength (least squares): {escape(slopes)}.</p>" if slopes else ""
    return plot(steering_figure(response)) + sentence + table(head, rows) + f'<p class="note">{note}</p>'


def _interval(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return "–"
    return format(estimate, form)


def steering_figure(response: DoseResponse) -> "Figure":
    """Response of the promoted tokens, and KL elsewhere, against strength; a line with intervals for each method."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.08)
    for method in dict.fromkeys(dose.method for dose in response.doses):
        doses = sorted(response.of(method), key=lambda dose: dose.strength)
        for column, field in enumerate(("logit", "log_prob", "kl"), 1):
            shown = [(dose.strength, getattr(dose, field)) for dose in doses if getattr(dose, field) is not None]
            figure.add_trace(
                Scatter(
                    x=[strength for strength, _ in shown],
                    y=[value.value for _, value in shown],
                    error_y={
                        "type": "data",
                        "symmetric": False,
                        "array": [value.high - value.value for _, value in shown],
                        "arrayminus": [value.value - value.low for _, value in shown],
                        "thickness": 1,
                    },
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
