"""The plumbing of the recorded case: what is finished is not run again, and mistakes are one line."""

from types import SimpleNamespace

import pytest
import real_model
from real_model import Part, main, part, table


def test_a_finished_part_is_read_and_not_run_again(tmp_path, monkeypatch):
    runs = []

    def run():
        runs.append(1)
        return SimpleNamespace(save=lambda folder: folder.mkdir())

    monkeypatch.setattr(real_model.sr, "load_result", lambda folder: folder.name)
    first, again = (part("ioi", tmp_path, run, lambda result: [f"of {result}"]) for _ in range(2))
    assert len(runs) == 1 and first == again and first.findings == ("of ioi",)


def test_an_interrupted_part_is_run_again(tmp_path):
    def run():
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            part("ioi", tmp_path, run, lambda result: [])


def test_the_table_has_a_row_to_a_finding_and_times_once():
    lines = table([Part("ioi", ("a | b", "c"), 90, 60), Part("remove", ("d",), 0, 0)]).splitlines()
    assert lines[2:] == ["| ioi | 1.5 | 1.0 | a \\| b |", "|  |  |  | c |", "| remove | 0.0 | 0.0 | d |"]


@pytest.mark.parametrize(("has_model", "words"), [(False, "Hugging Face layout"), (True, "no text")])
def test_what_is_missing_is_said_with_the_way_to_get_it(tmp_path, capsys, has_model, words):
    if has_model:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and ("hf download" in error or ".jsonl" in error)
