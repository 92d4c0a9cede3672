"""Puts the pages of the site together, each made from what is written once: `make docs`.

python docs/make_site.py build/docs      # build/docs/pages and build/docs/mkdocs.yml, from which mkdocs builds the site

The pages lie as in the repository, so that links among them hold: the README is the front page, docs/*.md are the
guides, build/docs/tutorials (`make_tutorials.py`) becomes examples/. The reference names modules and objects, whose
docstrings mkdocstrings reads.
"""

import json
import re
import runpy
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import subrank as sr
from subrank.settings.studies import STUDIES

ROOT = Path(__file__).resolve().parents[1]
SHARED = "README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE CITATION.cff benchmarks/RESULTS.md".split()
"""Files beside those in docs/ that are pages, or that pages link to."""
GUIDES = ("families", "texts", "formats", "results", "scale", "coming_from", "glossary")
"""Files in docs/ in the order in which they are read; others follow."""
ELSEWHERE = ("quickstart", "studies", "options")
"""Files in docs/ that stand under other headings."""
ROOMS = {
    "sae_core": "model data dictionaries training evaluation formats storybook",
    "editing": "interventions engine tasks ioi removal steering",
    "circuits": "features effects discovery scoring prompt_view",
    "subrank": "settings studies",
}
"""Packages and their rooms with names for others to use."""
Nav = list[dict[str, Any]]


def navigation(scripts: Sequence[str]) -> Nav:
    """The site's pages by title; `scripts` are the examples' names, that of a study's ending in the study's."""
    of_studies = {name: next((s for s in scripts if s.endswith(f"_{name.replace('-', '_')}")), "") for name in STUDIES}
    others = sorted({path.stem for path in (ROOT / "docs").glob("*.md")} - {*GUIDES, *ELSEWHERE})
    tutorials = [script for script in scripts if script not in of_studies.values()]
    return [
        {"Home": "README.md"},
        {"Tutorials": [{"Quickstart": "docs/quickstart.md"}, *(f"examples/{name}.md" for name in tutorials)]},
        {
            "Studies": [
                {"All studies": "docs/studies.md"},
                *({name.replace("-", " ").capitalize(): f"examples/{s}.md"} for name, s in of_studies.items() if s),
            ]
        },
        {"Guides": [f"docs/{name}.md" for name in (*GUIDES, *others)]},
        {
            "Reference": [
                {"Command and settings": "docs/options.md"},
                {"import subrank as sr": "reference/facade.md"},
                *({package: [f"reference/{name}.md" for name in rooms_of(package)]} for package in ROOMS),
            ]
        },
        {
            "Project": [
                {"Benchmarks": "benchmarks/RESULTS.md"},
                {"Contributing": "CONTRIBUTING.md"},
                {"Changes": "CHANGELOG.md"},
                {"Security": "SECURITY.md"},
            ]
        },
    ]


# ---- the reference ---------------------------------------------------------------------------------


def rooms_of(package: str) -> dict[str, list[str]]:
    """The modules on each page of a package, by the name of a room; those outside of rooms come first."""

    def modules(paths: Iterable[Path]) -> list[str]:
        dotted = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(paths))
        return [name for name in dotted if "._" not in name]

    folder = ROOT / package
    rooms = {f"{package}.{room}": modules((folder / room).rglob("*.py")) for room in ROOMS[package].split()}
    return {package: modules(folder.glob("*.py"))} | rooms


def object_of(name: str, heading: str, level: int = 2, **options: Any) -> str:
    """What mkdocstrings replaces by the documentation of a module, class or function."""
    options |= {"heading": heading, "toc_label": heading, "heading_level": level}
    return "\n".join([f"::: {name}", "    options:", *(f"      {k}: {json.dumps(v)}" for k, v in options.items()), ""])


def facade() -> str:
    """The page of the names that `import subrank as sr` offers, with the settings that each takes."""
    rows = runpy.run_path(str(ROOT / "docs" / "make_options.py"))["VERBS"]
    slugs = {
        name: re.sub(r"[^\w\s-]", "", f"{verb} ({functions})").strip().lower().replace(" ", "-")
        for verb, (functions, _) in rows.items()
        for name in functions.split(", ")
    }
    parts = ["# import subrank as sr\n", sr.__doc__ or ""]
    for name in sorted(sr.__all__, key=lambda name: (name[0].isupper(), name)):
        parts.append(object_of(f"{sr._HOMES[name]}.{name}", f"sr.{name}", skip_local_inventory=True))
        if slug := slugs.get(f"sr.{name}"):
            parts.append(f"Settings, as keywords: [those of the command](../docs/options.md#{slug}).\n")
    return "\n".join(parts)


def room(name: str, modules: Sequence[str]) -> str:
    """The page of a room: what it is for, and its modules."""
    parts = [f"# {name}\n", object_of(name, name, members=False, show_root_heading=False)]
    return "\n".join([*parts, *(object_of(module, module.removeprefix(f"{name}.")) for module in modules)])


# ---- on disk ---------------------------------------------------------------------------------------


def pages() -> Iterator[tuple[str, str]]:
    """(Place, text) of the pages that stand in no file."""
    yield "reference/facade.md", facade()
    for package in ROOMS:
        for name, modules in rooms_of(package).items():
            yield f"reference/{name}.md", room(name, modules)


def main(folder: Path) -> None:
    """Write the pages and the configuration, in the place of earlier ones."""
    place = folder / "pages"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ROOT / "docs", place / "docs", ignore=shutil.ignore_patterns("*.py", "*.yml", "__pycache__"))
    shutil.copytree(folder / "tutorials", place / "examples")
    for name in SHARED:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    for name, text in pages():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    scripts = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
    first = f"examples/{scripts[0]}.md"
    front = (place / "README.md").read_text().replace("](examples)", f"]({first})")  # a folder is no page
    (place / "README.md").write_text(front)
    basis = {"INHERIT": str(ROOT / "docs" / "mkdocs.yml"), "docs_dir": "pages", "site_dir": "site"}
    (folder / "mkdocs.yml").write_text(json.dumps(basis | {"nav": navigation(scripts)}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
