"""What `remove --check` computes again of the chosen site, a prompt or a context at a time.

    features          h -> h - s sum_j s_j f_j(h) d_j
    LEACE             h -> h - s P (h - mean)                  fitted again on activations recorded prompt by prompt
    mean difference   h -> h - s ((h - mean) . u) u            u the unit difference of the class means

s, s_j and the features as the result names them; all at the content tokens that are no outliers. AUROC is the share of
pairs of a positive and a negative test prompt in which the former has the larger logit(yes) - logit(no), ties counting
half; damage the mean of KL(unedited || edited) over the content tokens of the reported text at which the unedited model
gives the task's tokens together less than `TASK_PROBABILITY`; the edit size the mean of |h' - h| over its content.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.interventions.erase import fit_leace
from editing.removal.config import RemovalConfig
from editing.removal.edits.erasers import Place
from editing.removal.experiment import split_text
from editing.removal.measurement.damage_text import TASK_PROBABILITY
from editing.removal.measurement.evaluation import Method, Removal
from editing.removal.prompts.capability import Capability
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from editing.removal.result import RemovalResult
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site
from subrank.checking.plain_runs import Formula, activations, kl, limit_of, log_probs, logits, mean
from subrank.checking.recomputed import Recomputed

EditOf = Callable[[Int[Tensor, "pos"]], Formula]
Change = Callable[[Float[Tensor, "pos d_in"]], Float[Tensor, "pos d_in"]]


@torch.no_grad()
def recomputed(
    model: LanguageModel,
    task: Capability,
    dictionary: Dictionary,
    held_out: Int[Tensor, "contexts pos"],
    config: RemovalConfig,
    result: RemovalResult,
) -> list[Recomputed]:
    """AUROC and damage of the unedited model, the features, LEACE and the mean difference; of features the edit size.

    `dictionary` is that of the chosen site, `held_out` the contexts that the removal was given.
    """
    site, limit = Site.parse(result.site), limit_of(dictionary)
    text = split_text(held_out[: config.text_contexts])[1]
    rows = {row.method: row for row in result.methods}
    changes = {Method.FEATURES: _without_features(rows[Method.FEATURES], dictionary)}
    places = {curve.method: curve.place for curve in result.curves if curve.site == result.site}
    for method in (Method.LEACE, Method.MEANS):
        if method in rows:
            prompts = task.fitting.first(config.eraser_prompts)
            changes[method] = _erased(model, site, prompts, places[method], rows[method])

    numbers = [Recomputed("AUROC of the unedited model", result.own_auroc, *_auroc(model, task.test))]
    for method, change in changes.items():
        what, row, edit = f"{method} at {site}", rows[method], partial(_edit, model, site, change, limit)
        numbers.append(Recomputed(f"AUROC, {what}", row.auroc.value, *_auroc(model, task.test, edit)))
        damage, size = _damage(model, task.task_tokens, text, edit)
        numbers.append(Recomputed(f"damage, {what}", row.damage.value, damage))
        numbers.append(Recomputed(f"edit size, {what}", row.edit_size, size))
    return numbers


def _edit(model: LanguageModel, site: Site, change: Change, limit: float, tokens: Int[Tensor, "pos"]) -> Formula:
    """The edit of one text."""
    return Formula(site, change, model.content(tokens), limit)


def _without_features(row: Removal, dictionary: Dictionary) -> Change:
    """h -> h - s sum_j s_j f_j(h) d_j, as the row says."""
    index = torch.tensor([FeatureId.parse(name).index for name in row.features])
    amounts = row.strength * torch.tensor(row.strengths).to(dictionary.directions)
    return lambda h: h - (dictionary.encode(h)[:, index] * amounts) @ dictionary.directions[index]


def _erased(model: LanguageModel, site: Site, prompts: TwoClassPrompts, place: str, row: Removal) -> Change:
    """h -> h - s (what the eraser takes away), fitted on the tokens of `place`."""
    chosen, x, labels = Place(place).rows(prompts), [], []
    for i, end in enumerate(prompts.end.tolist()):
        here = chosen[i, : end + 1]
        x.append(activations(model, prompts.tokens[i, : end + 1], [site])[site][here])
        labels += [bool(prompts.positive[i])] * len(x[-1])
    rows, positive = torch.cat(x), torch.tensor(labels)
    if row.method is Method.LEACE:
        leace = fit_leace(site, rows, positive)
        return lambda h: h - row.strength * (h - leace.mean) @ leace.right.T @ leace.left.T
    wide = rows.double()
    difference = wide[positive].mean(0) - wide[~positive].mean(0)
    u, center = (difference / difference.norm()).to(rows), wide.mean(0).to(rows)
    return lambda h: h - row.strength * ((h - center) @ u)[:, None] * u


def _auroc(model: LanguageModel, prompts: TwoClassPrompts, *edits: EditOf) -> tuple[float, float]:
    """(AUROC, share of the pairs whose scores are so close that rounding may turn them round)."""
    eps, scores, sizes = torch.finfo(model.dtype).eps, [], []
    for i, end in enumerate(prompts.end.tolist()):
        tokens = prompts.tokens[i, : end + 1]
        z = logits(model, tokens, *(edit(tokens) for edit in edits))[-1]
        scores.append(z[prompts.yes[i]] - z[prompts.no[i]])
        sizes.append(z.abs().max())
    every, near = torch.stack(scores), 16 * eps * torch.stack(sizes).max()
    positive, negative = every[prompts.positive], every[~prompts.positive]
    above = mean((a > negative).double().mean() + 0.5 * (a == negative).double().mean() for a in positive)
    return above, mean(((a - negative).abs() < near).double().mean() for a in positive)


def _damage(
    model: LanguageModel, task_tokens: Iterable[int], text: Int[Tensor, "contexts pos"], edit_of: EditOf
) -> tuple[float, float]:
    """(Mean KL per counted token, mean |h' - h| per content token)."""
    divergence, sizes = [], []
    for tokens in text:
        content, edit = model.content(tokens), edit_of(tokens)
        before, after = log_probs(model, tokens), log_probs(model, tokens, edit)
        counted = content & (before[:, list(task_tokens)].exp().sum(-1) < TASK_PROBABILITY)
        divergence += kl(before, after)[counted].tolist()
        sizes += edit.moved[0][content].tolist()
    return mean(divergence), mean(sizes)
