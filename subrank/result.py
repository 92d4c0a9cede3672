"""Results of experiments: one shape for all.

`print(result)` says the finding in at most ten lines; `result.plot()` returns a plotly figure; `result.save(folder)`
writes what the verb writes; `result.to_dict()` is what `result.json` holds; `sr.load_result(folder)` reads it back.
"""

import importlib
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from markupsafe import Markup

from sae_core.codec import from_plain
from sae_core.digest import digest
from sae_core.errors import UserError, no_such
from sae_core.files import read_json, user_path, write_json
from sae_core.folders import marks_of, replacing
from sae_core.marks import marked
from sae_core.model.language_model import LanguageModel
from sae_core.storage import SET
from subrank.checking.recomputed import Check

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

RESULT, PROVENANCE = "result.json", "provenance.json"
QUICK = "quick: about a tenth of the usual work, so these numbers are rough; leave --quick out for better ones"
_FILES = ("prompts", "names", "task")
"""Settings that may name a file, of which texts are known by their contexts."""
_PACKAGES = ("torch", "transformers", "transformer-lens", "numpy")
_KINDS = {
    "ioi": "subrank.experiments.ioi:IOI",
    "circuit": "subrank.experiments.circuit_result:CircuitResult",
    "remove": "subrank.experiments.removal:Removal",
    "steer": "subrank.experiments.steering:Steered",
    "features": "subrank.experiments.features:Features",
    "prompt": "subrank.experiments.prompt:PromptResult",
    "evaluate": "subrank.experiments.evaluation:Evaluation",
    "superposition": "subrank.studies.superposition:Superposition",
    "matching": "subrank.studies.matching:Matching",
    "splitting": "subrank.studies.splitting:Splitting",
    "explain": "subrank.studies.explain:Explanations",
    "dark-matter": "subrank.studies.dark_matter:DarkMatter",
    "scaling": "subrank.studies.scaling:Scaling",
}
"""Where the result of each verb is defined."""


@dataclass(frozen=True)
class Provenance:
    """Where numbers come from; `provenance.json`."""

    verb: str
    subrank: str
    python: str
    packages: dict[str, str]
    model: str
    fingerprint: str
    device: str
    settings: dict[str, Any]
    written: str
    dtype: str = "float32"
    """The precision in which the language model computed."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of what else the numbers depend on: dictionaries, text, files of prompts and names."""

    @classmethod
    def of(cls, verb: str, model: LanguageModel | None, settings: Mapping[str, Any], **depends: Any) -> "Provenance":
        """That of a run that ends now, with digests of all that it `depends` on and of the files in its settings.

        A run without a language model is one on the CPU. A text is a digest already.
        """
        from subrank import __version__

        packages = {name: version(name) for name in _PACKAGES}
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        name, fingerprint = (model.name, model.fingerprint()) if model else ("", "")
        known = (verb, __version__, platform.python_version(), packages, name, fingerprint)
        plain = {name: _plain(value) for name, value in settings.items()}
        files = {name: settings[name] for name in _FILES if isinstance(settings.get(name), (str, Path))}
        depends |= {name: path.read_bytes() for name, file in files.items() if (path := user_path(file)).is_file()}
        digests = {name: value if isinstance(value, str) else digest(value) for name, value in depends.items()}
        device, dtype = (str(model.device), str(model.dtype).removeprefix("torch.")) if model else ("cpu", "float32")
        return cls(*known, device, plain, now, dtype, digests)


def quick_note(provenance: Provenance) -> dict[str, str]:
    """What `result.json` says of a run under `--quick`; nothing of others."""
    return {"note": QUICK} if provenance.settings.get("quick") else {}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (int, float, bool, dict, type(None))) else str(value)


@dataclass(frozen=True, eq=False, repr=False)
class Checked:
    """What every result may carry beside its own numbers."""

    check: Check | None = field(default=None, kw_only=True)
    """What was computed again (`--check`); None where nothing was."""


class Result(Checked, ABC):
    """What an experiment returns."""

    verb: ClassVar[str]
    provenance: Provenance

    @abstractmethod
    def lines(self) -> list[str]:
        """The finding in words, the model's own score first; at most ten lines."""

    @abstractmethod
    def figures(self) -> "dict[str, Figure]":
        """Plotly figures by name, the one to look at first coming first."""

    @abstractmethod
    def body(self) -> Markup:
        """The page without its head."""

    @abstractmethod
    def title(self) -> str:
        """The page's title."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain values: what `result.json` holds."""

    @classmethod
    @abstractmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "Result":
        """The result that `to_dict` made `numbers` of."""

    def note(self) -> str:
        """A line that says of quick results that they are; empty for others."""
        return quick_note(self.provenance).get("note", "")

    def plot(self, name: str | None = None) -> "Figure":
        """One of `figures()`, the first by default; shows itself in a notebook."""
        figures = self.figures()
        if not figures:
            raise UserError(f"this result of {self.verb} has nothing to plot")
        if name is None:
            return next(iter(figures.values()))
        if name not in figures:
            raise no_such("figure", name, figures)
        return figures[name]

    def save(self, folder: str | Path, *, assets: Path | None = None) -> Path:
        """Put `result.json`, `provenance.json` and the page in the place of an earlier result; returns the page's path.

        `assets` is the folder that holds, or gets, the one copy of plotly; by default the page's own. Raises
        `UserError` for a folder of dictionaries, whose own numbers have the same names.
        """
        from subrank.pages.check_section import check_section
        from subrank.pages.page import warned, write_page

        folder = check_place(user_path(folder))
        page = f"{self.verb}.html"
        with replacing(folder, RESULT) as new:
            self.write(new)
            body = warned(self.note()) + self.saved_body() + check_section(self.check)
            write_page(new / page, self.title(), body, assets=assets or folder, lies_in=folder)
        return folder / page

    def write(self, folder: Path) -> None:
        """Write everything but the page into a new folder."""
        write_json(folder / PROVENANCE, asdict(self.provenance))
        check = {"check": self.check.to_json()} if self.check else {}
        write_json(folder / RESULT, self.to_dict() | quick_note(self.provenance) | check)

    def saved_body(self) -> Markup:
        """`body`, with links to what `save` writes beside the page."""
        return self.body()

    def __str__(self) -> str:
        ends = filter(None, (self.note(), self.check and self.check.line()))
        return marked("\n".join([*self.lines(), *ends]))

    def _repr_html_(self) -> str:
        from subrank.pages.check_section import check_section
        from subrank.pages.page import fragment, warned

        return fragment(warned(self.note()) + self.body() + check_section(self.check))


def check_place(folder: Path) -> Path:
    """`folder` itself; raises `UserError` where results would take the places of what is known of dictionaries."""
    if (folder / SET).exists() or SET in marks_of(folder):
        raise UserError(f"{folder} is a folder of dictionaries; give another for results, such as {folder / 'results'}")
    return folder


def load_result(folder: str | Path) -> Result:
    """The result that a verb, or `result.save`, wrote into `folder`; raises `UserError` where there is none."""
    folder = user_path(folder)
    if not (folder / RESULT).is_file():
        raise UserError(f"{folder} holds no result (no {RESULT}); give a folder that a verb or result.save wrote")
    card = read_json(folder / PROVENANCE)
    if card.get("verb") in ("train", "import"):
        raise UserError(f"{folder} holds dictionaries, no result; sr.load reads them")
    if card.get("verb") not in [*_KINDS]:
        raise UserError(f"{folder / PROVENANCE} does not say what made it; there are results of {', '.join(_KINDS)}")
    module, _, name = _KINDS[card["verb"]].partition(":")
    kind = getattr(importlib.import_module(module), name)
    try:
        provenance = from_plain(Provenance, card)
    except UserError as error:
        raise UserError(f"{folder / PROVENANCE} is damaged: {error}") from error
    numbers = read_json(folder / RESULT)
    try:
        result = kind.from_dict(numbers, provenance)
        return replace(result, check=from_plain(Check, numbers["check"])) if "check" in numbers else result
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"missing {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{folder / RESULT} is damaged, or not of {card['verb']}: {problem}") from error
