"""Cards of random dictionaries on a random model, for tests of cards and of the pages that show them."""

from handmade import random_topk
from tiny import random_tokens
from torch import Tensor

from circuits.features.card import Card
from circuits.features.catalogue import Catalogue, read_catalogue
from circuits.features.survey import Survey
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site, Stream

SITES = (Site(0), Site(1), Site(1, Stream.MLP_OUT), Site(2))


def contexts(n: int = 20, length: int = 18, *, seed: int = 0, n_vocab: int = 30) -> Tensor:
    tokens = random_tokens(n_vocab, n, length, seed=seed)
    tokens[:, 0] = 0
    tokens[::4, 9] = 0  # a piece that begins within a context
    return tokens


def dictionaries(d_in: int = 32) -> dict:
    return {site: random_topk(d_in, seed=number) for number, site in enumerate(SITES)}


def random_catalogue(model: LanguageModel) -> Catalogue:
    return read_catalogue(Survey(model, dictionaries()), contexts(), contexts(seed=1))


def full_cards(catalogue: Catalogue, per_site: int = 2) -> list[Card]:
    """The full cards of the first latents of each site that are active."""
    return list(
        catalogue.full([FeatureId(site, index) for site in SITES for index in catalogue.alive(site)[:per_site]])
    )


def codes(catalogue: Catalogue, site: Site) -> Tensor:
    """Dense codes `[contexts, pos, n_latents]`, 0 on special tokens."""
    h = catalogue.model.record(catalogue.training, [site])[site]
    return catalogue.dictionaries[site].encode(h) * catalogue.model.content(catalogue.training)[..., None]
