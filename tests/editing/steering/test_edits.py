"""Edits that steer: strengths mean what they say, and controls move as far."""

from dataclasses import replace

import pytest
import torch
from handmade import normal, random_topk
from tiny import random_tokens, user_error

from editing.steering.edits import Mode, Steering, random_directions
from editing.steering.feature_text import read_features
from sae_core.sites import FeatureId, Site

SITE = Site(0)


@pytest.mark.parametrize(("mode", "strength"), [(Mode.SCALE, -1.5), (Mode.CLAMP, 0.5), (Mode.OFF, 0.0)])
def test_strengths_mean_what_they_say(toy, mode, strength):
    h = normal(2, 5, 64, seed=4)
    (edit,) = Steering(toy.dictionaries, toy.text, mode).edits(strength)
    d = toy.dictionaries[SITE].directions[0]
    f = (h @ d).relu()
    wanted = {Mode.SCALE: strength * f, Mode.CLAMP: torch.full_like(f, strength * toy.text.maximum[0]), Mode.OFF: 0 * f}
    torch.testing.assert_close(edit(h), h + (wanted[mode] - f)[..., None] * d)


def test_features_of_one_site_are_read_together_and_sites_have_an_edit_each(storybook):
    dictionaries = {Site(layer): random_topk(storybook.d_model, seed=layer) for layer in (1, 2)}
    features = [FeatureId(Site(2), 5), FeatureId(Site(1), 7), FeatureId(Site(1), 3)]
    text = read_features(storybook, dictionaries, features, random_tokens(storybook.n_vocab, 8, 30))
    edits = Steering(dictionaries, replace(text, f=text.f + 1), Mode.SCALE).edits(2.0)
    assert [(edit.site, edit.latents.tolist()) for edit in edits] == [(Site(1), [3, 7]), (Site(2), [5])]


def test_controls_move_as_far_as_the_features_at_every_position(toy):
    h = normal(3, 7, 64, seed=5)
    steering = Steering(toy.dictionaries, toy.text, Mode.SCALE)
    u = random_directions(toy.model, [SITE], generator=torch.Generator().manual_seed(0))
    change, other = (edit(h) - h for (edit,) in (steering.edits(3.0), steering.controls(3.0, u)))
    torch.testing.assert_close(other.norm(dim=-1), change.norm(dim=-1))
    silent = change.norm(dim=-1) == 0
    assert silent.any() and not silent.all() and not other[silent].any()
    assert ((other @ u[SITE])[~silent] > 0).all()
    down = steering.controls(-1.0, u)[0](h) - h
    assert ((down @ u[SITE])[~silent] < 0).all()


def test_a_feature_that_is_never_active(toy):
    silent = replace(toy.text, f=torch.zeros_like(toy.text.f))
    with user_error("0_0", "never active", str(toy.text.n_tokens)):
        Steering(toy.dictionaries, silent, Mode.SCALE)
