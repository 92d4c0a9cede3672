"""`sr.import_saes`, `subrank import`: a set of other people's dictionaries, so that every experiment runs on it."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from editing.set_quality import measure_set
from sae_core.data.activations import harvest
from sae_core.data.documents import check_column
from sae_core.data.reading import bos_of
from sae_core.data.text import Text
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.normalised import Centred
from sae_core.errors import UserError
from sae_core.formats.readers import Foreign, load_foreign
from sae_core.model.language_model import LanguageModel
from sae_core.model.named_sites import site_named
from sae_core.outliers import norm_limit
from sae_core.progress import OnProgress, Progress, silent
from sae_core.sites import Site
from sae_core.storage import DictionarySet
from subrank.experiments.cost import announce, pass_over, quality_parts
from subrank.hub_sets import local_path, place_of
from subrank.progress import shown
from subrank.saes import Saes, a_model
from subrank.settings.experiments import ImportSettings
from subrank.settings.fields import make, takes
from subrank.sites import one_site

log = logging.getLogger(__name__)
LIMITED_BY = 64
"""Contexts by whose median norm it is told which tokens are outliers."""


@takes(ImportSettings)
def import_saes(
    files: Sequence[str | Path] | str | Path,
    model: LanguageModel,
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Saes:
    """A set of the dictionaries in `files` for `model`, one per site.

    Files of SAELens, OpenAI, Gemma Scope, sparsify and dictionary-learning are read, and safetensors of these on the
    Hugging Face hub: `hf:OWNER/NAME@REVISION/FOLDER`. Raises `UserError`, which names
    the file, where one cannot be loaded or is of another width than the model, and where two are for one site.
    """
    a_model(model)
    several = [files] if isinstance(files, (str, Path)) else files
    if not isinstance(several, Sequence) or not several:
        raise UserError(f"{files!r} is no file of dictionaries; give at least one, or a list of them")
    paths = [local_path(file) for file in several]
    chosen = make(ImportSettings, settings)
    foreign = [load_foreign(path) for path in paths]
    with shown("import", progress, on_progress) as report:
        return run_import(paths, foreign, model, chosen, report)


def run_import(
    files: Sequence[Path],
    foreign: Sequence[Foreign],
    model: LanguageModel,
    settings: ImportSettings,
    on_progress: OnProgress = silent,
) -> Saes:
    """`import_saes` of files that are loaded already."""
    known = [each.n_ctx for each in foreign if each.n_ctx and each.n_ctx > 1]
    n_ctx = min(128, model.n_ctx, *known) if settings.context is None else settings.context
    bos = bos_of(model, settings.bos) if settings.bos or _prepend_bos(foreign) else False
    text = Text(settings.text, n_ctx, bos, settings.tokens, settings.column, settings.seed)
    check_column(text.source, text.column)
    sites = [one_site(model, name) for name in settings.at] if settings.at else None
    plain, contexts = gather(files, foreign, model, text, sites), text.read(model)
    plain = replace(plain, text=replace(text, digest=contexts.digest))
    few, n_held = contexts.training[:LIMITED_BY], len(contexts.held_out)
    read = {f"norms on {len(few)} contexts": pass_over(model, len(few), n_ctx, plain.sites)}
    announce(model, {"": plain.dictionaries}, {**read, **quality_parts(model, plain.sites, n_held, n_ctx)}, on_progress)
    for site, x in harvest(text.read_by(model), few, tuple(plain.sites)).items():
        plain.dictionaries[site].outlier_norm = norm_limit(x.norm(dim=-1), settings.outliers)
    on_progress(Progress("measuring on held-out text", 0, None))
    return Saes.of(plain, model, measure_set(text.read_by(model), plain, contexts.held_out))


def notes(files: Sequence[Path], foreign: Sequence[Foreign], model: LanguageModel) -> list[str]:
    """A line for each file that says that it was trained on another model."""
    return [
        f"note: {file} says that it was trained on {each.model_name}, not on {model.name}"
        for file, each in zip(files, foreign, strict=True)
        if each.model_name and _bare(each.model_name) != _bare(model.name)
    ]


def _bare(name: str) -> str:
    """A model's name without the folder or the account that it lies in, and by one spelling."""
    return {"gpt2-small": "gpt2"}.get(bare := Path(name).name.lower(), bare)


def gather(
    files: Sequence[Path],
    foreign: Sequence[Foreign],
    model: LanguageModel,
    text: Text,
    at: Sequence[Site] | None = None,
) -> DictionarySet:
    """The set of loaded dictionaries, each at the site that `at` gives it, or else at the one that it names."""
    if at is not None and len(at) != len(files):
        raise UserError(f"{len(files)} files, but {len(at)} sites; give one site for each file, in their order")
    dictionaries: dict[Site, Any] = {}
    origin: dict[str, str] = {}
    for file, each, wanted in zip(files, foreign, at or [None] * len(files), strict=True):
        try:
            site = _site(file, each.place, wanted, model)
            width, expected = each.dictionary.directions.shape[-1], model.d_in(site)
            if width != expected:
                raise UserError(
                    f"it reads activations of width {width}; those at {site} of {model.name} have {expected}"
                )
            if site in dictionaries:
                raise UserError(f"it belongs at {site}, as does {origin[str(site)]}; give one file for each site")
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        dictionaries[site] = _meant(each.dictionary.to(model.device), model)
        origin[str(site)] = f"{place_of(file)} ({each.format})"
    return DictionarySet(model.name, model.fingerprint(), text, dictionaries, None, origin)


def _meant(dictionary: Dictionary, model: LanguageModel) -> Dictionary:
    """The dictionary as it is meant for this model: TransformerLens centres only models that cannot tell."""
    if not isinstance(dictionary, Centred):
        return dictionary
    h = torch.linspace(-1, 1, model.d_model, device=model.device)[None].sin()
    blind = torch.allclose(model.unembed(h), model.unembed(h + 1), atol=1e-3)
    return dictionary if blind else dictionary.inner


def _site(file: Path, place: str | None, wanted: Site | None, model: LanguageModel) -> Site:
    """The site that the user names, or else the file; a warning where the file names another."""
    if place is None:
        if wanted is None:
            raise UserError("it does not say where it belongs; name its site with --at, such as --at resid_post.3")
        return wanted
    try:
        stated = site_named(model, place)
    except UserError as error:
        if wanted is None:
            raise UserError(f"{error}; --at SITE reads it elsewhere all the same") from error
        log.warning("%s: %s; it is read at %s all the same", file, error, wanted)
        return wanted
    if wanted not in (None, stated):
        log.warning("%s: it says that it belongs at %s; it is read at %s all the same", file, stated, wanted)
    return wanted or stated


def _prepend_bos(foreign: Sequence[Foreign]) -> bool:
    """Whether the dictionaries were trained with BOS; true where none says so."""
    stated = {each.prepend_bos for each in foreign} - {None}
    if len(stated) > 1:
        raise UserError("some of the files were trained with BOS and some without; say --bos TOKEN or --bos none")
    return stated != {False}
