"""When numbers agree, and what is said of those that do not."""

import json
import math

import pytest

from sae_core.codec import from_plain
from subrank.checking.recomputed import Check, Recomputed


@pytest.mark.parametrize(
    ("reported", "recomputed", "agree"),
    [
        (1.0, 1.0003, True),
        (1.0, 1.0004, False),
        (-1.0, 1.0, False),
        (0.0, 9e-7, True),
        (1e-5, 2e-5, False),
        (math.nan, math.nan, True),
        (math.nan, 1.0, False),
        (math.inf, math.inf, True),
        (math.inf, 1.0, False),
    ],
)
def test_numbers_agree_to_half_of_their_digits(reported, recomputed, agree):
    check = Check((Recomputed("a", reported, recomputed),), "float32")
    assert bool(check.disagreeing) is not agree
    assert ("WRONG" in check.line()) is not agree


def test_lower_precision_allows_more_and_ranks_may_change_places():
    off = Recomputed("a", 1.0, 1.03)
    assert [bool(Check((off,), dtype).disagreeing) for dtype in ("float32", "float16", "bfloat16")] == [1, 0, 0]
    assert not Check((Recomputed("a", 1.0, 1.05, room=0.05),), "float32").disagreeing


def test_the_line_names_the_worst_or_all_that_are_wrong():
    near, far = Recomputed("the near", 1.0, 1.0 + 1e-6), Recomputed("the far", 100.0, 100.01)
    line = Check((near, far), "float32").line()
    assert "2 numbers" in line and "the far" in line and "the near" not in line and "1.0e-02" in line
    line = Check((near, Recomputed("the wrong", 2.0, 3.0)), "float32").line()
    assert "1 of 2" in line and "the wrong is reported as 2 and is 3" in line and "the near" not in line
    assert "no number" in Check((), "float32").line()


def test_a_check_is_read_back():
    check = Check((Recomputed("a", 1.0, 1.5), Recomputed("b", 0.5, 0.5, 0.1)), "bfloat16")
    plain = json.loads(json.dumps(check.to_json(), allow_nan=False))
    assert from_plain(Check, plain) == check and plain["disagreeing"] == 1
