"""Every example runs, and its assertions hold; so does the Python of the README."""

import re
import runpy
from pathlib import Path

import pytest
from planted import unchecked

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="session")
def example_set(tmp_path_factory) -> Path:
    """What the first example writes and the others read."""
    folder = tmp_path_factory.mktemp("examples") / "set"
    run(EXAMPLES[0], folder)
    return folder


def run(path: Path, *arguments: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(path), *map(str, arguments)])
        with unchecked():  # every part of them is checked in tests of its own
            runpy.run_path(str(path), run_name="__main__")


def test_the_first_example_leaves_a_set(example_set):
    assert EXAMPLES[0].name.startswith("01_") and (example_set / "set.json").is_file()


@pytest.mark.parametrize("path", EXAMPLES[1:], ids=lambda path: path.stem)
def test_example(path, example_set, tmp_path):
    given = example_set / "resid_post.2" if "someone" in path.stem else example_set
    run(path, given, tmp_path)


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
