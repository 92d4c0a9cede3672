"""Sites as people write them: one by one, by stream, by range, and as other tools call them."""

from collections.abc import Iterable

from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.model.named_sites import site_named
from sae_core.sites import BEFORE, Site, Stream, sites_in


def sites_of(model: LanguageModel, names: Iterable[str]) -> tuple[Site, ...]:
    """The sites that `names` stand for, checked against the model; raises `UserError` for any other name.

    A name is a site (`resid_post.3`), a stream for all its layers, a range of layers (`mlp_out.2-5`, both ends in it),
    or a hook point or module of the model (`blocks.3.mlp.hook_post`, `layers.3.mlp`).
    """
    return tuple(sorted({site for name in names for site in _sites(model, name)}))


def _sites(model: LanguageModel, name: str) -> list[Site]:
    if name in set(Stream):
        return model.sites(Stream(name))
    if name == BEFORE:
        return model.sites()[:-1]
    if name.count(".") > 1:
        return [site_named(model, name)]
    return [model.check(site) for site in sites_in(name)]


def one_site(model: LanguageModel, name: str) -> Site:
    """The one site that `name` stands for; raises `UserError` for a stream or a range."""
    sites = _sites(model, name)
    if len(sites) != 1:
        raise UserError(f"{name} stands for {len(sites)} sites; give one, such as {sites[0]}")
    return sites[0]
