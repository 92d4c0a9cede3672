"""What `prompt --check` computes again: a sample of activations, what the model expects, and every exact effect.

    activation  f_j = encode(x)_j           share of the error  |x - decode(encode(x))| / |x|
    exact       m - m'  with x' = x - f_j(x) d_j at one position, by a hook in a pass of its own

A difference of two logits is rounded as these are, by 64 eps of the largest at most.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.prompt_view.prompt_features import ActiveFeature, Cell, PromptFeatures
from circuits.prompt_view.reading import NextToken, PromptConfig
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site
from subrank.checking.plain_runs import Formula, activations, limit_of, logits
from subrank.checking.recomputed import Recomputed, drawn

CELLS, FEATURES = 8, 12
"""Cells, and features among all that are shown, of which numbers are computed again."""


@torch.no_grad()
def recomputed(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    tokens: Int[Tensor, "1 pos"],
    view: PromptFeatures,
    config: PromptConfig,
) -> list[Recomputed]:
    """Probabilities, a sample of cells and activations, and the exact effects."""
    row = tokens[0]
    before = logits(model, row)
    chances = before.softmax(-1)
    readout = config.readout or NextToken(int(before[-1].argmax()))
    numbers = [Recomputed(view.readout, view.value, float(readout.read(before[-1])))]
    for position, token in enumerate(view.tokens):
        if token.probability is not None:
            chance = float(chances[position - 1, row[position]])
            numbers.append(Recomputed(f"probability of {token.text!r} ({position})", token.probability, chance))
    x = activations(model, row, dictionaries)
    for cell in drawn(view.cells, CELLS, config.seed, "cells"):
        h, dictionary = x[cell.site][cell.position], dictionaries[cell.site]
        share = float((h - dictionary.decode(dictionary.encode(h))).norm() / h.norm())
        numbers.append(Recomputed(f"share of {cell.site} at {cell.position} not in the dictionary", cell.error, share))
    listed = [(cell, each) for cell in view.cells for each in cell.features]
    for cell, each in drawn(listed, FEATURES, config.seed, "features"):
        f = float(dictionaries[cell.site].encode(x[cell.site][cell.position])[each.feature.index])
        numbers.append(Recomputed(f"{each.feature} at {cell.position}", each.activation, f))
    room = 64 * torch.finfo(model.dtype).eps * float(before[-1].abs().max())
    for cell, each in view.exact():
        after = logits(model, row, _ablation(model, dictionaries[cell.site], row, cell, each))
        effect = float(readout.read(before[-1]) - readout.read(after[-1]))
        numbers.append(Recomputed(f"effect of {each.feature} at {cell.position}", each.exact or 0.0, effect, room))
    return numbers


def _ablation(
    model: LanguageModel, dictionary: Dictionary, tokens: Int[Tensor, "pos"], cell: Cell, each: ActiveFeature
) -> Formula:
    """The hook that sets a feature to zero at one position."""

    def change(h: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos d_in"]:
        return h - dictionary.encode(h)[:, each.feature.index, None] * dictionary.directions[each.feature.index]

    return Formula(cell.site, change, torch.arange(len(tokens)) == cell.position, limit_of(dictionary))
