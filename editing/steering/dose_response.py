"""Dose and response of steering: what each strength does to the tokens that a feature promotes, and to the rest.

Response: mean change of the promoted tokens' logits (less the mean logit, which no probability notices) and
log probabilities at held-out places where the edit acts: those on which the feature is active, or any, for a
clamp. Harm: KL(unedited || edited) in the same contexts where the feature is silent and the unedited model
gives the promoted tokens less than 1% together. Beside it stand changes of the same size, position by position,
along random directions and along the difference of means. Blocks below the first edit run once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.interventions.edit_size import Measured
from editing.interventions.masks import Mask
from editing.loss_recovered import LOGITS_AT_ONCE
from editing.metrics import bootstrap, kl_divergence
from editing.steering.steer import FeatureText, Mode, promoted, random_directions, redirected, steering
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import Site

PLACES = 16
"""At most so many places of a context are read, of either kind."""
AT_ONCE = 16
"""Contexts per forward pass."""
NEUTRAL = 0.01
"""Probability that the unedited model may give the promoted tokens where harm is measured."""


class Along(StrEnum):
    """What a change goes along: the features' own directions, or a control's."""

    FEATURES = "features"
    RANDOM = "random direction"
    MEAN_DIFFERENCE = "mean difference"


@dataclass(frozen=True)
class DoseConfig:
    """How much to measure."""

    contexts: int = 32
    """Held-out contexts at most; two at least, as intervals are over contexts."""
    n_promoted: int = 5
    random_draws: int = 3
    """Random directions, averaged."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("contexts", 2), ("n_promoted", 1), ("random_draws", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}; got {getattr(self, name)}")


@dataclass(frozen=True)
class Estimate:
    """A mean over contexts (of the mean over each one's places) with its 95% bootstrap interval over contexts."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Dose:
    """One strength of one method."""

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
        """The doses of one method, strength by strength."""
        return [dose for dose in self.doses if dose.method == method]


def dose_response(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    text: FeatureText,
    held_out: FeatureText,
    mode: Mode,
    strengths: Sequence[float],
    config: DoseConfig,
) -> Iterator[str | DoseResponse]:
    """Yield a line of progress for each method, and the `DoseResponse` last; without doses where no edit would act.

    `text` says what a feature's largest activation, promoted tokens and difference of means are, `held_out`
    is what effects are measured on.
    """
    tokens = promoted(model, dictionaries, text, config.n_promoted)
    experiment = _Experiment(model, held_out, mode, tokens, config)
    randoms = [
        random_directions(model, text.difference, generator=generator_for(config.seed, "random direction", draw))
        for draw in range(config.random_draws)
    ]
    off = partial(_edits, dictionaries, text, Mode.OFF, 0.0, None)
    methods = {Along.FEATURES: [None], Along.RANDOM: randoms, Along.MEAN_DIFFERENCE: [text.difference]}
    doses, slopes = [], {}
    for method, directions in methods.items() if len(experiment.tokens) else ():
        yield f"dose and response: {method}"
        logits = []
        for strength in strengths:
            trials = [partial(_edits, dictionaries, text, mode, strength, along) for along in directions]
            changes = zip(*map(experiment.changes, trials), strict=True)
            logit, log_prob, kl, size = (torch.stack(draws).mean(0) for draws in changes)
            estimates = (estimate(values, config.seed) for values in (logit, log_prob, kl))
            doses.append(Dose(method, strength, *estimates, size.mean().item()))
            logits.append(logit)
        if len({*strengths}) > 1:
            slopes[method] = estimate(slope(strengths, torch.stack(logits)), config.seed)
    yield DoseResponse(
        features=tuple(map(str, text.features)),
        mode=mode,
        maximum=tuple(text.maximum.tolist()),
        density=tuple(text.density.tolist()),
        promoted=tuple(model.token_text(token).strip() for token in tokens.tolist()),
        likelier=tuple(model.token_text(token).strip() for token in experiment.likelier(off, config.n_promoted)),
        doses=tuple(doses),
        slope=slopes,
        n_contexts=len(experiment.tokens),
        n_places=len(experiment.acts),
        n_neutral_places=len(experiment.quiet),
    )


def _edits(
    dictionaries: Mapping[Site, Dictionary],
    text: FeatureText,
    mode: Mode,
    strength: float,
    along: Mapping[Site, Tensor] | None,
    mask: Mask,
) -> list[Intervention]:
    """The features' own edits, or with a direction for each site a control."""
    edits = steering(dictionaries, text, mode, strength, mask=mask)
    return list(edits if along is None else redirected(edits, along))


def estimate(values: Float[Tensor, "contexts"], seed: int) -> Estimate | None:
    """Mean and interval; None where there is no value."""
    if not len(values):
        return None
    return Estimate(values.mean().item(), *bootstrap(values, torch.arange(len(values)), seed))


def slope(strengths: Sequence[float], values: Float[Tensor, "strengths contexts"]) -> Float[Tensor, "contexts"]:
    """Least-squares slope of each context's values on the strengths."""
    x = torch.tensor(strengths, dtype=torch.float64)
    x = x - x.mean()
    return x @ values.double() / x.pow(2).sum()


Edits = Callable[[Bool[Tensor, "batch pos"]], Sequence[Intervention]]
"""Edits of the positions of a mask."""


class _Experiment:
    """Held-out contexts in which the edits act, read once without edits and then with any."""

    def __init__(
        self, model: LanguageModel, text: FeatureText, mode: Mode, promoted: Int[Tensor, "n"], config: DoseConfig
    ):
        content, active = model.content(text.contexts), text.active
        acts = content if mode is Mode.CLAMP else active
        rows = acts.any(-1).nonzero()[:, 0][: config.contexts]
        self.model, self.tokens, self.promoted = model, text.contexts[rows], promoted
        self.layer = min(feature.site.layer for feature in text.features) - 1
        self.acts, self.quiet = (
            _some(allowed[rows], generator=generator_for(config.seed, "places", name))
            for name, allowed in (("acts", acts), ("quiet", content & ~active))
        )
        if not len(self.tokens):
            return
        with torch.no_grad():
            self.below = self._record_below()
            self.before, _ = self._run(lambda mask: [])
            likely = [logits.softmax(-1)[:, promoted].sum(-1) for (logits,) in self._logits(self.quiet, self.before)]
            self.quiet = self.quiet[torch.cat(likely).cpu() < NEUTRAL] if likely else self.quiet

    @torch.no_grad()
    def changes(self, edits: Edits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Per context: change of the promoted tokens' logits, of their log probabilities, KL, and size of the edit."""
        finals, moved = self._run(edits)
        logit, log_prob, kl = [], [], []
        for before, after in self._logits(self.acts, self.before, finals):
            logit.append((_centred(after) - _centred(before))[:, self.promoted].mean(-1))
            log_prob.append((after.log_softmax(-1) - before.log_softmax(-1))[:, self.promoted].mean(-1))
        for before, after in self._logits(self.quiet, self.before, finals):
            kl.append(kl_divergence(before, after))
        acting = (torch.cat(logit), torch.cat(log_prob), moved[self.acts[:, 0], self.acts[:, 1]])
        logit, log_prob, size = (self._per_context(values, self.acts) for values in acting)
        return logit, log_prob, self._per_context(torch.cat([moved.new_zeros(0), *kl]), self.quiet), size

    @torch.no_grad()
    def likelier(self, off: Edits, n: int) -> list[int]:
        """The tokens whose mean probability falls most when the features are switched off."""
        if not len(self.tokens):
            return []
        finals, _ = self._run(off)
        pairs = self._logits(self.acts, self.before, finals)
        fall = sum((before.softmax(-1) - after.softmax(-1)).sum(0) for before, after in pairs)
        return fall.topk(min(n, fall.shape[-1])).indices.tolist()

    def _per_context(self, values: Float[Tensor, "places"], places: Int[Tensor, "places 2"]) -> Float[Tensor, "rows"]:
        """Mean of the values of each context that has any."""
        sums, counts = (torch.zeros(len(self.tokens), dtype=torch.float64) for _ in range(2))
        sums.index_add_(0, places[:, 0], values.double().cpu())
        counts.index_add_(0, places[:, 0], torch.ones(len(values), dtype=torch.float64))
        return (sums / counts)[counts > 0]

    def _record_below(self) -> Sequence[Tensor | None]:
        """The residual below the first edit, part by part; None where that edit is in the first block."""
        below, parts = Site(self.layer), self.tokens.split(AT_ONCE)
        return [self.model.record(part, [below])[below] if self.layer >= 0 else None for part in parts]

    def _run(self, edits: Edits) -> tuple[Float[Tensor, "contexts pos d_model"], Float[Tensor, "contexts pos"]]:
        """The last residual under edits of all content positions, and how far they move what they edit."""
        last, model = self.model.sites()[-1], self.model
        finals, moved = [], []
        for tokens, below in zip(self.tokens.split(AT_ONCE), self.below, strict=True):
            measured = [Measured(edit) for edit in edits(model.content(tokens).to(model.device))]
            with model.hooks(*measured):
                finals.append(model.record(tokens, [last])[last] if below is None else model.final(below, self.layer))
            sizes = (one.moved[0] for one in measured)
            moved.append(sum(sizes, torch.zeros(tokens.shape, device=model.device)))
        return torch.cat(finals), torch.cat(moved)

    def _logits(
        self, places: Int[Tensor, "places 2"], *finals: Float[Tensor, "contexts pos d_model"]
    ) -> Iterator[list[Float[Tensor, "_ vocab"]]]:
        """Logits of every one of `finals` at the places, so many places at a time as `LOGITS_AT_ONCE` allows."""
        if not len(places):
            return
        for few in places.split(max(1, LOGITS_AT_ONCE // (len(finals) * self.model.n_vocab))):
            yield [self.model.unembed(final[few[:, 0], few[:, 1]]) for final in finals]


def _some(allowed: Bool[Tensor, "contexts pos"], *, generator: torch.Generator) -> Int[Tensor, "places 2"]:
    """At most `PLACES` of the allowed places of every context, drawn at random: (context, position)."""
    if not allowed.any():
        return torch.zeros(0, 2, dtype=torch.long)
    chance = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0)
    least = chance.topk(min(PLACES, chance.shape[1]), dim=-1).values[:, -1:]
    return (allowed & (chance >= least)).nonzero()


def _centred(logits: Float[Tensor, "places vocab"]) -> Float[Tensor, "places vocab"]:
    return logits - logits.mean(-1, keepdim=True)
