"""Whatever a function of the front door is given: work begins, or a `UserError` of one line says what is wrong."""

import math
import random
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from answers import begin, refused

import subrank as sr
from sae_core.data.text import Text
from sae_core.sites import FeatureId, Site
from subrank.settings import circuit, demo, experiments, studies, train
from subrank.settings.fields import Settings, hints, make, single_type

MANY, FEW = 3000, 200
"""Settings of each verb; those that every run of the suite tries."""
NAMES = {**vars(circuit), **vars(demo), **vars(experiments), **vars(studies), **vars(train)}
SETTINGS = [kind for name, kind in sorted(NAMES.items()) if name.endswith("Settings") and kind is not Settings]
ODD = (None, True, False, 0, 1, -1, 2, 16, 64, 10**30, 10**400, -(10**400), 0.5, math.nan, math.inf, 1e30, -0.0, 1j)
ODD += (
    "",
    " ",
    "x",
    "a" * 3000,
    "\udc80",
    "a\0b",
    "all",
    "topk",
    "resid_post",
    "resid_post.1",
    "5_1",
    "none.json",
    b"x",
)
ODD += (b"x", (), [], {}, set(), (1,), [[1]], ("resid_post",), {"k": 1}, object(), int, np.int64(8), np.float32(0.5))
ODD += (np.array([1, 2]), np.nan, Site(1), FeatureId(Site(1), 3), Path("x"), Path(), range(3), iter([1]))
RIGHT = {
    int: (1, 8, 16, 64),
    float: (0.5, 1, 2.0),
    bool: (True, False),
    str: ("storybook", "all"),
    Path: ("p", Path("p")),
}


def settings_of(seed: str, kind: type) -> dict:
    """Up to four settings of that seed, with values of all kinds."""
    draw, values = random.Random(seed), {}
    for each in draw.sample(fields(kind), draw.randint(1, 4)):
        right = RIGHT[single_type(hints(kind)[each.name])]
        value = draw.choice(right) if draw.random() < 0.5 else draw.choice(ODD)
        values[each.name] = [value, draw.choice(right)] if draw.random() < 0.1 else value
    return values


def try_settings(kind: type, seeds: range) -> None:
    answers = []
    for seed in seeds:
        picks = settings_of(f"{kind.__name__} {seed}", kind)
        answers.append(refused(f"seed {kind.__name__} {seed}: {picks!r:.300}", lambda picks=picks: make(kind, picks)))
    assert 0.2 < sum(answers) / len(answers) < 1


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_settings_are_made_or_refused(kind):
    try_settings(kind, range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_many_settings_are_made_or_refused(kind):
    try_settings(kind, range(FEW, MANY))


def calls(model, saes) -> dict:
    """What the front door offers, each with one argument left open."""
    return {
        "load_model": lambda odd: sr.load_model(odd),
        "device": lambda odd: sr.load_model("storybook", device=odd),
        "dtype": lambda odd: sr.load_model("none/none", dtype=odd),
        "lm_batch": lambda odd: sr.load_model("none/none", lm_batch=odd),
        "load": lambda odd: sr.load(odd),
        "load_result": lambda odd: sr.load_result(odd),
        "text": lambda odd: sr.train(model, odd),
        "model": lambda odd: sr.train(odd),
        "files": lambda odd: sr.import_saes(odd, model),
        "sets": lambda odd: sr.evaluate(model, odd),
        "sets of ioi": lambda odd: sr.ioi(model, {"a": odd}),
        "target": lambda odd: sr.discover(model, saes, odd),
        "task": lambda odd: sr.remove(model, saes, odd),
        "features": lambda odd: sr.features(model, saes, odd),
        "features to steer": lambda odd: sr.steer(model, saes, odd),
        "prompt to look at": lambda odd: sr.prompt(model, saes, odd),
        "circuit of a prompt": lambda odd: sr.prompt(model, saes, "Mary", odd),
        "feature": lambda odd: saes[odd],
        "site": lambda odd: saes.at(odd),
        "prompt": lambda odd: saes.encode(model, odd),
        "value": lambda odd: saes.clamp("5_1", value=odd),
        "strength": lambda odd: saes.steer("5_1", strength=odd),
        "n": lambda odd: saes.top_examples("5_1", odd),
    }


@pytest.fixture
def offered(storybook, small_set, tmp_path, monkeypatch) -> dict:
    """`calls`, of which none reads a text, asks the hub or writes outside of a folder of its own."""
    monkeypatch.setattr(Text, "read", begin)
    monkeypatch.setattr("sae_core.model.language_model.load_checkpoint", begin)
    monkeypatch.setattr("sae_core.model.hub.hub_answers", lambda *a, **k: False)
    monkeypatch.chdir(tmp_path)
    return calls(storybook, sr.load(small_set))


@pytest.mark.parametrize("name", [*calls(None, None)])
def test_what_is_no_argument_is_said_in_one_line(name, offered):
    for odd in random.Random(name).sample(ODD, 4):
        refused(f"{name} {odd!r:.100}", lambda odd=odd: offered[name](odd))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*calls(None, None)])
def test_whatever_is_no_argument_is_said_in_one_line(name, offered):
    for odd in ODD:
        refused(f"{name} {odd!r:.100}", lambda odd=odd: offered[name](odd))
