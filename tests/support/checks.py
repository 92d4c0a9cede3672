"""What tests of `--check` ask of numbers that were computed again."""

from collections.abc import Iterable

from subrank.checking.recomputed import Check, Recomputed


def agree(numbers: Iterable[Recomputed]) -> list[str]:
    """What the numbers are of; there must be some, and all must agree."""
    check = Check(tuple(numbers), "float32")
    assert check.numbers and not check.disagreeing, check.line()
    return [number.what for number in check.numbers]


def wrong(numbers: Iterable[Recomputed]) -> list[str]:
    """What those numbers are of that disagree."""
    return [number.what for number in Check(tuple(numbers), "float32").disagreeing]
