"""Dark matter: what sparse dictionaries leave unexplained, and how much of that can be known (Engels et al. 2024).

The error e = x - x_hat of each dictionary, on text that no map was fitted on:

1. e and its norm are predicted from x by least squares (`errors/regression.py`). What is predicted of e is the linear
   error L = x W + b, the rest the nonlinear one, N = e - L. Controls and rivals: `errors/fits.py`.
2. What L and N are: what each costs the prediction, and how well dictionaries do that are trained on them
   (`errors/parts.py`).
3. What makes the error less at as many latents: gradient pursuit; a linear map from an earlier site's x_hat.
4. With sets of several sizes: which of L and N falls, and whether the same tokens stay hard.

Each of the paper's findings stands beside ours (`errors/claims.py`). Tokens of massive norm are left out.

Cost: the text read three times by the model, 10 d_in^2 multiply-adds per token, dictionary and pass; for the largest
set the held-out text under four edits at every site, and small dictionaries trained on six parts of each error.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Int
from markupsafe import Markup
from torch import Tensor

from sae_core.codec import from_plain, to_plain
from sae_core.data.text import Contexts
from sae_core.dictionaries.normalised import Normed
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from sae_core.room import check_memory
from sae_core.seeds import generator_for
from sae_core.sites import Site
from sae_core.training.loop import train
from subrank.progress import shown
from subrank.result import Provenance, Result
from subrank.saes import Saes, by_name, folders_of, text_of
from subrank.settings.fields import make, takes
from subrank.settings.studies import DarkMatterSettings
from subrank.studies.cost import announce
from subrank.studies.errors.batches import Place, Reader
from subrank.studies.errors.claims import Claim, claims
from subrank.studies.errors.fits import ErrorFit, SizePair
from subrank.studies.errors.page import dark_matter_section, figures_of, sentences
from subrank.studies.errors.parts import BATCH, PARTS, Rows, dictionary_fvus, loss_shares, pursued, training
from subrank.studies.errors.regression import context_weights
from subrank.studies.errors.report import SiteErrors, site_errors
from subrank.studies.sample import drawn
from subrank.studies.splitting import shared_sites

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PRODUCTS = 12
"""Square matrices of the regressions on an error, `errors/fits.py`, at least."""
Tokens = Int[Tensor, "contexts pos"]
Fits = Mapping[Place, ErrorFit]
Pairs = Mapping[tuple[Place, Place], SizePair]


@dataclass(frozen=True, eq=False, repr=False)
class DarkMatter(Result):
    """What is known of the errors of dictionaries."""

    verb: ClassVar[str] = "dark-matter"
    errors: tuple[SiteErrors, ...]
    """Of every set, the smallest first, and site."""
    claims: tuple[Claim, ...]
    """What the paper finds, and what we do."""
    provenance: Provenance

    def title(self) -> str:
        return f"Dark matter: the errors of {', '.join(dict.fromkeys(each.set for each in self.errors))}"

    def lines(self) -> list[str]:
        return sentences(self.errors, self.claims)

    def figures(self) -> "dict[str, Figure]":
        return figures_of(self.errors)

    def body(self) -> Markup:
        return dark_matter_section(self.errors, self.claims, self.figures())

    def to_dict(self) -> dict[str, Any]:
        return {"errors": to_plain(self.errors), "claims": to_plain(self.claims)}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "DarkMatter":
        errors = tuple(from_plain(SiteErrors, each) for each in numbers["errors"])
        return cls(errors, tuple(from_plain(Claim, each) for each in numbers["claims"]), provenance)


@takes(DarkMatterSettings)
def dark_matter(
    model: LanguageModel,
    saes: Saes | Mapping[str, Saes],
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> DarkMatter:
    """How much of what dictionaries leave unexplained can be predicted, and what the rest is.

    `saes` is a set, or several of one model by name; of several sizes it is compared what becomes of the error.
    """
    sets, chosen = by_name(saes), make(DarkMatterSettings, settings)
    with shown("dark-matter", progress, on_progress) as report:
        return run_dark_matter(model, sets, chosen, report)


def run_dark_matter(
    model: LanguageModel, sets: Mapping[str, Saes], settings: DarkMatterSettings, on_progress: OnProgress = silent
) -> DarkMatter:
    """`dark_matter` with its settings made."""
    sites = shared_sites(sets, settings.site, least=1)
    ordered = sorted(sets, key=lambda name: sum(len(sets[name].dictionaries[site].directions) for site in sites))
    named = {name: sets[name].dictionaries for name in ordered}
    model, *_ = [saes.on(model) for saes in sets.values()]
    text, _ = text_of(sets, settings.text)
    Stages(on_progress).begin(f"reading {text.source}")
    contexts = text.read(model)
    fitted, held = two_parts(contexts, settings, max(model.d_in(site) for site in sites))
    reader = Reader.of(model, named, fitted)
    places = [Place(name, site, earlier_site(model, named[name], site)) for name in ordered for site in sites]
    vocabulary, weights = fitted.unique(), context_weights(len(held), settings.seed)
    check_room([model.d_in(place.site) for place in places], len(vocabulary))
    fits, copies = (
        {p: ErrorFit(named[p.set][p.site], vocabulary, weights, settings.seed) for p in places} for _ in "12"
    )
    smallest, largest = ([place for place in places if place.set == name] for name in (ordered[0], ordered[-1]))
    pairs = {
        (a, b): SizePair(fits[a], fits[b]) for a in smallest for b in places if a.set != b.set and a.site == b.site
    }
    announce(trial(reader, copies, (fitted, held), len(largest), settings), on_progress)
    copies.clear()  # they take as much memory as what follows
    for _ in passes(reader, fits, pairs, (fitted, held), on_progress):
        pass
    for fit in fits.values():
        fit.measured["fvu"] = fit.fvus()
    for (_, place), pair in pairs.items():
        fits[place].measured["smaller"] = pair.r2()
    stages = Stages(on_progress, len(largest))
    for place in largest:
        stages.begin(f"the parts of the error at {place.site}")
        measure_parts(reader, place, fits[place], (fitted, held), settings)
    known = asdict(settings) | folders_of(sets)
    provenance = Provenance.of(DarkMatter.verb, model, known, dictionaries=named, text=contexts)
    judged = claims([fits[place] for place in smallest], [fits[place] for place in largest])
    return DarkMatter(tuple(site_errors(place, fit) for place, fit in fits.items()), judged, provenance)


def check_room(widths: Sequence[int], n_tokens: int) -> None:
    """Raise `UserError` where memory does not suffice for dictionaries of activations of these widths.

    For each of them the mean error of every token, in float32, and the sums of products of its regressions, in float64.
    """
    needed = sum(4 * n_tokens * (d_in + 2) + 8 * PRODUCTS * d_in**2 for d_in in widths)
    check_memory(needed, torch.device("cpu"), "what is summed up for least squares", "name a --site")


def earlier_site(model: LanguageModel, dictionaries: Mapping[Site, Any], site: Site) -> Site | None:
    """The last site with a dictionary that feeds this one; None where none does."""
    return max((each for each in dictionaries if each != site and model.feeds(each, site)), default=None)


def two_parts(contexts: Contexts, settings: DarkMatterSettings, d_in: int) -> tuple[Tokens, Tokens]:
    """(Contexts for fits, contexts to measure on) of other documents; raises `UserError` where there are too few."""
    fitted = drawn(contexts.training_apart, settings.contexts, settings.seed)
    held = drawn(contexts.held_out, settings.held, settings.seed)
    if fitted.numel() < 2 * d_in or len(held) < 2:
        raise UserError(
            f"{len(fitted)} contexts of {fitted.shape[1]} tokens, and {len(held)} to measure on, are too few for "
            f"linear maps of {d_in} dimensions; give more --contexts, or a --text of more"
        )
    return fitted, held


def passes(
    reader: Reader, fits: Fits, pairs: Pairs, parts: tuple[Tokens, Tokens], on_progress: OnProgress
) -> Iterator[None]:
    """Fit on the first part, twice, and measure on the second; yields after every few contexts."""
    steps = (
        ("fitting", "fit", parts[0]),
        ("fitting the parts", "fit_parts", parts[0]),
        ("measuring", "score", parts[1]),
    )
    stages = Stages(on_progress, sum(len(contexts.split(reader.at_once)) for *_, contexts in steps))
    for words, step, contexts in steps:
        for number, batches in enumerate(reader.read([*fits], contexts)):
            stages.begin(f"{words}: context {number * reader.at_once} of {len(contexts)}")
            for place, batch in batches.items():
                getattr(fits[place], step)(batch)
            for (small, large), pair in pairs.items():
                if step != "fit":
                    getattr(pair, step)(batches[small], batches[large])
            yield


def measure_parts(
    reader: Reader, place: Place, fit: ErrorFit, parts: tuple[Tokens, Tokens], settings: DarkMatterSettings
) -> None:
    """What the linear and the nonlinear error of one dictionary are; `fit.measured` has it then."""
    fitted, held = parts
    fit.measured["loss"] = loss_shares(reader.model, place.site, fit, held, reader.limits[place.site])
    rows = reader.rows(place, held, held.numel())
    if settings.pursuit and not isinstance(fit.dictionary, Normed):  # whose latents may be negative, or always active
        fit.measured["pursuit"] = pursued(fit, rows, settings.pursuit)
    if settings.steps:
        for fvus in dictionary_fvus(fit, reader.rows(place, fitted, settings.steps * BATCH), rows, settings):
            fit.measured["dictionaries"] = fvus


def trial(
    reader: Reader, fits: Fits, parts: tuple[Tokens, Tokens], n_places: int, settings: DarkMatterSettings
) -> dict[str, tuple[Iterator[object], int]]:
    """The parts of the study, as `announce` times them."""
    fitted, held = parts
    model, last, d_in = reader.model, Site(reader.model.n_layers - 1), max(reader.model.d_in(p.site) for p in fits)
    chunks = held.split(model.at_once(16))
    n_read = 2 * len(fitted.split(reader.at_once)) + len(held.split(reader.at_once))
    timed: dict[str, tuple[Iterator[object], int]] = {
        f"{2 * len(fitted) + len(held)} contexts": (passes(reader, fits, {}, parts, silent), n_read),
        f"edits at {n_places} sites": ((model.record(tokens, [last]) for tokens in chunks), 3 * n_places * len(chunks)),
    }
    if settings.steps:
        x = torch.randn(4 * BATCH, d_in, generator=generator_for(settings.seed, "trial")).to(model.device)
        rows = Rows({Site(number): x for number in range(len(PARTS))}, settings.seed)
        words = f"dictionaries on {len(PARTS)} parts of {n_places} errors x {settings.steps} steps"
        timed[words] = train(rows, training(rows, settings)), n_places * settings.steps
    return timed
