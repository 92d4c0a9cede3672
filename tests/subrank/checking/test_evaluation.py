"""What `evaluate` reports of dictionaries, by full forward passes; and a fault in each part is seen."""

from dataclasses import replace

import pytest
import torch
from checks import agree, wrong
from handmade import random_topk
from planted import unchecked
from tiny import random_tokens

from editing.loss_recovered import splice_reports
from editing.set_evaluation import Evaluation, evaluation_of
from sae_core.evaluation.profiles import profiles
from sae_core.sites import Site, Stream
from subrank.checking.evaluation import recomputed

SITES = (Site(1), Site(0, Stream.MLP_OUT))


@pytest.fixture(scope="module")
def model(tiny_models):
    return tiny_models["neox"]


@pytest.fixture(scope="module")
def contexts(model) -> torch.Tensor:
    tokens = random_tokens(model.n_vocab, 6, 10)
    tokens[::2, 0] = tokens[0, 5] = model.bos_id
    return tokens


@pytest.fixture(scope="module")
def sets(model, contexts) -> dict:
    """Dictionaries to which a quarter of the tokens are outliers."""
    sets = {"a": {site: random_topk(32, seed=n) for n, site in enumerate(SITES)}}
    for site, dictionary in sets["a"].items():
        dictionary.outlier_norm = model.record(contexts, [site])[site].norm(dim=-1).quantile(0.75).item()
    return sets


@pytest.fixture(scope="module")
def reported(model, sets, contexts) -> Evaluation:
    with unchecked():
        measured = profiles(model, sets, contexts)
        means = {site: profile.mean for site, profile in measured["a"].items()}
        spliced = splice_reports(model, sets, means, contexts[:4])
    return evaluation_of(measured, spliced, {}, text="random", contexts=6, contexts_spliced=4)


def test_every_number_agrees(model, sets, contexts, reported):
    of = agree(recomputed(model, sets, contexts, reported, seed=0))
    assert len(of) == 14 and {"FVU at resid_post.1 of a", "KL, mlp_out.0 of a spliced"} <= {*of}


def test_wrong_numbers_are_named(model, sets, contexts, reported):
    row = reported.sets["a"][Site(1)]
    splice = replace(row.splice, zeroed=replace(row.splice.zeroed, kl=row.splice.zeroed.kl * 1.001))
    rows = reported.sets["a"] | {Site(1): replace(row, fvu=row.fvu + 1e-3, splice=splice)}
    altered = replace(reported, sets={"a": rows})
    named = wrong(recomputed(model, sets, contexts, altered, seed=0))
    assert named == ["FVU at resid_post.1 of a", "KL, resid_post.1 of a zeroed"]


def test_numbers_of_other_dictionaries_disagree(model, sets, contexts, reported):
    """As where the fast path had measured with one wrong bias."""
    other = random_topk(32, seed=0)
    other.outlier_norm, other.b_dec.data[3] = sets["a"][Site(1)].outlier_norm, other.b_dec[3] + 0.05
    named = wrong(recomputed(model, {"a": sets["a"] | {Site(1): other}}, contexts, reported, seed=0))
    assert len(named) >= 2 and all("resid_post.1" in what for what in named)
