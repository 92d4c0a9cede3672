"""Every example runs, and its assertions hold; so does the Python of the README."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from planted import unchecked

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
pytest.register_assert_rewrite(*(path.stem for path in EXAMPLES))
pytestmark = pytest.mark.slow

TRAINS = ("01", "05")
"""Examples that train: they take where to write and a seed, the others a set and where to write."""


def run(path: Path, *arguments: Path | int) -> None:
    """Import an example as if it were run with these arguments; a failed assertion shows its values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        patch.syspath_prepend(path.parent)
        patch.delitem(sys.modules, path.stem, raising=False)
        with unchecked():  # every part of them is checked in tests of its own
            importlib.import_module(path.stem)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, trained_set, training_seed, tmp_path):
    arguments = (tmp_path, training_seed) if path.stem.startswith(TRAINS) else (trained_set, tmp_path)
    run(path, *arguments)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        assert (
            len([line for line in block.splitlines() if line.strip() and not line.startswith(("from", "import"))]) <= 16
        )
        with unchecked():  # every part of it is checked in tests of its own
            exec(compile(block, "README.md", "exec"), {})
