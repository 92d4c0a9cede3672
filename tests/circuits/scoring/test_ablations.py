"""Values of what is outside a circuit: means over prompts, and those of another prompt."""

import pytest
import torch

from circuits.features.atlas import Examples
from circuits.features.survey import Survey
from circuits.scoring.ablations import MeanAblation, ResampleAblation
from sae_core.sites import Site


def test_a_mean_over_prompts_stops_at_their_ends(planted):
    mean = MeanAblation.over_prompts(planted.model, planted.dictionaries, planted.prompts)
    used = torch.cat([row[1 : end + 1] for row, end in zip(planted.clean, planted.end.tolist(), strict=True)])
    assert mean.codes[Site(0)][:4] == pytest.approx(planted.circuit.by_token[used].mean(0), abs=1e-5)
    beyond = planted.clean.clone()
    for row, end in enumerate(planted.end.tolist()):
        beyond[row, end + 1 :] = 7
    other = MeanAblation.over_prompts(
        planted.model, planted.dictionaries, Examples(beyond, planted.end, torch.ones(12))
    )
    assert torch.equal(mean.codes[Site(2)], other.codes[Site(2)])


def test_means_from_a_survey_are_those_of_a_pass(tinies, monkeypatch):
    """Outliers left out alike; and without a pass where the text was read before."""
    tiny = tinies["llama"]
    x = tiny.model.record(tiny.corrupted, [Site(1)])[Site(1)].norm(dim=-1)
    for limit in (torch.inf, x[tiny.model.content(tiny.corrupted)].median().item()):
        monkeypatch.setattr(tiny.dictionaries[Site(1)], "outlier_norm", limit)
        survey = Survey(tiny.model, tiny.dictionaries)
        plain = MeanAblation.over_text(tiny.model, tiny.dictionaries, tiny.corrupted)
        surveyed = MeanAblation.surveyed(survey, tiny.corrupted, [*tiny.dictionaries])
        assert surveyed.name == plain.name and surveyed.codes.keys() == plain.codes.keys()
        for site in plain.codes:
            assert torch.allclose(surveyed.codes[site], plain.codes[site], atol=1e-5)
            assert torch.allclose(surveyed.error[site], plain.error[site], atol=1e-5)
    monkeypatch.setattr(tiny.model, "record", None)
    assert torch.equal(
        MeanAblation.surveyed(survey, tiny.corrupted, [*tiny.dictionaries]).codes[Site(1)], surveyed.codes[Site(1)]
    )


def test_another_prompt_gives_its_values_at_the_same_position(tinies):
    tiny = tinies["gpt2"]
    shuffled = ResampleAblation.shuffled(
        tiny.model, tiny.dictionaries, tiny.prompts, generator=torch.Generator().manual_seed(0)
    )
    h = tiny.model.record(tiny.tokens, [Site(1)])[Site(1)]
    for i, end in enumerate(tiny.end.tolist()):
        donors = [
            j
            for j in range(3)
            if j != i and all(torch.equal(shuffled.h[Site(1)][i, p], h[j, min(p, tiny.end[j])]) for p in range(end + 1))
        ]
        assert len(donors) == 1
        assert tiny.end[donors[0]] >= end or end == 5  # the longest has none as long
    again = ResampleAblation.shuffled(
        tiny.model, tiny.dictionaries, tiny.prompts, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(again.h[Site(1)], shuffled.h[Site(1)])
    codes, error = shuffled.at(Site(1), tiny.dictionaries[Site(1)], torch.tensor([2, 0, 2]), 4)
    rebuilt = tiny.dictionaries[Site(1)].decode(codes) + error
    assert torch.allclose(rebuilt, shuffled.h[Site(1)][[2, 0, 2], :4], atol=1e-5)
