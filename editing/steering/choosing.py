"""Which feature to steer with: the one that does most for what it costs.

Each candidate is turned alone. Its tokens are those that lose most probability, where it is active, when it is off.

    effect = rise / (KL(unedited || edited) + LEAST_HARM)

The rise is that of their probability together, a mean over places where the edit acts; the KL is a mean over contexts,
where the feature is silent, of places as in `held_out.py`. Switched off, a fall of them counts as a rise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from jaxtyping import Int
from torch import Tensor

from editing.steering.edits import Mode, Steering, promoted
from editing.steering.feature_text import FeatureText, read_features
from editing.steering.held_out import DoseConfig, HeldOut
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Progress, silent
from sae_core.sites import FeatureId, Site

TRIED_AT = {Mode.SCALE: 4.0, Mode.CLAMP: 1.0, Mode.OFF: 0.0}
"""The strength at which candidates are compared."""
LEAST_HARM = 0.1
"""Nats per token: what does much should not lose to what does nothing at all."""
N_TOKENS = 3
"""Tokens of a feature."""
READ, MEASURED = 64, 8
"""Contexts on which candidates are read, and on which each is measured."""


def most_effective(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    candidates: Sequence[FeatureId],
    contexts: Int[Tensor, "contexts pos"],
    mode: Mode,
    on_progress: OnProgress = silent,
) -> FeatureId:
    """The candidate with the largest effect; the first of them where none is active on the text."""
    text = read_features(model, dictionaries, candidates, contexts[:READ])
    best, most = candidates[0], float("-inf")
    for number, feature in enumerate(candidates):
        on_progress(Progress(f"trying {feature}", number, len(candidates)))
        alone = text.only(feature)
        if alone.active.any() and (effect := effect_of(model, Steering(dictionaries, alone, mode))) > most:
            best, most = feature, effect
    return best


def effect_of(model: LanguageModel, steering: Steering) -> float:
    """Probability per nat that the features of `steering` move, as above."""
    text, mode, config = steering.text, steering.mode, DoseConfig(contexts=MEASURED)
    off = replace(steering, mode=Mode.OFF)
    tokens = _held(model, off, text, config).likelier(partial(off.edits, 0.0), N_TOKENS)
    measured_on = _held(model, steering, text, config)
    edits = partial(steering.edits, TRIED_AT[mode])
    *_, kl, _ = measured_on.changes(edits)
    harm = kl.mean().item() if len(kl) else 0.0
    sign = -1.0 if mode is Mode.OFF else 1.0
    return sign * measured_on.rise(edits, tokens) / (harm + LEAST_HARM)


def _held(model: LanguageModel, steering: Steering, text: FeatureText, config: DoseConfig) -> HeldOut:
    return HeldOut(model, text, steering.mode, promoted(model, steering.dictionaries, text), config)
