"""The probe: a site that is not recorded, not edited, or not what is added is refused; a healthy model is not."""

import logging

import pytest
import torch
from families import FAMILIES, write_family
from tiny import user_error

from sae_core.data.activations import _contexts_at_once
from sae_core.formats.hook_names import bridge_hook
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.model.probe import probe
from sae_core.sites import Site, Stream

MIDDLE = {Site(layer, Stream.RESID_MID) for layer in range(3)}
EVERY = {Site(layer, stream) for stream in Stream for layer in range(3)} - MIDDLE
"""Of Granite, whose blocks have no module that puts out what attention adds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("granite"), "Granite", num_hidden_layers=3)


@pytest.fixture
def model(folder) -> LanguageModel:
    """To be damaged."""
    return load_model(folder, device="cpu")


def test_a_healthy_model_offers_all_its_sites(model, caplog):
    with caplog.at_level(logging.WARNING):
        unfit, widths = probe(model)
    assert unfit.keys() == MIDDLE and not caplog.messages
    assert widths == {site: 48 if site.stream is Stream.MLP_HIDDEN else 32 for site in EVERY}


def test_a_part_that_a_block_has_not(model, monkeypatch):
    """In one layer only, as where blocks with experts and without alternate."""
    absent = Site(1, Stream.MLP_HIDDEN)
    monkeypatch.setattr(
        "sae_core.model.probe.bridge_hook", lambda site: "nowhere" if site == absent else bridge_hook(site)
    )
    model.unfit, widths = probe(model)
    assert set(model.unfit) == {absent} | MIDDLE and set(widths) == EVERY - {absent}
    assert model.sites(Stream.MLP_HIDDEN) == [Site(0, Stream.MLP_HIDDEN), Site(2, Stream.MLP_HIDDEN)]


def test_a_site_that_is_passed_by(model, monkeypatch):
    """Once Granite's outputs were silently left out, and edits of them changed nothing."""
    attach = model._attach
    monkeypatch.setattr(
        model, "_attach", lambda site, hook: (lambda: None) if site.stream is Stream.ATTN_OUT else attach(site, hook)
    )
    assert {site.stream for site in probe(model)[0]} == {Stream.ATTN_OUT, Stream.RESID_MID}


@pytest.mark.parametrize("change", [lambda h: h, lambda h: h + 1], ids=["it changes nothing", "it changes all rows"])
def test_an_edit_that_is_not_what_it_should_be(model, monkeypatch, change):
    hooks = model.hooks

    def others(*edits):
        return hooks(*(Changed(edit.site, change) if edit.site.stream is Stream.MLP_OUT else edit for edit in edits))

    monkeypatch.setattr(model, "hooks", others)
    refused = {site.stream for site in probe(model)[0].keys() - MIDDLE}
    assert refused == ({Stream.MLP_OUT} if change(1) == 1 else {*Stream} - {Stream.RESID_MID})


class Changed:
    def __init__(self, site, change):
        self.site, self.change = site, change

    def __call__(self, h):
        return self.change(h)


def test_outputs_that_are_not_what_the_block_adds(model, monkeypatch):
    """Also where a few coordinates of the residual are far larger than what is added."""
    record = model.record
    for massive in (0.0, 1e4):

        def changed(tokens, sites, massive=massive):
            change = {Stream.ATTN_OUT: lambda x: 1.01 * x, Stream.RESID_POST: lambda x: x + massive * torch.eye(32)[3]}
            return {site: change.get(site.stream, torch.clone)(x) for site, x in record(tokens, sites).items()}

        monkeypatch.setattr(model, "record", changed)
        monkeypatch.setattr("sae_core.model.probe._check_residual", lambda *args: None)
        assert {site.stream for site in probe(model)[0].keys() - MIDDLE} == {Stream.ATTN_OUT, Stream.MLP_OUT}


def test_a_residual_that_does_not_come_as_batch_and_position(model, monkeypatch):
    record = model.record
    monkeypatch.setattr(model, "record", lambda *args: {site: x.flatten(0, 1) for site, x in record(*args).items()})
    with user_error("equal blocks"):
        probe(model)


def test_a_model_that_hands_on_more_than_the_residual(model, monkeypatch):
    resume = model.resume
    monkeypatch.setattr(model, "resume", lambda h, *where: resume(h.flip(1), *where))
    with user_error("more from block to block"):
        probe(model)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        ("OPT", FAMILIES["OPT"][1] | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
        ("OpenAIGPT", FAMILIES["GPT-2"][1]),
        ("Persimmon", FAMILIES["Phi"][1]),
    ],
    ids=["projections around its blocks", "norms behind the residual", "unknown to the library"],
)
def test_models_that_are_refused_as_a_whole(config, values, monkeypatch, tmp_path):
    monkeypatch.setitem(FAMILIES, "refused", (config, values))
    with user_error(str(tmp_path)):
        load_model(write_family(tmp_path, "refused"), device="cpu")


def test_what_is_refused_is_said_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        model = load_model(write_family(tmp_path, "Mixtral"), device="cpu")
    (line,) = [message for message in caplog.messages if "cannot be used" in message]
    assert "mlp_hidden" in line and str(tmp_path) in line and "expert" in line
    assert model.unfit.keys() == {Site(0, Stream.MLP_HIDDEN), Site(1, Stream.MLP_HIDDEN)}
    assert _contexts_at_once(model, 12) >= 1  # once no stream could be trained
