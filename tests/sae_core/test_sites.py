"""Names of sites and features: what is printed can be read again, and they sort as a model computes them."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import user_error

from sae_core.errors import UserError, no_such
from sae_core.sites import FeatureId, Site, Stream, sites_in

SITES = st.builds(Site, st.integers(0, 200), st.sampled_from(Stream))
FEATURES = st.builds(FeatureId, SITES, st.integers(0, 2**24))


@given(SITES)
def test_a_site_reads_back(site):
    assert Site.parse(str(site)) == site


@given(FEATURES)
def test_a_feature_reads_back(feature):
    assert FeatureId.parse(str(feature)) == feature


@given(FEATURES, FEATURES)
def test_names_are_unique(a, b):
    assert (str(a) == str(b)) == (a == b)
    assert (str(a.site) == str(b.site)) == (a.site == b.site)


def test_how_they_look():
    assert str(Site(3)) == "resid_post.3"
    assert str(Site(0, Stream.MLP_HIDDEN)) == "mlp_hidden.0"
    assert str(FeatureId(Site(3), 2079)) == "3_2079"
    assert str(FeatureId(Site(3, Stream.MLP_OUT), 2079)) == "mlp_out.3_2079"
    assert FeatureId.parse("resid_post.5_7") == FeatureId.parse("5_7") == FeatureId(Site(5), 7)


def test_sites_sort_by_layer_then_as_a_block_computes():
    streams = [Stream.ATTN_Z, Stream.ATTN_OUT, Stream.RESID_MID, Stream.MLP_HIDDEN, Stream.MLP_OUT, Stream.RESID_POST]
    expected = [Site(layer, stream) for layer in (0, 1, 10) for stream in streams]
    shuffled = random.Random(0).sample(expected, len(expected))
    assert shuffled != expected and sorted(shuffled) == expected
    assert sorted(map(str, expected)) != list(map(str, expected))  # the order of the names is another


@given(st.lists(FEATURES, max_size=8))
def test_features_sort_by_site_then_index(features):
    ordered = sorted(features)
    assert [f.site for f in ordered] == sorted(f.site for f in features)
    assert all(a.index <= b.index for a, b in pairwise(ordered) if a.site == b.site)


def test_other_spellings():
    assert Site.parse("resid_pre.3") == Site.parse("blocks.3.hook_resid_pre") == Site(2)
    assert Site.parse("blocks.9.hook_resid_post") == Site(9)
    assert Site.parse("blocks.0.hook_mlp_out") == Site(0, Stream.MLP_OUT)
    for name in ("resid_pre.0", "blocks.0.hook_resid_pre"):
        with user_error(name, "embedding", "resid_post.0"):
            Site.parse(name)
    with user_error("blocks.3.hook_pattern"):
        Site.parse("blocks.3.hook_pattern")


def test_ranges():
    assert sites_in("mlp_out.9-11") == [Site(layer, Stream.MLP_OUT) for layer in (9, 10, 11)]
    assert sites_in("resid_post.3-3") == sites_in("resid_post.3") == [Site(3)]
    assert sites_in("resid_pre.1-2") == [Site(0), Site(1)]
    for name in ("resid_post.3-2", "resid_pst.2-3", "resid_post.2-", "resid_post.-3", "resid_pre.0-2"):
        with user_error("resid_p"):
            sites_in(name)


@given(SITES, SITES)
def test_of_two_sites_exactly_one_is_first(a, b):
    assert (a < b) + (b < a) + (a == b) == 1


@pytest.mark.parametrize(
    "text", ["", "3", "resid_post", "resid_post.", ".3", "resid_post.-1", "resid.3", "RESID_POST.3", "resid_post.3.4"]
)
def test_other_texts_are_no_sites(text):
    with user_error(repr(text), "resid_post.3"):
        Site.parse(text)


@pytest.mark.parametrize("text", ["", "_", "3", "3_", "_7", "3_-7", "resid.3_7", "mlp_out_7", "mlp_out.3", "3_7_9"])
def test_other_texts_are_no_features(text):
    with user_error(repr(text), "5_2079"):
        FeatureId.parse(text)


@pytest.mark.slow
@given(st.text(max_size=20))
def test_any_text_is_a_name_or_a_user_error(text):
    for kind in (Site, FeatureId):
        try:
            kind.parse(text)
        except UserError as error:
            assert "\n" not in str(error)


def test_names_are_keys():
    assert {Site(1): "a"}[Site(1, Stream.RESID_POST)] == "a"
    assert len({FeatureId(Site(1), 2), FeatureId(Site(1), 2), FeatureId(Site(1), 3)}) == 2


@pytest.mark.parametrize(
    ("parse", "text", "meant"),
    [
        (Site.parse, "resid_pst.3", "resid_post.3"),
        (Site.parse, "mlp_out3", "mlp_out.3"),
        (Site.parse, "resid_pots", "resid_post"),
        (FeatureId.parse, "mlp_ot.5_2079", "mlp_out.5_2079"),
        (FeatureId.parse, "5-2079", "5_2079"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest_right_one(parse, text, meant):
    with user_error(text, f"did you mean {meant}"):
        parse(text)


def test_nothing_is_suggested_for_what_is_near_to_nothing():
    for parse in (Site.parse, FeatureId.parse):
        with pytest.raises(UserError) as caught:
            parse("xyz")
        assert "did you mean" not in str(caught.value)
    assert "did you mean b7" in str(no_such("thing", "b_7", (f"{letter}{i}" for letter in "abc" for i in range(9))))
    assert str(no_such("thing", "zzz", ["one", "two"])) == "no thing 'zzz'; there are one, two"
