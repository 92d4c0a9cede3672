"""Held-out contexts on which steering is measured: run once without edits, and then with any.

Blocks below the first edit run once; logits are made at a few places of each context only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.edited_contexts import LOGITS_AT_ONCE
from editing.interventions.edit_size import MeasuredEdit
from editing.metrics import kl_divergence
from editing.steering.edits import Mode
from editing.steering.feature_text import FeatureText
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import Site

PLACES = 16
"""Places of a context that are read at most, of either kind."""
AT_ONCE = 16
"""Contexts per forward pass."""
NEUTRAL = 0.01
"""Probability that the unedited model may give the promoted tokens where harm is measured."""

Edits = Callable[[Bool[Tensor, "batch pos"]], Sequence[Intervention]]
"""Edits of the positions of a mask."""


@dataclass(frozen=True)
class DoseConfig:
    """How much to measure."""

    contexts: int = 32
    """Held-out contexts at most; two at least, as intervals are over contexts."""
    n_promoted: int = 5
    random_draws: int = 3
    """Random directions, averaged."""
    seed: int = 0
    logits_at_once: int = LOGITS_AT_ONCE
    """Logits in memory at one time."""

    def __post_init__(self) -> None:
        for name, least in (("contexts", 2), ("n_promoted", 1), ("random_draws", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}; got {getattr(self, name)}")


class HeldOut:
    """The held-out contexts in which edits act, and the places in them where response and harm are measured."""

    def __init__(
        self, model: LanguageModel, text: FeatureText, mode: Mode, promoted: Int[Tensor, "n"], config: DoseConfig
    ):
        content, active = model.content(text.contexts), text.active
        acts = content if mode is Mode.CLAMP else active
        rows = acts.any(-1).nonzero()[:, 0][: config.contexts]
        self.model, self.tokens, self.promoted, self.config = model, text.contexts[rows], promoted, config
        self.layer = min(feature.site.layer for feature in text.features) - 1
        self.acting: Int[Tensor, "places 2"] = _drawn(acts[rows], generator_for(config.seed, "places", "acts"))
        """Where the response is measured: (context, position)."""
        self.neutral: Int[Tensor, "places 2"] = _drawn(
            (content & ~active)[rows], generator_for(config.seed, "places", "quiet")
        )
        """Where harm is measured: the features are silent, and the unedited model does not promote their tokens."""
        if not len(self.tokens):
            return
        with torch.no_grad():
            self.below = self._record_below()
            self.before, _ = self._run(lambda mask: [])
            likely = [logits.softmax(-1)[:, promoted].sum(-1) for (logits,) in self._logits(self.neutral, self.before)]
            self.neutral = self.neutral[torch.cat(likely).cpu() < NEUTRAL] if likely else self.neutral

    @torch.no_grad()
    def changes(self, edits: Edits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Per context: change of the promoted tokens' logits, of their log probabilities, KL, and size of the edit."""
        # At an acting place, with logits l before and l' after, l_c = l - mean over the vocabulary, log p =
        # log softmax l, and T the promoted tokens: mean over T of l'_c - l_c, and of log p' - log p. At a neutral
        # place: KL(p || p'). All are [places]; `_per_context` takes the mean over the places of each context.
        finals, moved = self._run(edits)
        logit, log_prob, kl = [], [], []
        for before, after in self._logits(self.acting, self.before, finals):
            logit.append((_centred(after) - _centred(before))[:, self.promoted].mean(-1))
            log_prob.append((after.log_softmax(-1) - before.log_softmax(-1))[:, self.promoted].mean(-1))
        for before, after in self._logits(self.neutral, self.before, finals):
            kl.append(kl_divergence(before, after))
        size = moved[self.acting[:, 0], self.acting[:, 1]]
        return (
            self._per_context(torch.cat(logit), self.acting),
            self._per_context(torch.cat(log_prob), self.acting),
            self._per_context(torch.cat([moved.new_zeros(0), *kl]), self.neutral),
            self._per_context(size, self.acting),
        )

    @torch.no_grad()
    def likelier(self, off: Edits, n: int) -> list[int]:
        """The tokens whose mean probability falls most when the features are switched off."""
        if not len(self.tokens):
            return []
        finals, _ = self._run(off)
        pairs = self._logits(self.acting, self.before, finals)
        falls = [(before.softmax(-1) - after.softmax(-1)).sum(0) for before, after in pairs]
        fall = torch.stack(falls).sum(0)
        return fall.topk(min(n, fall.shape[-1])).indices.tolist()

    @torch.no_grad()
    def rise(self, edits: Edits, tokens: Sequence[int]) -> float:
        """The mean rise of these tokens' probability together, where the edit acts."""
        finals, _ = self._run(edits)
        pairs = self._logits(self.acting, self.before, finals)
        rises = [(after.softmax(-1) - before.softmax(-1))[:, list(tokens)].sum(-1) for before, after in pairs]
        return torch.cat(rises).mean().item()

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
            measured = [MeasuredEdit(edit) for edit in edits(model.content(tokens).to(model.device))]
            with model.hooks(*measured):
                finals.append(model.record(tokens, [last])[last] if below is None else model.final(below, self.layer))
            moved.append(sum((edit.moved[0] for edit in measured), torch.zeros(tokens.shape, device=model.device)))
        return torch.cat(finals), torch.cat(moved)

    def _logits(
        self, places: Int[Tensor, "places 2"], *finals: Float[Tensor, "contexts pos d_model"]
    ) -> Iterator[list[Float[Tensor, "_ vocab"]]]:
        """Logits of every one of `finals` at the places, as many places at a time as memory is allowed for."""
        if not len(places):
            return
        for part in places.split(max(1, self.config.logits_at_once // (len(finals) * self.model.n_vocab))):
            yield [self.model.unembed(final[part[:, 0], part[:, 1]]) for final in finals]


def _drawn(allowed: Bool[Tensor, "contexts pos"], generator: torch.Generator) -> Int[Tensor, "places 2"]:
    """At most `PLACES` of the allowed places of every context, drawn at random: (context, position)."""
    if not allowed.any():
        return torch.zeros(0, 2, dtype=torch.long)
    priority = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0)
    least = priority.topk(min(PLACES, priority.shape[1]), dim=-1).values[:, -1:]
    return (allowed & (priority >= least)).nonzero()


def _centred(logits: Float[Tensor, "places vocab"]) -> Float[Tensor, "places vocab"]:
    return logits - logits.mean(-1, keepdim=True)
