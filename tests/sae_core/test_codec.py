"""One converter for all results: what goes in comes out, through JSON."""

import json
import math
from dataclasses import dataclass
from enum import StrEnum

import pytest
from tiny import user_error

from sae_core.codec import from_plain, to_plain
from sae_core.estimate import Estimate
from sae_core.sites import FeatureId, Site, Stream


class Kind(StrEnum):
    A = "a"


@dataclass(frozen=True)
class Inner:
    x: Estimate
    feature: FeatureId | None


@dataclass(frozen=True)
class Outer:
    kind: Kind
    inner: tuple[Inner, ...]
    by_site: dict[Site, float]
    pair: tuple[int, str] = (1, "b")


VALUE = Outer(
    Kind.A,
    (Inner(Estimate(1.0, 0.5, 2.0), FeatureId(Site(3, Stream.MLP_OUT), 7)), Inner(Estimate(2.0, 1.0, 3.0), None)),
    {Site(1): 0.25},
)


def test_json_and_back_is_the_identity():
    plain = json.loads(json.dumps(to_plain(VALUE), allow_nan=False))
    assert plain["by_site"] == {"resid_post.1": 0.25} and plain["inner"][0]["feature"] == "mlp_out.3_7"
    assert from_plain(Outer, plain) == VALUE


def test_what_is_not_finite_is_null_and_reads_as_nan():
    plain = to_plain(Estimate(math.inf))
    assert plain == {"value": None, "low": None, "high": None}
    assert math.isnan(from_plain(Estimate, plain).value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pair", ["1", "b"]),
        ("pair", [True, "b"]),
        ("pair", [1.5, "b"]),
        ("pair", [1, 2]),
        ("by_site", {"resid_post.1": "0"}),
        ("pair", "1b"),
        ("pair", [1]),
        ("inner", ""),
        ("inner", {}),
    ],
)
def test_a_value_of_another_type_is_no_number_or_text(field, value):
    """`"34"` was once read as 34, 1.5 as 1, and a text as the list of its characters."""
    plain = json.loads(json.dumps(to_plain(VALUE)))
    with user_error("no Outer", field):
        from_plain(Outer, plain | {field: value})


def test_names_that_the_type_does_not_have_are_passed_over_or_refused():
    plain = to_plain(VALUE) | {"later": 1}
    assert from_plain(Outer, plain) == VALUE
    with user_error("no Outer", "later"):
        from_plain(Outer, plain, exact=True)
    deep = to_plain(VALUE)
    deep["inner"][0]["x"]["middle"] = 0.5
    with user_error("middle"):
        from_plain(Outer, deep, exact=True)


@pytest.mark.parametrize("wrong", [{}, {"kind": "z"}, [], {"kind": "a", "inner": 3, "by_site": {}}])
def test_what_is_no_such_value_is_one_line(wrong):
    with user_error("no Outer"):
        from_plain(Outer, wrong)


def test_an_estimate_shows_its_interval_where_it_has_one():
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]" and f"{Estimate(0.5):.1f}" == "0.5"
    assert Estimate(0.5, 0.25, 0.75).excludes(0.0) and not Estimate(0.5, 0.25, 0.75).excludes(0.3)
