"""`editing/set_quality.py`: what a set is worth, and its way to JSON and back."""

import pytest
import torch
from handmade import random_topk

from editing.loss_recovered import SpliceCost, splice_costs
from editing.set_quality import SetQuality, measure_set
from sae_core.data.text import Text
from sae_core.evaluation.profiles import quality
from sae_core.evaluation.reconstruction import Quality
from sae_core.sites import Site
from sae_core.storage import DictionarySet


def test_quality_goes_to_json_and_back():
    site = Site(3)
    worth = SetQuality({site: Quality(0.1, 16.0, 0.0, 100)}, {site: SpliceCost(1.0, 1.1, 3.0)})
    assert SetQuality.from_json(worth.to_json()) == worth
    assert worth.to_json()["resid_post.3"]["loss_recovered"] == pytest.approx(0.95)


def test_reconstruction_is_measured_on_all_contexts_and_splices_on_the_first(tiny):
    by_site = {Site(0): random_topk(tiny.d_model, 24, 4, seed=0)}
    dictionaries = DictionarySet("tiny", tiny.fingerprint(), Text("storybook", 6, False, 700), by_site)
    contexts = torch.randint(tiny.n_vocab, (70, 6), generator=torch.Generator().manual_seed(0))
    worth = measure_set(tiny, dictionaries, contexts)
    assert worth.quality == quality(tiny, by_site, contexts)
    assert worth.cost == splice_costs(tiny, by_site, contexts[:64])
