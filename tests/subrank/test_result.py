"""Results take the places of earlier ones, and of nothing else."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from markupsafe import Markup
from mortal import contents
from tiny import user_error

from sae_core.codec import from_plain
from sae_core.errors import UserError
from sae_core.files import write_text
from sae_core.folders import replacing
from sae_core.storage import SET
from subrank.checking.recomputed import Check, Recomputed
from subrank.result import RESULT, Provenance, Result

PROVENANCE = Provenance("ioi", "0", "3", {}, "m", "f", "cpu", {}, "now")


@dataclass(frozen=True)
class Plain(Result):
    """The smallest result."""

    verb = "ioi"
    words: str = ""
    provenance: Provenance = PROVENANCE

    def lines(self) -> list[str]:
        return [self.words]

    def figures(self) -> dict:
        return {}

    def body(self) -> Markup:
        return Markup("<p>{}</p>").format(self.words)

    def title(self) -> str:
        return self.words

    def to_dict(self) -> dict:
        return {"words": self.words}

    @classmethod
    def from_dict(cls, numbers, provenance) -> "Plain":
        return cls(numbers["words"], provenance)


class Other(Plain):
    """Writes more, under another verb."""

    verb = "circuit"

    def write(self, folder: Path) -> None:
        super().write(folder)
        write_text(folder / "explore" / "index.html", self.words)


class Failing(Other):
    """Fails after it has written numbers, as on a full disk."""

    def body(self) -> Markup:
        raise OSError("the disk is full")


def test_an_earlier_result_goes_and_what_people_put_beside_it_stays(tmp_path):
    """A circuit saved over another left its pages; names that were given to nodes are a person's."""
    page = Other("the earlier one").save(tmp_path)
    assert page == tmp_path / "circuit.html" and page.is_file()
    write_text(tmp_path / "explore" / "names.json", "{}")
    before = contents(tmp_path)
    with pytest.raises(OSError, match="disk is full"):
        Failing("second").save(tmp_path)
    assert contents(tmp_path) == before
    Plain("second").save(tmp_path)
    names = {name for name in contents(tmp_path) if not name.startswith(".")}
    assert names == {"explore/names.json", "ioi.html", "plotly.min.js", "provenance.json", "result.json"}
    assert not any(b"the earlier one" in content for content in contents(tmp_path).values())


def test_a_check_is_printed_shown_and_written_and_without_one_nothing_is(tmp_path):
    """`result.json` without a check holds the bytes that it always held."""
    check = Check((Recomputed("the answer", 42.0, 42.5),), "float32")
    pages = [Plain("words").save(tmp_path / "plain"), Plain("words", check=check).save(tmp_path / "checked")]
    plain, checked = (json.loads((page.parent / RESULT).read_text()) for page in pages)
    assert plain == {"words": "words"} and from_plain(Check, checked.pop("check")) == check and checked == plain
    assert ["the answer" in page.read_text() for page in pages] == [False, True]
    assert str(Plain("words")) == "words" and str(Plain("words", check=check)) == f"words\n{check.line()}"
    assert check.line().startswith("WRONG NUMBERS")


@pytest.mark.parametrize(("assets", "address"), [("", "../../plotly.min.js"), ("a/b", "plotly.min.js")])
def test_a_page_finds_plotly_from_where_it_lies(tmp_path, assets, address):
    """It is written elsewhere first."""
    page = Plain("words").save(tmp_path / "a" / "b", assets=tmp_path / assets)
    assert f'"{address}"' in page.read_text() and (page.parent / address).is_file()


def test_a_folder_of_dictionaries_keeps_its_numbers(tmp_path):
    write_text(tmp_path / "set.json", "{}")
    with user_error(str(tmp_path), "dictionaries", "give another"):
        Plain("words").save(tmp_path)
    assert issubclass(UserError, ValueError) and [path.name for path in tmp_path.iterdir()] == ["set.json"]


def test_the_sets_of_a_sweep_are_not_lost_to_a_result(tmp_path):
    """Their folder has no `set.json` of its own; what lies beside them in other ways stays, too."""
    with replacing(tmp_path / "sweep", RESULT, SET) as new:
        write_text(new / "a" / SET, "{}")
    with user_error("sweep", "dictionaries", "give another"):
        Plain("words").save(tmp_path / "sweep")
    assert (tmp_path / "sweep" / "a" / SET).is_file()
