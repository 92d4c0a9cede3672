"""Examples that are prompts or places in a text, for targets that are read from the logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.effects.target_prompts import TargetPrompts
from circuits.effects.targets import LogitTarget
from circuits.features.atlas import Examples
from circuits.graph import Readout
from editing.tasks.pairs import PromptPairs
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.model.padding import pad
from sae_core.sites import FeatureId, Site


@dataclass(frozen=True, eq=False)
class PromptSource:
    """Examples of features on given prompts: each prompt at the position where the feature is strongest on it."""

    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]
    prompts: Examples

    @torch.no_grad()
    def examples(self, feature: FeatureId, n: int) -> Examples:
        """The prompts on which the feature is active up to their end, the strongest `n` first."""
        tokens, end = self.prompts.tokens, self.prompts.end
        x = self.model.record(tokens, [feature.site])[feature.site]
        f = self.dictionaries[feature.site].encode(x)[..., feature.index].cpu()
        seen = self.model.content(tokens) & (torch.arange(tokens.shape[1]) <= end[:, None])
        peak, place = (f * seen).max(1)
        rows = peak.argsort(descending=True, stable=True)[:n]
        rows = rows[peak[rows] > 0]
        return Examples(tokens[rows], place[rows], peak[rows])


def from_task(model: LanguageModel, pairs: PromptPairs) -> TargetPrompts:
    """The logit of each clean prompt's answer minus that of the wrong answer which the prompt itself suggests."""
    target = LogitTarget(Readout(f"{pairs.name}, right - wrong"), model, pairs.answer, pairs.rival)
    return TargetPrompts(target, _as_examples(target, pairs.clean, pairs.end), pairs.corrupted)


def from_lines(model: LanguageModel, name: str, lines: Sequence[str], *, prepend_bos: bool) -> TargetPrompts:
    """The logit or difference that `name` describes ("she", "she - he") after each of the lines.

    Raises `UserError` for a line without text or too long for the model, or a word that is not one token.
    """
    rows = [model.with_bos(model.to_ids(line), prepend=prepend_bos) for line in lines if line.strip()]
    if not rows:
        raise UserError("the file holds no prompts; give one prompt per line")
    tokens, lengths = pad(rows, fill=model.bos_id or 0)
    if tokens.shape[1] > model.n_ctx:
        raise UserError(f"a prompt takes {tokens.shape[1]} tokens; {model.name} reads {model.n_ctx}")
    target = logit_target(model, name, len(rows))
    return TargetPrompts(target, _as_examples(target, tokens, lengths - 1))


@torch.no_grad()
def from_text(
    model: LanguageModel, name: str, contexts: Int[Tensor, "contexts pos"], n: int, *, at_once: int = 16
) -> TargetPrompts:
    """The logit or difference that `name` describes at its `n` largest places in a text, one per context."""
    target, best = logit_target(model, name, 1), []
    for chunk in contexts.split(at_once):
        h = model.record(chunk, [target.site])[target.site]
        value = target.read(h.flatten(0, 1), torch.zeros(chunk.numel(), dtype=torch.long, device=h.device))
        best.append(value.view(chunk.shape).cpu().masked_fill(~model.content(chunk), -torch.inf).max(1))
    peak, place = (torch.cat(part) for part in zip(*best, strict=True))
    rows = peak.argsort(descending=True, stable=True)[:n]
    return TargetPrompts(logit_target(model, name, len(rows)), Examples(contexts[rows], place[rows], peak[rows]))


def logit_target(model: LanguageModel, name: str, n: int) -> LogitTarget:
    """The target that `name` describes: "she" or "she - he", each one token, by preference with a leading space."""
    words = [word.strip() for word in name.split(" - ")]
    if len(words) > 2 or not all(words):
        raise UserError(f"{name!r} is no logit or difference of two; write 'she' or 'she - he'")
    ids = [torch.full((n,), _token(model, word)) for word in words]
    return LogitTarget(Readout(name), model, *ids)


def _token(model: LanguageModel, word: str) -> int:
    for text in (f" {word}", word):
        ids = model.to_ids(text)
        if len(ids) == 1 and ids[0] != model.tokenizer.unk_token_id:
            return ids[0]
    raise UserError(f"{word!r} is not one token of {model.name}; a logit is that of one")


@torch.no_grad()
def _as_examples(target: LogitTarget, tokens: Int[Tensor, "n pos"], end: Int[Tensor, "n"]) -> Examples:
    h = target.model.record(tokens, [target.site])[target.site]
    rows = torch.arange(len(tokens), device=h.device)
    return Examples(tokens, end, target.read(h[rows, end.to(h.device)], rows).cpu())
