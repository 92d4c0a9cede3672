"""Every example runs, and its assertions hold; so does the Python of the README."""

import importlib
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from planted import unchecked
from verbs import TRAINING

import subrank as sr
from subrank.settings.circuit import CircuitSettings
from subrank.settings.experiments import IOISettings, RemoveSettings
from subrank.settings.fields import make
from subrank.settings.train import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
pytest.register_assert_rewrite(*(path.stem for path in EXAMPLES))
pytestmark = pytest.mark.slow

TRAINS = ("01", "05", "18")
"""Examples that train: they take where to write and a seed, the others a set and where to write."""
NEEDS = {"18": "ray"}
"""Libraries that are no part of the installation."""
FEWER = {
    "sweep": {"tokens": 20_480},
    "ioi": {"prompts": 6, "contexts": 8},
    "remove": {"prompts": 24, "contexts": 8},
    "steer": {"strengths": (1, 4), "tokens": 4, "contexts": 4, "read": 32},
    "prompt": {"contexts": 16},
    "superposition": {"densities": (1.0, 0.01), "copies": 2, "steps": 600, "dictionary_steps": 20},
    "splitting": {"contexts": 4},
    "matching": {"contexts": 2},
    "explain": {"contexts": 32, "features": 2},
    "dark_matter": {"contexts": 16, "held": 8, "steps": 5, "pursuit": 16},
}
"""What the examples' functions are told here, where less shows as much."""


def run(path: Path, *arguments: Path | int, **replaced: Callable) -> None:
    """Import an example as if it were run with these arguments; a failed assertion shows its values.

    `replaced` are functions of `subrank` that stand in for its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, function in replaced.items():
            patch.setattr(sr, name, function)
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        patch.syspath_prepend(path.parent)
        patch.delitem(sys.modules, path.stem, raising=False)
        with unchecked():  # every part of them is checked in tests of its own
            importlib.import_module(path.stem)


SMALLER = {
    TrainSettings: {"tokens": 30_000, "sites": ("resid_post.4", "resid_post.5")},
    IOISettings: {
        "prompts": 4,
        "corruption": "swap",
        "selectors": "attribution",
        "baselines": "pca",
        "site": "resid_post.4",
        "contexts": 16,
    },
    CircuitSettings: {"contexts": 100, "max_targets": 1, "null": 5, "held": 0, "cards": 0},
    RemoveSettings: {"prompts": 16, "site": "resid_post.5", "contexts": 8},
}
"""What the script of the README is made smaller by here; as it stands it takes minutes."""


def test_the_script_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """Line for line, with smaller settings: one import, and every comment of it holds."""
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) <= 12 and sum("import" in line for line in lines) == 1
    for module in ("training", "ioi", "circuit", "removal"):
        monkeypatch.setattr(f"subrank.experiments.{module}.make", lambda kind, named: make(kind, named | SMALLER[kind]))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with unchecked():  # every part of it is checked in tests of its own
        exec(compile(script, "README.md", "exec"), names)
        assert sr.load("dictionaries").quality == names["saes"].quality
        plain = names["model"].generate("print ( sqrt ( x")
    *removal, ablated = capsys.readouterr().out.splitlines()
    assert "pronouns" in removal[0] and (tmp_path / "story.svg").is_file()
    assert ablated != plain, "the target is a feature that writes closing brackets"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, trained_set, training_seed, tmp_path):
    if library := NEEDS.get(path.stem[:2]):
        pytest.importorskip(library)
    real = {name: getattr(sr, name) for name in ("train", *FEWER)}

    def train(model, text, **settings) -> sr.Saes:
        """What the command trained with the same settings: `test_front_door.py` shows that it is the same."""
        assert (model.name, text) == ("storybook", "storybook")
        if settings == TRAINING | {"seed": training_seed}:
            return sr.load(trained_set)
        return real["train"](model, text, **settings | {"tokens": 8_192})

    def fewer(name: str, *inputs, **settings):
        return real[name](*inputs, **settings | FEWER[name])

    arguments = (tmp_path, training_seed) if path.stem.startswith(TRAINS) else (trained_set, tmp_path)
    run(path, *arguments, train=train, **{name: partial(fewer, name) for name in FEWER})
