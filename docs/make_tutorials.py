"""Runs the examples and makes a page of each: what it says, its code, what it printed, and its pictures.

python docs/make_tutorials.py FOLDER

A script is cut where a comment at the left margin follows an empty line: the comment becomes prose, what follows it
code. Below each piece of code stands what it printed, the plotly figures that its expressions are (`result.plot()` on
a line of its own), and the pictures (`.svg`, `.png`) that it wrote. Scripts run one after the other, without arguments,
in one folder: the first trains what the others read. One that fails ends it all.
"""

import ast
import io
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILES = "files"
"""Folder beside the pages that holds their pictures."""
PICTURES = (".svg", ".png")
HEAD = "---\nhide: [toc]\n---"
"""Before the text of a page: without sections it needs no list of them, and code has the room."""
HEIGHT = 480
"""Pixels of a figure that does not say how high it is."""


@dataclass(frozen=True)
class Cell:
    """A piece of a script: prose, then code."""

    prose: str
    code: str
    line: int = 1
    """Where the code begins."""


@dataclass(frozen=True)
class Script:
    """An example, taken apart."""

    title: str
    call: str
    """How it is run: `python examples/...`."""
    prose: str
    cells: tuple[Cell, ...]


@dataclass
class Pictures:
    """What a script draws, put beside its page under the script's name and a number."""

    name: str
    folder: Path
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def figure(self, figure: Any) -> str:
        """A plotly figure as a part of a page."""
        file = f"{self.name}_{next(self.numbers)}.html"
        figure.write_html(self.folder / FILES / file, include_plotlyjs="directory", config={"displayModeBar": False})
        height = int(figure.layout.height or HEIGHT) + 20
        return f'<iframe src="{FILES}/{file}" height="{height}" title="Figure" loading="lazy"></iframe>'

    def drawing(self, path: Path) -> str:
        """A picture that was written, as a part of a page."""
        file = f"{self.name}_{next(self.numbers)}{path.suffix}"
        shutil.copyfile(path, self.folder / FILES / file)
        picture = f'<img src="{FILES}/{file}" alt="{path.stem}">'
        return f'<div class="drawing"><a href="{FILES}/{file}">{picture}</a></div>'


OPTIONAL = ("ray",)
"""Libraries that an example may need and that are no part of the installation."""


def read_script(source: str) -> Script:
    """A script, cut into cells; its docstring opens with the title and the call, `Title: \\`python ...\\`.`"""
    tree = ast.parse(source)
    first, _, prose = (ast.get_docstring(tree) or "").partition("\n\n")
    title, call = re.fullmatch(r"(.+): `(python [^`]+)`\.", first).groups()
    lines, begin = source.splitlines(), tree.body[0].end_lineno
    cuts = [n for n in range(begin, len(lines)) if re.match("# ", lines[n]) and not lines[n - 1].strip()]
    pieces = [(n, lines[n:end]) for n, end in zip([begin, *cuts], [*cuts, len(lines)], strict=True)]
    return Script(title, call, prose.strip(), tuple(cell for n, piece in pieces if (cell := _cell(n, piece))))


def _cell(begin: int, lines: list[str]) -> Cell | None:
    """Lines of a script, `begin` of them being before these; None where there is nothing in them."""
    comments = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    blank = next((n for n, line in enumerate(lines[comments:]) if line.strip()), 0)
    code = "\n".join(lines[comments + blank :]).rstrip()
    prose = "\n".join(line.removeprefix("#").strip() for line in lines[:comments])
    return Cell(prose, code, begin + comments + blank + 1) if prose or code else None


def run_cell(cell: Cell, names: dict[str, Any], path: Path) -> tuple[str, list[Any]]:
    """(What a cell prints, the values of its expressions); `names` are those of the script so far."""
    values = []
    with redirect_stdout(io.StringIO()) as printed:
        for statement in ast.parse("\n" * (cell.line - 1) + cell.code, str(path)).body:
            if isinstance(statement, ast.Expr):
                values.append(eval(compile(ast.Expression(statement.value), str(path), "eval"), names))
            else:
                exec(compile(ast.Module([statement], []), str(path), "exec"), names)
    return printed.getvalue().rstrip(), values


def page(path: Path, folder: Path) -> str:
    """The page of a script, which is run here; its pictures are put into `folder`."""
    script, pictures, names = read_script(path.read_text()), Pictures(path.stem, folder), {"__name__": "__main__"}
    parts, begun, known = [HEAD, f"# {script.title}", script.prose], time.monotonic(), _drawn()
    needs = [name for name in OPTIONAL if f"import {name}\n" in path.read_text() and not find_spec(name)]
    for cell in script.cells:
        printed, values = run_cell(cell, names, path) if not needs else ("", [])
        parts += [cell.prose, fenced("python", cell.code)]
        parts += [fenced("{ .text .output }", printed)] if printed else []
        parts += [pictures.figure(value) for value in values if hasattr(value, "write_html")]
        parts += [pictures.drawing(drawing) for drawing in sorted(_drawn() - known)]
        known = _drawn()
    if needs:
        return "\n\n".join(filter(None, [*parts, f"Not run here: {needs[0]} is not installed."])) + "\n"
    parts.append(f"Made by running [`{script.call}`]({path.name}), which took {time.monotonic() - begun:.0f} s.")
    return "\n\n".join(filter(None, parts)) + "\n"


def fenced(kind: str, text: str) -> str:
    """A block of code; nothing for no text."""
    return f"```{kind if kind.isalpha() else ' ' + kind}\n{text}\n```" if text else ""


def _drawn() -> set[Path]:
    """The pictures in the folder that scripts run in."""
    return {path for path in Path().rglob("*") if path.suffix in PICTURES}


@contextmanager
def somewhere_else() -> Iterator[None]:
    """Within the block scripts run in an empty folder, without arguments."""
    here, arguments = Path.cwd(), sys.argv
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)
            sys.argv = arguments


def main(folder: Path) -> None:
    """Make every example's page."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / FILES).mkdir(parents=True)
    with somewhere_else():
        for path in sorted((ROOT / "examples").glob("*.py")):
            print(path.name, flush=True)
            sys.argv = [str(path)]
            (folder / f"{path.stem}.md").write_text(page(path, folder))
            shutil.copy(path, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
