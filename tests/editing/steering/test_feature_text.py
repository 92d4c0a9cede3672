"""Features on a text: the numbers are their definitions, and features that are not there are refused."""

import pytest
import torch
from tiny import user_error

from editing.steering.feature_text import check_known_features
from sae_core.sites import FeatureId, Site

SITE = Site(0)
FEATURE = FeatureId(SITE, 0)


def test_what_a_text_says_of_a_feature(toy):
    text, d = toy.text, toy.dictionaries[SITE].directions[0]
    h = toy.model.embedding[text.contexts]
    content = text.contexts != 0
    f = (h @ d).relu() * content
    torch.testing.assert_close(text.f[..., 0], f)
    assert text.maximum[0] == f.max() and text.n_tokens == content.sum()
    assert text.density[0] == pytest.approx((f > 0).sum().item() / content.sum().item())
    difference = h[f > 0].mean(0) - h[content & (f == 0)].mean(0)
    torch.testing.assert_close(text.difference[SITE], difference / difference.norm(), atol=1e-5, rtol=1e-4)


def test_features_that_are_not_there(toy):
    for name, words in (("3_1", "no dictionary"), ("0_64", "has 64"), ("mlp_out.0_1", "no dictionary")):
        with user_error(name, words):
            check_known_features(toy.dictionaries, [FeatureId.parse(name)])
    for features in ([], [FEATURE, FEATURE]):
        with user_error("at least one feature", "twice"):
            check_known_features(toy.dictionaries, features)
