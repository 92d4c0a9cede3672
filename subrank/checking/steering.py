"""What `steer --check` computes again of the features themselves, at two strengths drawn at random, context by context.

    scale   h -> h + (s - 1) sum_j f_j(h) d_j          clamp   h -> h + sum_j (s max_j - f_j(h)) d_j
    off     h -> h - sum_j f_j(h) d_j

at the content tokens that are no outliers, max_j being the maximum that the result names. At the places of a context
where the response is measured: the mean rise of the promoted tokens' logits, each less the mean logit, and of |h' - h|
summed over sites; at the neutral ones KL(unedited || edited). All are means over contexts of a context's mean. Which
places these are, and which tokens, is the result's choice and taken over. And max_j and the density of each feature
on the text that was read.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from editing.steering.dose_response import Along, Dose, DoseResponse
from editing.steering.edits import Mode, Steering, promoted
from editing.steering.feature_text import FeatureText
from editing.steering.held_out import DoseConfig, HeldOut
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site
from subrank.checking.plain_runs import Formula, activations, kl, limit_of, logits, mean
from subrank.checking.recomputed import Recomputed, drawn

STRENGTHS = 2


@torch.no_grad()
def recomputed(
    model: LanguageModel, steering: Steering, held_out: FeatureText, config: DoseConfig, response: DoseResponse
) -> list[Recomputed]:
    """Maxima and densities of the features, and the doses of `STRENGTHS` strengths on `held_out`."""
    tokens = promoted(model, steering.dictionaries, steering.text, config.n_promoted)
    measured_on = HeldOut(model, held_out, response.mode, tokens, config)
    numbers = [number for feature in steering.text.features for number in _read(model, steering, response, feature)]
    for dose in drawn(response.of(Along.FEATURES), STRENGTHS, config.seed):
        logit, size, harm = _measured(model, steering, measured_on, response, dose)
        what = f"{response.mode} {dose.strength:g}"
        numbers.append(Recomputed(f"logit change, {what}", dose.logit.value, logit))
        numbers.append(Recomputed(f"edit size, {what}", dose.edit_size, size))
        if dose.kl is not None:
            numbers.append(Recomputed(f"KL, {what}", dose.kl.value, harm))
    return numbers


def _read(model: LanguageModel, steering: Steering, response: DoseResponse, feature: FeatureId) -> list[Recomputed]:
    column, values = response.features.index(str(feature)), []
    for tokens in steering.text.contexts:
        h = activations(model, tokens, [feature.site])[feature.site]
        values += steering.dictionaries[feature.site].encode(h)[model.content(tokens), feature.index].tolist()
    density = sum(value != 0 for value in values) / len(values)
    return [
        Recomputed(f"maximum of {feature}", response.maximum[column], max(values)),
        Recomputed(f"density of {feature}", response.density[column], density),
    ]


def _measured(
    model: LanguageModel, steering: Steering, measured_on: HeldOut, response: DoseResponse, dose: Dose
) -> tuple[float, float, float]:
    """(Change of the promoted logits, size of the edit, KL where the features are silent)."""
    rises, sizes, harms = [], [], []
    for row, tokens in enumerate(measured_on.tokens):
        content = model.content(tokens)
        acting, neutral = (places[places[:, 0] == row, 1] for places in (measured_on.acting, measured_on.neutral))
        edits = []
        for site, latents in _latents(response).items():
            dictionary = steering.dictionaries[site]
            change = _change(dictionary, latents, response.mode, dose.strength)
            edits.append(Formula(site, change, content, limit_of(dictionary)))
        before, after = logits(model, tokens), logits(model, tokens, *edits)
        rise = (after - after.mean(-1, keepdim=True)) - (before - before.mean(-1, keepdim=True))
        moved = torch.stack([edit.moved[0] for edit in edits]).sum(0)
        if len(acting):
            rises.append(mean(rise[acting][:, measured_on.promoted.cpu()].mean(-1)))
            sizes.append(mean(moved[acting]))
        if len(neutral):
            harms.append(mean(kl(before.log_softmax(-1), after.log_softmax(-1))[neutral]))
    return mean(rises), mean(sizes), mean(harms)


def _latents(response: DoseResponse) -> dict[Site, list[tuple[int, float]]]:
    """The latents at each site, each with its maximum."""
    latents: dict[Site, list[tuple[int, float]]] = {}
    for feature, maximum in zip(map(FeatureId.parse, response.features), response.maximum, strict=True):
        latents.setdefault(feature.site, []).append((feature.index, maximum))
    return latents


def _change(
    dictionary: Dictionary, latents: Sequence[tuple[int, float]], mode: Mode, strength: float
) -> Callable[[Tensor], Tensor]:
    """h -> h', by the mode's formula."""
    index, directions = [j for j, _ in latents], dictionary.directions[[j for j, _ in latents]]
    maximum = torch.tensor([most for _, most in latents]).to(directions)

    def change(h: Tensor) -> Tensor:
        f = dictionary.encode(h)[:, index]
        wanted = {Mode.SCALE: strength * f, Mode.CLAMP: strength * maximum.expand_as(f), Mode.OFF: 0 * f}[mode]
        return h + (wanted - f) @ directions

    return change
