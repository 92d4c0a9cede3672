"""Settings: every value is checked when it is given, and has the type of its field afterwards."""

import math
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import get_args

import numpy as np
import pytest
from tiny import user_error

from sae_core.sites import Site
from subrank.cli.command import build_parser
from subrank.cli.parsers import settings_of
from subrank.experiments.training import members_of
from subrank.settings.circuit import CircuitSettings
from subrank.settings.demo import DemoSettings
from subrank.settings.experiments import (
    EvaluateSettings,
    FeatureSettings,
    ImportSettings,
    IOISettings,
    RemoveSettings,
    SteerSettings,
)
from subrank.settings.fields import flag_of, hints, is_several, make, single_type
from subrank.settings.train import TrainSettings

VERBS = {
    "train": TrainSettings,
    "ioi": IOISettings,
    "circuit": CircuitSettings,
    "remove": RemoveSettings,
    "steer": SteerSettings,
    "features": FeatureSettings,
    "evaluate": EvaluateSettings,
    "import": ImportSettings,
    "demo": DemoSettings,
}
WRONG = {
    int: ("12", 1.5, math.nan, True, [1.5], object()),
    float: ("0.5", math.nan, math.inf, True, object()),
    bool: ("yes", 1, 0.0),
    str: (5, "", "  ", True, object()),
    Path: (5, "", True),
}
"""For each type of a setting, values that are of another or are nothing."""


def every_field():
    return [pytest.param(kind, each, id=f"{verb}-{each.name}") for verb, kind in VERBS.items() for each in fields(kind)]


@pytest.mark.parametrize(("kind", "each"), every_field())
def test_a_value_of_a_wrong_type_is_one_line_that_names_the_setting(kind, each):
    hint = hints(kind)[each.name]
    for value in WRONG[single_type(hint)]:
        with user_error(flag_of(each)):
            make(kind, {each.name: value})
        if is_several(hint):
            with user_error(flag_of(each)):
                make(kind, {each.name: (value,)})
    if NoneType not in get_args(hint):
        with user_error(flag_of(each)):
            make(kind, {each.name: None})


@pytest.mark.parametrize(("kind", "each"), every_field())
def test_several_values_are_at_least_one(kind, each):
    if is_several(hints(kind)[each.name]) and not each.metadata.get("empty"):
        with user_error(flag_of(each), "at least one"):
            make(kind, {each.name: ()})


@pytest.mark.parametrize("verb", VERBS)
def test_without_options_the_command_has_the_defaults_of_the_function(verb):
    arguments = {"train": ["storybook"], "import": ["file", "--model", "storybook"], "demo": []}.get(verb, ["folder"])
    options = build_parser().parse_args([verb, *arguments])
    assert settings_of(options, VERBS[verb]) == VERBS[verb]()
    assert all(each.default is not MISSING for each in fields(VERBS[verb]))


def test_a_value_gets_the_type_of_its_field():
    settings = make(TrainSettings, {"k": np.int64(8), "l1": 3, "sites": Site(2), "kind": ["topk", "relu"]})
    assert (settings.k, settings.l1, settings.sites, settings.kind) == (
        (8,),
        (3.0,),
        ("resid_post.2",),
        ("topk", "relu"),
    )
    assert type(settings.k[0]) is int and type(settings.l1[0]) is float
    assert make(CircuitSettings, {"prompts": "p.txt"}).prompts == Path("p.txt")
    assert make(EvaluateSettings, {"text": Path("t.txt")}).text == "t.txt"


@pytest.mark.parametrize(
    ("kind", "wrong", "words"),
    [
        (TrainSettings, {"sites": ("resid_pst",)}, ("'resid_pst'", "resid_post")),
        (IOISettings, {"sites": ("all", "nowhere")}, ("'nowhere'",)),
        (RemoveSettings, {"site": "resid_post"}, ("'resid_post'", "resid_post.3")),
        (RemoveSettings, {"share": 0.7}, ("--share", "0.5, 0.8, 0.9", "0.7")),
        (ImportSettings, {"at": ("resid_post.x",)}, ("'resid_post.x'",)),
        (TrainSettings, {"memory": 1e300}, ("--memory", "at most")),
    ],
)
def test_a_value_that_cannot_be_read_is_one_line(kind, wrong, words):
    with user_error(*words):
        make(kind, wrong)


@pytest.mark.parametrize(
    ("wrong", "right", "words"),
    [
        ({"nodes": 8, "depth": 2}, {"depth": 2}, ("--depth", "--nodes")),
        ({"nodes": 8, "max_targets": 15}, {"nodes": 8, "keep": 2}, ("--max-targets", "--nodes")),
        ({"held": 0, "draws": 3}, {"held": 0, "draws": 0}, ("--draws", "--held 0")),
        ({"exhaustive": True, "screen_only": True}, {"exhaustive": True}, ("--exhaustive", "--screen-only")),
    ],
)
def test_settings_of_a_circuit_of_which_one_would_be_ignored_are_refused(wrong, right, words):
    make(CircuitSettings, right)
    with user_error(*words):
        make(CircuitSettings, wrong)


@pytest.mark.parametrize("number", ["-4", "-0.5", "-.5", "-1e3", "-2.5E-2", "-3.e+1"])
def test_a_negative_number_is_a_value_however_it_is_written(number):
    """argparse used to take -1e3 for an option."""
    options = build_parser().parse_args(["steer", "folder", "--strengths", number, "2"])
    assert settings_of(options, SteerSettings).strengths == (float(number), 2.0)


@pytest.mark.parametrize("text", ["-e3", "-1e", "-1e3x", "-k"])
def test_what_is_no_number_is_an_option(text):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["steer", "folder", "--strengths", text])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"l1": 5.0}, ("--l1", "gated, relu, tied", "not by topk")),
        ({"l1": -1.0}, ("--l1",)),
        ({"kind": "relu", "k": 8}, ("-k", "not by relu")),
        ({"kind": "batchtopk", "multi": 0.125}, ("--multi", "topk only")),
        ({"seed": 3, "seeds": (1, 2)}, ("--seed and --seeds",)),
        ({"tokens": 10}, ("fewer than one batch",)),
        ({"k": (8, 8)}, ("the same", "once")),  # it used to be said after the whole text was read
    ],
)
def test_nothing_is_trained_with_a_setting_that_nothing_reads(wrong, words):
    with user_error(*words):
        members_of(make(TrainSettings, wrong))
    members_of(make(TrainSettings, {"kind": ("topk", "relu"), "k": 8, "l1": 5.0, "multi": 0.125}))


def test_one_site_is_named_as_several_are():
    for kind in (IOISettings, RemoveSettings, FeatureSettings):
        assert make(kind, {"site": "blocks.3.mlp.hook_post"}).site == "blocks.3.mlp.hook_post"
        with user_error("blocks.0.hook_resid_pre", "embedding", "resid_post.0"):
            make(kind, {"site": "blocks.0.hook_resid_pre"})
    assert make(ImportSettings, {"at": ("layers.3.mlp", "resid_pre.2")}).at == ("layers.3.mlp", "resid_pre.2")


def test_quick_changes_what_is_not_given_and_nothing_else():
    """Also where the value that is given is the usual one."""
    quick, usual = make(EvaluateSettings, {"quick": True}), make(EvaluateSettings, {})
    assert (quick.contexts, quick.spliced) == (26, 6) and (usual.contexts, usual.spliced) == (256, 64)
    given = make(EvaluateSettings, {"quick": True, "contexts": 256})
    assert (given.contexts, given.spliced) == (256, 6)


def test_thresholds_need_their_selector():
    with user_error("--thresholds", "--selectors"):
        make(IOISettings, {"thresholds": 4})
    assert make(IOISettings, {"thresholds": 4, "selectors": ("threshold",)}).thresholds == 4
