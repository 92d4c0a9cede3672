"""Colours of the style sheets: text and its paper differ in luminance by a factor of 4.5 at least (WCAG 2, 1.4.3)."""

import re
from pathlib import Path

import pytest

from subrank.pages import page

FOLDER = Path(page.__file__).parent
VIEWER, REPORT = FOLDER / "viewer" / "viewer.css", FOLDER / "templates" / "style.css"
PAIRS = {
    VIEWER: {
        "paper": ("ink", "soft", "faint", "blue", "red", "named"),
        "ground": ("ink", "soft", "faint", "blue", "red"),
        "wash": ("ink", "soft"),
        "gold-wash": ("ink", "soft"),
        "hover": ("ink", "soft"),
        "blue-wash": ("ink", "soft", "blue"),
        "red-wash": ("red",),
    },
    REPORT: {"paper": ("ink", "soft", "accent"), "wash": ("ink", "soft"), "best": ("ink", "soft")},
}
"""By paper, what is written on it."""


def colours(sheet: Path, scheme: str) -> dict[str, str]:
    """The custom properties of a style sheet that are colours, as a scheme sets them."""
    light, _, dark = sheet.read_text("utf-8").partition("(prefers-color-scheme: dark)")
    named = re.compile(r"--([a-z-]+): (#[0-9a-f]{6}|#[0-9a-f]{3})\b")
    return dict(named.findall(light)) | (dict(named.findall(dark)) if scheme == "dark" else {})


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sheet", [VIEWER, REPORT], ids=["explorer", "report"])
def test_text_stands_out_from_its_paper(sheet, scheme):
    named = colours(sheet, scheme)
    ratios = {
        (text, paper): contrast(named[text], named[paper]) for paper, texts in PAIRS[sheet].items() for text in texts
    }
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}


def test_the_measure_is_that_of_wcag():
    assert contrast("#000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#fff") == pytest.approx(
        4.48, abs=0.01
    )
    assert colours(VIEWER, "light")["paper"] != colours(VIEWER, "dark")["paper"]
