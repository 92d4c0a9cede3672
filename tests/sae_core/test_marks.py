"""What cannot be seen is shown as marks, in Python as in the viewer."""

import re
from pathlib import Path

from sae_core.marks import marked

VIEWER = Path(__file__).parents[2] / "subrank" / "pages" / "viewer" / "base.js"


def test_what_turns_text_round_or_hides_is_marked_and_everything_else_stays():
    assert marked("a\u202eb\u202c \u200b\ufeff\x1b[31m") == "a[U+202E]b[U+202C] [U+200B][U+FEFF][U+001B][31m"
    assert marked("a\U000e0041\u3164") == "a[U+E0041][U+3164]"
    plain = "Mädchen שלום 日本 👩‍👧 \n\t \\ [U+202E]"
    assert marked(plain) == plain and marked(marked("\u2066x")) == marked("\u2066x")


def test_the_viewer_marks_the_same_characters():
    """But for ends of lines and tabs, for which it has signs."""
    pattern = re.search(r"HIDDEN =\s*/(\[.*?\])\|", VIEWER.read_text(encoding="utf-8"))
    hidden = re.compile(pattern[1])
    for character in map(chr, [*range(0xD800), *range(0xE000, 0x10000)]):
        assert (marked(character) != character) == (bool(hidden.match(character)) and character not in "\n\t")
