"""Every way to name sites stands for the sites of the model, or is refused by name."""

import pytest
from tiny import user_error

from sae_core.sites import Site, Stream
from subrank.settings.train import TrainSettings
from subrank.sites import sites_of

OUT, HIDDEN = Stream.MLP_OUT, Stream.MLP_HIDDEN
NAMES = {
    "resid_post": [Site(0), Site(1), Site(2)],
    "resid_post.1": [Site(1)],
    "resid_post.1-2": [Site(1), Site(2)],
    "mlp_out.0-1": [Site(0, OUT), Site(1, OUT)],
    "resid_pre": [Site(0), Site(1)],
    "resid_pre.2": [Site(1)],
    "blocks.2.hook_resid_post": [Site(2)],
    "blocks.2.hook_resid_pre": [Site(1)],
    "blocks.1.mlp.hook_post": [Site(1, HIDDEN)],
    "h.1.mlp": [Site(1, OUT)],
}


@pytest.mark.parametrize("name", NAMES)
def test_what_names_stand_for(tiny_models, name):
    assert TrainSettings(sites=(name,)).sites == (name,)
    assert list(sites_of(tiny_models["gpt2"], [name])) == NAMES[name]


def test_names_are_put_together_and_sorted(tiny_models):
    names = ["mlp_out.2", "resid_post.0-1", "resid_pre.1"]
    assert sites_of(tiny_models["gpt2"], names) == (Site(0), Site(1), Site(2, OUT))


@pytest.mark.parametrize("name", ["resid_post.1-3", "resid_post.7", "blocks.3.hook_resid_post", "blocks.1.attn.hook_q"])
def test_what_this_model_does_not_have(tiny_models, name):
    with user_error(""):
        sites_of(tiny_models["gpt2"], [name])


@pytest.mark.parametrize("name", ["resid", "resid_pre.0", "resid_post.2-1", "mlp_out.x"])
def test_what_no_model_has_is_refused_before_one_is_loaded(name):
    with user_error(""):
        TrainSettings(sites=(name,))
