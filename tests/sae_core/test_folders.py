"""What is put into a folder is there whole, or what was there before is, or nothing that says to be complete."""

import os
import shutil
from pathlib import Path

import pytest
from mortal import NAMED, WHOLE, at_every_moment, contents, fill_disk, kill

from sae_core.files import write_text
from sae_core.folders import FILES, replacing

OLD = {"page.html": "old", "sub/a.txt": "old", "deep/er/only.txt": "old", "card": "old", "mark": "old"}
NEW = {"page.html": "new", "sub/b.txt": "new", "mark": "new"}
MINE = {"sub/notes.txt": "mine"}


def put(folder: Path, texts: dict[str, str]) -> None:
    with replacing(folder, "card", "mark") as new:
        for name, text in texts.items():
            write_text(new / name, text)


def there(folder: Path) -> dict[str, str]:
    """What a person sees: names that begin with a dot are ours."""
    return {name: text.decode() for name, text in contents(folder).items() if not name.startswith(".")}


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "folder"
    put(folder, OLD)
    write_text(folder / "sub/notes.txt", "mine")
    return folder


def test_what_was_written_before_goes_and_what_others_wrote_stays(folder):
    assert there(folder) == OLD | MINE
    put(folder, NEW)
    assert there(folder) == NEW | MINE
    assert {path.name for path in folder.iterdir()} == {FILES, "page.html", "sub", "mark"}  # no empty folders either


def test_what_was_written_under_other_marks_stays(folder):
    """A result that is saved beside dictionaries takes none of them away."""
    with replacing(folder, "other") as new:
        write_text(new / "other", "new")
    assert there(folder) == OLD | MINE | {"other": "new"}


def test_a_block_that_raises_leaves_everything_as_it_was(folder):
    before = contents(folder)
    with pytest.raises(KeyboardInterrupt), replacing(folder, "card", "mark") as new:
        write_text(new / "page.html", "new")
        raise KeyboardInterrupt
    assert contents(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize(("happen", "end"), [(kill, "Killed"), (fill_disk, NAMED)])
def test_old_and_new_never_lie_side_by_side_and_the_same_again_ends_well(folder, tmp_path, monkeypatch, happen, end):
    """It used to be that of a result killed while it was saved JSON and drawing were new, and pages old."""

    def gone(pid: int, signum: int) -> None:
        raise ProcessLookupError

    def prepare():
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)

    def look():
        before = there(folder)
        put(folder, NEW)
        return before, contents(folder)

    monkeypatch.setattr(os, "kill", gone)  # the one that was killed shares its number with this one
    shutil.copytree(folder, tmp_path / "kept")
    put(tmp_path / "straight", NEW)
    straight = contents(tmp_path / "straight") | {"sub/notes.txt": b"mine"}
    seen = at_every_moment(happen, lambda: put(folder, NEW), prepare, look)
    states = [state for _, (state, _) in seen]
    for state in states:
        texts = {*state.values()} - {"mine"}
        assert MINE.items() <= state.items() and (texts <= {"old"} or texts <= {"new"})
        if "mark" in state:
            assert state in (OLD | MINE, NEW | MINE)
    assert states[-1] == NEW | MINE and states[0] == OLD | MINE
    assert any("mark" not in state for state in states)  # control: moments between were met
    assert [ended for ended, _ in seen] == [end] * (len(seen) - 1) + [WHOLE]
    assert all(again == straight for _, (_, again) in seen)  # nothing half-written is left, either


@pytest.mark.parametrize("place", ["../outside", "{parent}/outside", "link/outside", "", "sub", "a\\u0000b", "a" * 999])
def test_a_list_of_files_removes_nothing_elsewhere(folder, place):
    """The folder may be a stranger's."""
    parent = folder.parent
    (parent / "outside").write_text("mine")
    before = there(folder)
    (folder / "link").symlink_to(parent)
    write_text(folder / FILES, f'{{"files": ["{place.format(parent=parent)}"]}}')
    put(folder, NEW)
    assert (parent / "outside").read_text() == "mine"
    (folder / "link").unlink()
    assert there(folder) == {name: text for name, text in before.items() if name != "card"} | NEW


@pytest.mark.parametrize("damaged", ["[]", "{", '{"files": 3}', '{"files": [3]}'])
def test_without_a_list_only_what_has_the_same_name_is_replaced(folder, damaged):
    (folder / FILES).write_text(damaged)
    put(folder, NEW)
    old = {name: OLD[name] for name in ("sub/a.txt", "deep/er/only.txt")}
    assert there(folder) == old | NEW | MINE  # `card` says what the folder holds: it goes, whoever wrote it
