"""Arrows run down only, one file knows the model library, and light modules stay light to import."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("sae_core", "editing", "circuits", "subrank")


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
    return sorted((ROOT / floor).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def arrows() -> nx.DiGraph:
    """Which module of ours imports which, inside functions as well; a package's `__init__` imports nothing of ours."""
    modules = {dotted(path): path for floor in FLOORS for path in files(floor)}
    graph = nx.DiGraph()
    for module, path in modules.items():
        names = imported(path) & modules.keys()
        lowest = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
        graph.add_edges_from((module, name) for name in lowest)
    return graph


def room(module: str, depth: int) -> str:
    """The folder that a module stands in, at most `depth` names long, or the module itself where it stands higher."""
    parts = module.split(".")
    return ".".join(parts[:depth]) if len(parts) > depth else module


def test_what_is_imported_is_declared():
    """Also inside of functions: what another dependency happens to bring may go with its next release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = chain(project["dependencies"], *project["optional-dependencies"].values())
    names = {re.split("[[<>=]", each)[0].replace("-", "_") for each in declared} | {"sklearn"}  # scikit-learn
    imported_names = {name for floor in FLOORS for path in files(floor) for name in packages(path)}
    assert imported_names - {*FLOORS, *sys.stdlib_module_names} <= names


def circles(graph: nx.DiGraph) -> list[set[str]]:
    return [part for part in nx.strongly_connected_components(graph) if len(part) > 1]


@pytest.mark.parametrize("floor", FLOORS)
def test_no_floor_imports_from_above(floor):
    above = set(FLOORS[FLOORS.index(floor) + 1 :]) | {"tests", "examples", "benchmarks"}
    assert files(floor)
    for path in files(floor):
        assert not packages(path) & above, path


def test_no_circles_among_modules_nor_among_rooms():
    graph = arrows()
    assert graph.number_of_edges() > 100
    assert not circles(graph)
    for depth in (2, 3):  # rooms, and rooms within them
        passages = {(room(a, depth), room(b, depth)) for a, b in graph.edges}
        assert not circles(nx.DiGraph(passage for passage in passages if passage[0] != passage[1])), depth


def test_a_circle_would_be_seen():
    """Control for the test above."""
    assert circles(nx.DiGraph([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")])) == [{"a", "b", "c"}]


def test_the_parser_sees_imports(tmp_path):
    """Control for the tests above."""
    (tmp_path / "a.py").write_text(
        "def f():\n    from editing.interventions.patch import x\n    import circuits.graph as g\n"
    )
    assert packages(tmp_path / "a.py") == {"editing", "circuits"}
    assert "sae_core" in packages(ROOT / "sae_core" / "storage.py")


def test_only_models_knows_the_model_library():
    knowing = {
        path.relative_to(ROOT) for floor in FLOORS for path in files(floor) if "transformer_lens" in packages(path)
    }
    assert knowing == {Path("sae_core/model/language_model.py")}


LIGHT = sorted(dotted(path) for path in files("sae_core") if "triton" not in packages(path))
HEAVY = {"transformer_lens", "transformers", "datasets", "accelerate", "huggingface_hub"}


def loaded_after(statement: str) -> set[str]:
    """Top-level modules of a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.slow
def test_importing_the_ground_floor_loads_no_heavy_library():
    loaded = loaded_after("import " + ", ".join(LIGHT))
    assert "sae_core" in loaded and "torch" in loaded
    assert not loaded & HEAVY


def test_the_interpreter_would_show_a_heavy_import():
    """Control: what is imported does show."""
    assert "huggingface_hub" in loaded_after("import huggingface_hub")
