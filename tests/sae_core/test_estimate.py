"""A number with its interval prints as people read it."""

from sae_core.estimate import Estimate


def test_it_prints_with_three_digits_unless_told_otherwise():
    estimate = Estimate(0.28649999, 0.24111111, 1 / 3)
    assert str(estimate) == f"{estimate}" == "0.286 [0.241, 0.333]"
    assert f"{estimate:+.1f}" == "+0.3 [+0.2, +0.3]" and f"{Estimate(0.25)}" == "0.250"


def test_an_interval_excludes_what_lies_beyond_its_ends():
    assert Estimate(0.3, 0.2, 0.4).excludes(0.5) and not Estimate(0.3, 0.2, 0.4).excludes(0.4)
