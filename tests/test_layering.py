"""Arrows run down only, one file knows the model library, and light modules stay light to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("sae_core", "editing", "circuits", "verbs", "subrank")


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def files(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py")) if (ROOT / floor).is_dir() else [ROOT / f"{floor}.py"]


@pytest.mark.parametrize("floor", FLOORS)
def test_no_floor_imports_from_above(floor):
    above = set(FLOORS[FLOORS.index(floor) + 1 :]) | {"tests", "examples", "benchmarks"}
    assert files(floor)
    for path in files(floor):
        assert not packages(path) & above, path


def test_the_parser_sees_imports(tmp_path):
    """Control for the tests above."""
    (tmp_path / "a.py").write_text("def f():\n    from editing.patch import x\n    import circuits.graph as g\n")
    assert packages(tmp_path / "a.py") == {"editing", "circuits"}
    assert "sae_core" in packages(ROOT / "sae_core" / "storage.py")


def test_only_models_knows_the_model_library():
    knowing = {
        path.relative_to(ROOT) for floor in FLOORS for path in files(floor) if "transformer_lens" in packages(path)
    }
    assert knowing == {Path("sae_core/models.py")}


SAE_CORE = sorted(f"sae_core.{path.stem}" for path in (ROOT / "sae_core").glob("*.py") if path.stem != "__init__")
LIGHT = [*SAE_CORE, "sae_core.storybook.grammar", "sae_core.storybook.train", "sae_core.storybook.measure"]
HEAVY = {"transformer_lens", "transformers", "datasets", "accelerate", "huggingface_hub"}


def loaded_after(statement: str) -> set[str]:
    """Top-level modules of a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_ground_floor_loads_no_heavy_library():
    loaded = loaded_after("import " + ", ".join(LIGHT))
    assert "sae_core" in loaded and "torch" in loaded
    assert not loaded & HEAVY


def test_the_interpreter_would_show_a_heavy_import():
    """Control: what is imported does show."""
    assert "huggingface_hub" in loaded_after("import huggingface_hub")
