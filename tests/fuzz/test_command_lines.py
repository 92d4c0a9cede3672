"""Whatever the command line: work begins, or one line says what is wrong, with exit status 2.

Work begins where a text is read: all that can be said without it is said before. In the slow part texts are read, and
work begins where it is said how long it takes.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from answers import Began, begin
from command_lines import command_line
from verbs import VERBS, run

from sae_core.data.text import Text

MANY, FEW = 60, 22
"""Command lines of each verb: in which texts are read, `--fuzz` times as many; and in which none is."""
MOST = 16_000
"""Tokens of a text that are read."""


@pytest.fixture
def world(storybook, small_set, tmp_path, monkeypatch):
    """A folder of its own with files of several kinds, no hub, and storybook loaded already."""
    from sae_core.model import language_model

    load_model = language_model.load_model

    def loaded(name, **how):
        return storybook if str(name) == "storybook" else load_model(name, **how)

    monkeypatch.setattr(language_model, "load_model", loaded)
    monkeypatch.setattr("sae_core.model.hub.hub_answers", lambda *a, **k: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("Mary went to the store and\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00{")
    (tmp_path / "names.json").write_text('{"names": {"5_1": "a name"}}')
    (tmp_path / "folder").mkdir()
    shutil.copytree(small_set, tmp_path / "second")
    return tmp_path


def answered(capsys, line) -> str:
    """What the command says is wrong; empty where work begins. Fails where it did anything else."""
    try:
        status, _, error = run(capsys, *line.arguments)
    except Began:
        capsys.readouterr()
        return ""
    except BaseException as error:
        raise AssertionError(f"{line}: {type(error).__name__}: {error}"[:2000]) from error
    last = error.strip().splitlines()[-1:] or [""]
    assert status == 2 and last[0].startswith("subrank: "), f"{line}: status {status}, {error[-500:]}"
    assert len(error.strip().splitlines()) == 1, f"{line}: {error[-1000:]}"
    return error.strip()


def lines_of(verb: str, world: Path, small_set: Path, seeds: range):
    positionals = {"harvest": ["storybook"], "train": ["storybook"], "import": [str(small_set / "resid_post.5")]}
    two = [str(small_set), str(world / "second")]
    positionals |= {"demo": [], "study superposition": [], "study splitting": two, "study matching": two}
    positionals["prompt"] = [str(small_set), "Mary went to the store"]
    needed = positionals.get(verb, [str(small_set)])
    needed = [*needed, "--model", "storybook"] if verb == "import" else needed
    files = [*sorted(world.iterdir()), small_set]
    return [command_line(f"{verb} {seed}", verb, needed, files) for seed in seeds]


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_wrong_is_said_before_a_text_is_read(verb, world, small_set, capsys, monkeypatch):
    monkeypatch.setattr(Text, "read", begin)
    monkeypatch.setattr("editing.removal.prompts.capability.pronoun_prompts", begin)  # half a second of drawing
    monkeypatch.setattr("subrank.studies.superposition.announce", begin)
    monkeypatch.setattr("subrank.experiments.prompt.features_on", begin)
    wrong = [answered(capsys, line) for line in lines_of(verb, world, small_set, range(FEW))]
    answers = "\n".join(wrong)  # which say why, where on some machine all are wrong: no room, a folder that is gone
    assert 0.2 * FEW < sum(map(bool, wrong)) < FEW, answers  # neither are all wrong nor all right


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_what_is_wrong_is_said_before_work_begins(verb, world, small_set, capsys, monkeypatch, times):
    for place in ("announce", "measure_set"):
        for module in ("circuit", "evaluation", "features", "importing", "ioi", "removal", "steering"):
            monkeypatch.setattr(f"subrank.experiments.{module}.{place}", begin, raising=False)
    for place in ("subrank.saes.measure_set", "subrank.studies.superposition.announce"):
        monkeypatch.setattr(place, begin)
    monkeypatch.setattr("subrank.experiments.harvest.Harvest.run", begin)
    monkeypatch.setattr("subrank.experiments.training.start", begin)
    monkeypatch.setattr("subrank.experiments.training.seconds_per_token", begin)
    monkeypatch.setattr("subrank.experiments.prompt.features_on", begin)
    monkeypatch.setattr("subrank.studies.dark_matter.announce", begin)
    monkeypatch.setattr("subrank.studies.explain.announce", begin)
    monkeypatch.setattr("subrank.studies.scaling.series_of", begin)
    monkeypatch.setattr("subrank.studies.splitting.announce", begin)
    monkeypatch.setattr("subrank.studies.matching.announce", begin)
    read = Text.read
    monkeypatch.setattr(Text, "read", lambda text, by: read(replace(text, max_tokens=min(text.max_tokens, MOST)), by))
    for line in lines_of(verb, world, small_set, range(FEW, FEW + times * MANY)):
        answered(capsys, line)
