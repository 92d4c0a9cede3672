"""What features respond to, in words, and what the words are worth (Bills et al. 2023; Cunningham et al. 2023, 3).

1. Features are drawn at random, and beside them neurons, principal and independent components, random directions
   (`explaining/methods.py`). Each is explained on training contexts, by a rule (`circuits/features/explanations.py`) or
   by a language model that is shown the fragments of text with its highest activations (`llm/questions.py`).
2. On held-out contexts its activations are simulated from the explanation alone, and compared with the true ones: the
   source's "interpretability", by layer. Fragments that hold the feature are told from others (detection), and tokens
   on which it is active from others (fuzzing) (`simulating/fragments.py`, `simulating/simulation.py`).
3. Control: the same for explanations that belong to another feature of the site.

Cost: the text read twice, and about 15,000 tokens per direction for its rule. With a language model a question per
explanation, one per simulated fragment, and one for each five texts that are told apart; each is asked once
(`llm/answers.py`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from markupsafe import Markup

from sae_core.codec import from_plain, to_plain
from sae_core.errors import UserError
from sae_core.files import user_path
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from subrank.experiments.cost import announce, feature_parts, pass_over
from subrank.pages.names import write_names
from subrank.progress import shown
from subrank.result import Provenance, Result
from subrank.saes import Saes, by_name, folders_of, text_of
from subrank.settings.fields import make, takes
from subrank.settings.model_size import fitted
from subrank.settings.studies import ExplainSettings
from subrank.studies.explaining.claims import claims_by_model, claims_by_rule, language_model_of
from subrank.studies.explaining.methods import beside_methods, set_methods, sites_of
from subrank.studies.explaining.page import as_names, explain_section, layers_figure, sentences
from subrank.studies.explaining.rows import RULES, Explained, Shown, Tally, rows_of, shown_of
from subrank.studies.explaining.subjects import subjects_of
from subrank.studies.llm.answers import Answers
from subrank.studies.sample import drawn

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Explanations(Result):
    """Explanations of features, and their scores beside those of other directions and of shuffled explanations."""

    verb: ClassVar[str] = "explain"
    by: str
    """Who explains and simulates: rules, or a language model."""
    rows: tuple[Explained, ...]
    shown: tuple[Shown, ...]
    """A few fragments with true and simulated activations."""
    tally: Tally
    provenance: Provenance

    def title(self) -> str:
        return f"Explanations of features by {self.by}"

    def lines(self) -> list[str]:
        return sentences(self.by, self.rows, self.tally, self.seed)

    def figures(self) -> "dict[str, Figure]":
        return {"layers": layers_figure(self.rows, self.seed)}

    def body(self) -> Markup:
        return explain_section(self.rows, self.shown, self.lines(), self.plot(), self.seed)

    @property
    def seed(self) -> int:
        """Of the intervals."""
        return self.provenance.settings["seed"]

    def names(self) -> dict[str, str]:
        """Explanations as names of features, of a single set: what `--names` reads."""
        return as_names(self.rows) if len(self.provenance.settings["sets"]) == 1 else {}

    def write(self, folder: Path) -> None:
        """As every result, and `names.json`."""
        super().write(folder)
        if names := self.names():
            write_names(folder / "names.json", names, run="explain")

    def to_dict(self) -> dict[str, Any]:
        parts = {"rows": self.rows, "shown": self.shown, "tally": self.tally}
        return {"by": self.by} | {name: to_plain(part) for name, part in parts.items()}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "Explanations":
        rows = tuple(from_plain(Explained, row) for row in numbers["rows"])
        shown = tuple(from_plain(Shown, each) for each in numbers["shown"])
        return cls(numbers["by"], rows, shown, from_plain(Tally, numbers["tally"]), provenance)


@takes(ExplainSettings)
def explain(
    model: LanguageModel,
    saes: Saes | Mapping[str, Saes],
    *,
    folder: str | Path | None = None,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Explanations:
    """What features respond to, by rules or by a language model, and what these explanations are worth.

    Answers of a language model are kept in `folder`, where there is one, and not asked for again.
    """
    sets, chosen = by_name(saes), make(ExplainSettings, settings)
    with shown("explain", progress, on_progress) as report:
        return run_explain(model, sets, chosen, report, folder=user_path(folder) if folder else None)


def run_explain(
    model: LanguageModel,
    sets: Mapping[str, Saes],
    settings: ExplainSettings,
    on_progress: OnProgress = silent,
    *,
    folder: Path | None = None,
) -> Explanations:
    """`explain` with its settings made; answers are kept in `folder`."""
    sites_of(sets, settings)  # before anything slow
    asked = language_model_of(settings, model.device)
    model, *_ = [saes.on(model) for saes in sets.values()]
    settings = fitted(settings, model.block_weights, on_progress)
    text, _ = text_of(sets, settings.text)
    Stages(on_progress).begin(f"reading {text.source}")
    contexts = text.read(model)
    texts = (
        drawn(contexts.training_apart, settings.contexts, settings.seed),
        drawn(contexts.held_out, max(2, settings.contexts // 2), settings.seed),
    )
    announce_cost(model, sets, settings, sum(map(len, texts)), text.n_ctx, on_progress)
    methods = set_methods(sets, model, texts, settings, on_progress)
    methods += beside_methods(sets, model, texts, settings, on_progress)
    subjects = [subject for method in methods for subject in subjects_of(method, settings, on_progress)]
    if not any(subject.method.is_set for subject in subjects):
        raise UserError("no feature is active on both parts of this text; give more --contexts, or another --text")
    answers = Answers(asked, folder, at_once=settings.llm_at_once) if asked else None
    claims = claims_by_model(subjects, answers, settings.seed, on_progress) if answers else claims_by_rule(subjects)
    tally = Tally(
        silent=sum(len(method.features) for method in methods) - len(subjects),
        asked=answers.n_asked if answers else 0,
        known=answers.n_known if answers else 0,
        problems=tuple(answers.problems[:5]) if answers else (),
    )
    known = asdict(settings) | folders_of(sets)
    depends = {name: saes.dictionaries for name, saes in sets.items()}, ((asked.name, asked.place) if asked else "")
    provenance = Provenance.of(Explanations.verb, model, known, dictionaries=depends, text=contexts.digest)
    examples = shown_of(claims, methods[0].catalogue.names)
    return Explanations(asked.name if asked else RULES, rows_of(claims), examples, tally, provenance)


def announce_cost(
    model: LanguageModel,
    sets: Mapping[str, Saes],
    settings: ExplainSettings,
    n_contexts: int,
    length: int,
    on_progress: OnProgress,
) -> None:
    """Say how long reading and the rules take."""
    dictionaries = {site: d for saes in sets.values() for site, d in saes.dictionaries.items()}
    sites = {site: dictionaries[site] for site in sites_of(sets, settings)}
    n = settings.features * len(sites) * (len(sets) + len(settings.beside))
    *_, rules = feature_parts(model, sites, 0, n, length).values()
    read = pass_over(model, (len(sets) + bool(settings.beside)) * n_contexts, length, list(sites))
    announce(model, {"": sites}, {f"{n_contexts} contexts read": read, f"rules for {n} directions": rules}, on_progress)
