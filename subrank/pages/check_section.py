"""The section of a page on what was computed again (`--check`)."""

from markupsafe import Markup

from subrank.checking.recomputed import Check
from subrank.pages.page import Table, render, yes_or_no


def check_section(check: Check | None) -> Markup:
    """Every number that was computed again, beside the one that is reported; nothing without a check."""
    if check is None:
        return Markup()
    wrong = check.disagreeing
    rows = [
        (n.what, f"{n.reported:.7g}", f"{n.recomputed:.7g}", f"{n.difference:.1e}", yes_or_no(n not in wrong))
        for n in check.numbers
    ]
    head = ("number", "reported", "computed again", "difference", "agree")
    return render("check.html", line=check.line(), numbers=Table(head, rows))
