"""The page of `subrank steer`: texts side by side, and dose and response beside the controls."""

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from editing.steering.continuations import Continuation
from editing.steering.dose_response import DoseResponse
from editing.steering.edits import Mode
from subrank.pages.page import Table, estimate_cell, figure, render
from subrank.pages.steering_figure import steering_figure

_MEANING = {
    Mode.SCALE: "Strength s multiplies the activation by s: 1 changes nothing, 0 turns it off. "
    "The edit acts where the feature is active, and only there.",
    Mode.CLAMP: "Strength s sets the activation to s times its maximum on the text, at every position after BOS.",
    Mode.OFF: "The activation is set to zero.",
}


def steering_section(response: DoseResponse, texts: Sequence[Continuation]) -> Markup:
    """What the model writes at every strength, and what each strength does to its predictions."""
    measured = bool(response.n_places)
    return render(
        "steering.html",
        described=[*described(response), _MEANING[response.mode]],
        texts=texts_section(texts),
        plot=figure(steering_figure(response)) if measured else None,
        slopes=[(method, f"{slope:.2f}") for method, slope in response.slope.items()],
        doses=_dose_table(response) if measured else None,
        n_contexts=response.n_contexts,
        where="at any position" if response.mode is Mode.CLAMP else "where the features are active",
        n_places=response.n_places,
        n_neutral_places=response.n_neutral_places,
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


def texts_section(texts: Sequence[Continuation]) -> Markup:
    """The continuations of every prompt, one block per strength; changed tokens are marked."""
    prompts = [
        {
            "prompt": prompt,
            "texts": [{"label": label(text), "runs": text.marked(), "ended": text.ended} for text in group],
        }
        for prompt, group in groupby(texts, key=lambda text: text.prompt)
    ]
    return render("steered_texts.html", prompts=prompts)


def label(text: Continuation) -> str:
    """The strength of a text, or that it has none."""
    return "unedited" if text.strength is None else f"{text.strength:g}"


def _dose_table(response: DoseResponse) -> Table:
    rows = [
        (
            dose.method,
            f"{dose.strength:g}",
            estimate_cell(dose.logit, ".2f"),
            estimate_cell(dose.log_prob, ".2f"),
            estimate_cell(dose.kl, ".2g"),
            f"{dose.edit_size:.2f}",
        )
        for dose in response.doses
    ]
    return Table(("method", "strength", "Δ logit", "Δ log p", "KL elsewhere", "edit size"), rows)
