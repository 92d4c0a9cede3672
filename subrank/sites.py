"""Sites and features as people write them."""

from collections.abc import Iterable

from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site, Stream


def sites_of(model: LanguageModel, names: Iterable[str]) -> tuple[Site, ...]:
    """Sites named one by one or by stream, checked against the model; raises `UserError` for any other name."""
    sites: list[Site] = []
    for name in names:
        sites += model.sites(Stream(name)) if name in set(Stream) else [model.check(Site.parse(name))]
    return tuple(sorted(set(sites)))
