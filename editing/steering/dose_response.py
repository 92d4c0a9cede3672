"""Dose and response of steering: what each strength does to the tokens that a feature promotes, and to the rest.

Response: mean change of the promoted tokens' logits (less the mean logit, which no probability notices) and
log probabilities at held-out places where the edit acts: those on which the feature is active, or any, for a
clamp. Harm: KL(unedited || edited) in the same contexts where the feature is silent and the unedited model
gives the promoted tokens less than 1% together. Beside it stand changes of the same size, position by position,
along random directions and along the difference of means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from editing.metrics import bootstrap_estimate, resampled
from editing.steering.edits import Mode, Steering, promoted, random_directions
from editing.steering.feature_text import FeatureText
from editing.steering.held_out import DoseConfig, Edits, HeldOut
from sae_core.estimate import Estimate
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from sae_core.seeds import generator_for
from sae_core.sites import Site


class Along(StrEnum):
    """What a change goes along: the features' own directions, or a control's."""

    FEATURES = "features"
    RANDOM = "random direction"
    MEAN_DIFFERENCE = "mean difference"


@dataclass(frozen=True)
class Dose:
    """One strength of one method: means over contexts of the mean over each one's places.

    Intervals are 95% bootstrap intervals over contexts.
    """

    method: Along
    strength: float
    logit: Estimate
    """Change of the promoted tokens' logits less the mean logit."""
    log_prob: Estimate
    """Change of their log probabilities, nats."""
    kl: Estimate | None
    """KL(unedited || edited) per token where the features are silent, nats; None where no place is neutral."""
    edit_size: float
    """Mean |h' - h| where the response is measured, summed over sites."""


@dataclass(frozen=True)
class DoseResponse:
    """Everything that was measured of one way to steer."""

    features: tuple[str, ...]
    mode: Mode
    maximum: tuple[float, ...]
    """Largest activation of each feature on the text that strengths refer to."""
    density: tuple[float, ...]
    promoted: tuple[str, ...]
    """Tokens whose logits the features raise directly; the responses are theirs."""
    likelier: tuple[str, ...]
    """Tokens to which the features give most probability where the response is measured, through all paths."""
    doses: tuple[Dose, ...]
    slope: dict[Along, Estimate]
    """For each method, the response per unit of strength: the least-squares slope of `logit`; none for one strength."""
    n_contexts: int
    n_places: int
    """Where the response is measured."""
    n_neutral_places: int
    """Where harm is measured."""

    def of(self, method: Along) -> list[Dose]:
        """The doses of one method, in the order of `strengths`."""
        return [dose for dose in self.doses if dose.method == method]


def dose_response(
    model: LanguageModel,
    steering: Steering,
    strengths: Sequence[float],
    held_out: FeatureText,
    config: DoseConfig,
    on_progress: OnProgress = silent,
) -> DoseResponse:
    """What every strength does on held-out text, beside the controls; without doses where no edit would act.

    The text of `steering` says what a feature's largest activation, promoted tokens and difference of means are,
    `held_out` is what effects are measured on.
    """
    text = steering.text
    tokens = promoted(model, steering.dictionaries, text, config.n_promoted)
    measured_on = HeldOut(model, held_out, steering.mode, tokens, config)
    random = [
        random_directions(model, text.difference, generator=generator_for(config.seed, "random direction", draw))
        for draw in range(config.random_draws)
    ]
    methods = {Along.FEATURES: [None], Along.RANDOM: random, Along.MEAN_DIFFERENCE: [text.difference]}
    methods = methods if len(measured_on.tokens) else {}
    stages, doses, slopes = Stages(on_progress, len(methods)), [], {}
    for method, directions in methods.items():
        stages.begin(f"dose and response: {method}")
        logits = []
        for strength in strengths:
            draws = [measured_on.changes(_edits(steering, strength, along)) for along in directions]
            logit, log_prob, kl, size = (torch.stack(each).mean(0) for each in zip(*draws, strict=True))
            logit_mean, log_prob_mean = estimate(logit, config.seed), estimate(log_prob, config.seed)
            kl_mean = estimate(kl, config.seed) if len(kl) else None
            doses.append(Dose(method, strength, logit_mean, log_prob_mean, kl_mean, size.mean().item()))
            logits.append(logit)
        if len({*strengths}) > 1:
            slopes[method] = estimate(slope(strengths, torch.stack(logits)), config.seed)
    likelier = measured_on.likelier(_edits(replace(steering, mode=Mode.OFF), 0.0, None), config.n_promoted)
    return DoseResponse(
        features=tuple(map(str, text.features)),
        mode=steering.mode,
        maximum=tuple(text.maximum.tolist()),
        density=tuple(text.density.tolist()),
        promoted=tuple(model.token_text(token).strip() for token in tokens.tolist()),
        likelier=tuple(model.token_text(token).strip() for token in likelier),
        doses=tuple(doses),
        slope=slopes,
        n_contexts=len(measured_on.tokens),
        n_places=len(measured_on.acting),
        n_neutral_places=len(measured_on.neutral),
    )


def _edits(steering: Steering, strength: float, along: Mapping[Site, Tensor] | None) -> Edits:
    """The features' own edits, or with a direction for each site a control."""
    return partial(steering.edits, strength) if along is None else partial(steering.controls, strength, along)


def estimate(values: Float[Tensor, "contexts"], seed: int) -> Estimate:
    """The mean over contexts, with its bootstrap interval over contexts."""
    return bootstrap_estimate(values, resampled(range(len(values)), seed))


def slope(strengths: Sequence[float], values: Float[Tensor, "strengths contexts"]) -> Float[Tensor, "contexts"]:
    """Least-squares slope of each context's values on the strengths: sum (s - s_mean) y / sum (s - s_mean)^2."""
    s = torch.tensor(strengths, dtype=torch.float64)
    s = s - s.mean()
    return s @ values.double() / s.pow(2).sum()
