"""Defaults fit the size of the model; what was given stays."""

from typing import Any

import pytest

from subrank.settings.experiments import FeatureSettings, IOISettings
from subrank.settings.fields import make
from subrank.settings.model_size import LARGE, SMALL, fitted

SMOLLM2, STORYBOOK = 12 * 30 * 576**2, 12 * 6 * 128**2


def lines_of(settings, weights) -> tuple[Any, list[str]]:
    lines = []
    return fitted(settings, weights, lambda event: lines.append(event.stage)), lines


def test_a_large_model_gets_less_and_is_told_how_to_have_more():
    settings, lines = lines_of(make(FeatureSettings, {}), SMOLLM2)
    assert (settings.contexts, settings.full) == (400, 12)
    assert "--contexts 400 in place of 1000, because the model is large; give --contexts to change that" in lines


def test_a_small_model_has_the_usual_defaults():
    assert lines_of(make(IOISettings, {}), STORYBOOK) == (IOISettings(), [])
    assert fitted(make(FeatureSettings, {}), SMALL) == FeatureSettings()


@pytest.mark.parametrize("stated", [{"contexts": 1000, "full": 24}, {"quick": True}], ids=["usual", "quick"])
def test_what_is_given_stays(stated):
    settings = make(FeatureSettings, stated)
    assert lines_of(settings, SMOLLM2) == (settings, [])
    assert fitted(FeatureSettings(), SMOLLM2) == FeatureSettings()  # settings in full, as a program makes them


def test_defaults_fall_with_size_and_no_further_than_those_of_a_large_model():
    sizes = (SMALL, 2 * SMALL, 5 * SMALL, LARGE, 100 * LARGE)
    contexts = [fitted(make(FeatureSettings, {}), size).contexts for size in sizes]
    assert contexts == sorted(contexts, reverse=True) and contexts[0] == 1000 and contexts[-2:] == [400, 400]
    assert len({*contexts}) == 4
    middle = round((SMALL * LARGE) ** 0.5)
    assert fitted(make(FeatureSettings, {}), middle).contexts == pytest.approx((1000 * 400) ** 0.5, abs=1)
