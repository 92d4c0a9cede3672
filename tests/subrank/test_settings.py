"""Settings: every value is checked when it is given, and has the type of its field afterwards."""

import math
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import get_args

import numpy as np
import pytest
from tiny import user_error

from sae_core import checks
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
from subrank.settings.fields import flag_of, hints, is_several, limits_of, make, single_type
from subrank.settings.prompt import PromptSettings
from subrank.settings.studies import STUDIES
from subrank.settings.train import TrainSettings

VERBS = {
    "train": TrainSettings,
    "ioi": IOISettings,
    "circuit": CircuitSettings,
    "remove": RemoveSettings,
    "steer": SteerSettings,
    "features": FeatureSettings,
    "prompt": PromptSettings,
    "evaluate": EvaluateSettings,
    "import": ImportSettings,
    "demo": DemoSettings,
    **{f"study {name}": study.settings for name, study in STUDIES.items()},
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
    positionals = {"train": ["storybook"], "import": ["file", "--model", "storybook"], "demo": []}
    positionals["prompt"] = ["folder", "a prompt"]
    arguments = positionals.get(verb, [] if verb == "study superposition" else ["folder"])
    options = build_parser().parse_args([*verb.split(), *arguments])
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
        ({"exhaustive": True, "nodes": 8}, {"exhaustive": True, "nodes": 0}, ("--exhaustive", "--nodes")),
        ({"follow_sinks": True, "nodes": 8}, {"nodes": 8}, ("--follow-sinks", "--nodes")),
        ({"null": 10, "screen_only": True}, {"null": 0, "screen_only": True}, ("--null", "--screen-only")),
        ({"cover": 2, "held": 0}, {"cover": 2, "held": 0, "nodes": 4}, ("--cover", "--held 0", "--nodes")),
        ({"chat": True}, {"chat": True, "prompts": "p.txt"}, ("--chat", "--prompts")),
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
        ({"l1": 5.0}, ("--l1", "relu or tied or gated", "not with --kind topk")),
        ({"l1": -1.0}, ("--l1",)),
        ({"kind": "relu", "k": 8}, ("-k", "not with --kind relu")),
        ({"kind": "batchtopk", "multi": 0.125}, ("--multi", "only with --kind topk")),
        ({"seed": 3, "seeds": (1, 2)}, ("--seeds and --seed",)),
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
    settings = make(EvaluateSettings, {"quick": True, "contexts": 256})
    assert (settings.contexts, settings.spliced) == (256, 6)


def test_thresholds_need_their_selector():
    with user_error("--thresholds", "--selectors"):
        make(IOISettings, {"thresholds": 4})
    assert make(IOISettings, {"thresholds": 4, "selectors": ("threshold",)}).thresholds == 4


@pytest.mark.parametrize(
    ("kind", "wrong", "right", "words"),
    [
        (TrainSettings, {"memory": 1.0, "kl": 0.5}, {"memory": 1.0}, ("--memory", "--kl")),
        (IOISettings, {"shortlist": 8, "selectors": "random"}, {"shortlist": 8}, ("--shortlist", "greedy")),
        (IOISettings, {"site": "resid_post.1", "sites": "all"}, {"sites": "all"}, ("--site", "--sites")),
        (SteerSettings, {"chat": True}, {"chat": True, "prompt": "Hello"}, ("--chat", "--prompt")),
        (SteerSettings, {"top_p": 0.5, "temperature": 0}, {"top_p": 0.5}, ("--top-p", "--temperature 0")),
        (SteerSettings, {"mode": "off", "strengths": 1}, {"mode": "clamp", "strengths": 1}, ("--strengths", "off")),
        (FeatureSettings, {"site": "resid_post.1", "full": 0}, {"site": "resid_post.1"}, ("--site", "--full 0")),
        (FeatureSettings, {"neurons": True, "full": 0}, {"neurons": True, "quick": True}, ("--neurons", "--full 0")),
        (CircuitSettings, {"draws": 1}, {"draws": 2}, ("--draws", "at least 2")),
    ],
)
def test_what_would_be_ignored_is_refused(kind, wrong, right, words):
    """From Python as from the command: the declaration beside the field is the only place."""
    make(kind, right)
    with user_error(*words):
        make(kind, wrong)


@pytest.mark.parametrize("verb", VERBS)
def test_numbers_are_taken_at_both_ends_of_their_range_and_not_beyond(verb):
    kind = VERBS[verb]
    for each in fields(kind):
        number = single_type(hints(kind)[each.name])
        if number not in (int, float) or "reads" in each.metadata:
            continue
        limits = {"most": checks.LARGEST[number]} | limits_of(each)
        ends = [limits[end] for end in ("least", "most") if end in limits]
        step = 1 if number is int else 1e-3
        beyond = [limits["least"] - step] if "least" in limits else [limits["above"]]
        for value in [*beyond, limits["most"] * 2, 10**400, -(10**400)]:
            with user_error(flag_of(each), "must be"):
                kind(**{each.name: value})
        for value in ends:
            assert value in np.atleast_1d(getattr(kind(**{each.name: number(value)}), each.name))


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_the_range_of_each_number(verb, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args([*verb.split(), "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(checks.limits(**limits_of(each)) in shown for each in fields(VERBS[verb]))
    assert verb != "circuit" or "examples per target (at least 16; default: 16)" in shown


@pytest.mark.parametrize("text", ["", " ", "a\0b", "\udc80"])
def test_no_text_is_empty_or_cannot_be_written(text):
    for kind, name in ((CircuitSettings, "prompts"), (EvaluateSettings, "text"), (TrainSettings, "column")):
        with user_error(flag_of_name(kind, name)):
            make(kind, {name: text})
    with pytest.raises(SystemExit):
        build_parser().parse_args(["evaluate", "folder", "--out", text])


def flag_of_name(kind: type, name: str) -> str:
    return next(flag_of(each) for each in fields(kind) if each.name == name)
