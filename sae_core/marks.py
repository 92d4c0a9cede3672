r"""Characters that cannot be seen, shown as marks: they could turn a text around, or hide a part of it.

The explorer's `visible` (`subrank/pages/viewer/base.js`) marks the same ones.
"""

import re

_HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    "\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def marked(text: str) -> str:
    """`text` with `[U+202E]` and its like for what cannot be seen; ends of lines and tabs stay."""
    return _HIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)
