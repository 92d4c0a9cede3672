"""Ways to choose features: a model in which the right set is known, and slow walks beside the fast ones."""

from dataclasses import replace

import pytest
import torch
from handmade import HandModel, random_topk
from plain_patching import full_logits, patch, plain_kl, random_pairs
from planted import unchecked
from tiny import user_error

from editing.ioi.curve import trace
from editing.ioi.feature_selection import SELECTORS, SelectionConfig, attribution, greedy, random, threshold
from editing.ioi.feature_sets import Patching
from editing.ioi.site_experiment import PatchExperiment
from editing.tasks.pairs import PromptPairs
from sae_core.dictionaries.baselines import Basis, random_basis
from sae_core.seeds import generator_for
from sae_core.sites import Site

CONFIG = SelectionConfig(n_greedy=4, shortlist=8, n_thresholds=12)
CARRIERS = {2, 5, 7}


def planted() -> Patching:
    """Sixteen features differ between the runs; three of them alone are copied to where the answer is read.

    Prompts are BOS, a token with random features, and a token with none; block 1 moves the carriers, and only
    them, from the second position to the third, along directions that the answers are read from.
    """
    d = random_basis(24, generator=torch.Generator().manual_seed(0)).directions
    tokens = torch.rand(40, 16, generator=torch.Generator().manual_seed(1))
    tokens[:12, sorted(CARRIERS)] += 1  # more of each in the clean runs: every carrier helps
    embedding = torch.zeros(43, 24)
    embedding[1:41] = tokens @ d[:16]
    embedding[41], embedding[42] = 0.3 * d[16], 0.3 * d[17]  # the answers
    move = sum(2.0 * torch.outer(d[16], d[j]) for j in sorted(CARRIERS))
    zero = torch.zeros(24, 24)
    model = HandModel(embedding, [(zero, zero), (zero, move)])
    clean, corrupted = (torch.tensor([[0, t, 0] for t in chosen]) for chosen in (range(1, 13), range(13, 25)))
    model.special_ids = frozenset()
    answer, foil, end = (torch.full((12,), number) for number in (41, 42, 2))
    pairs = PromptPairs("planted", clean, corrupted, answer, foil, foil, end, torch.arange(12))
    return PatchExperiment(model, pairs, Site(0)).patching(Basis(d[:16], torch.zeros(24)))


@pytest.mark.parametrize("name", ["greedy", "attribution", "threshold"])
def test_the_features_that_carry_the_answer_come_first(name):
    patching = planted()
    chosen = SELECTORS[name](patching, CONFIG, seed=0)
    assert set(chosen.order[:3]) == CARRIERS
    kl = trace(patching, chosen.order, [0, 2, 3, 16]).readout.kl.mean(1)
    assert kl[2] == pytest.approx(0, abs=1e-6) and kl[3] == pytest.approx(0, abs=1e-6) and kl[0] > 10 * kl[2] + 0.01
    if name == "threshold":
        assert 3 in chosen.counts  # a set that the method itself proposes


def test_random_order_does_not_find_them():
    patching = planted()
    orders = [random(patching, CONFIG, seed=seed).order for seed in range(20)]
    assert sum(set(order[:3]) == CARRIERS for order in orders) <= 1 and len(set(orders)) == 20
    assert random(patching, CONFIG, seed=3).order == orders[3]


@pytest.fixture(scope="module")
def experiment(tiny_models) -> PatchExperiment:
    return PatchExperiment(tiny_models["neox"], random_pairs(tiny_models["neox"]), Site(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", SELECTORS)
def test_every_latent_is_there_once_and_those_that_differ_before_others(experiment, name):
    sae = random_topk(32)
    chosen = SELECTORS[name](experiment.patching(sae), replace(CONFIG, n_greedy=48, shortlist=48), seed=0)
    assert sorted(chosen.order) == list(range(48))
    differs = experiment.patching(sae).differs.any(0)
    if name != "attribution":
        assert 0 < differs.sum() < 48 and differs[list(chosen.order[: int(differs.sum())])].all()


# ---- greedy ----------------------------------------------------------------------------------------


def test_greedy_is_the_brute_force_search(experiment):
    """Keep the latent after which the KL is least, every trial a full forward from the tokens."""
    sae, chosen = random_topk(32), []
    ranked = attribution(experiment.patching(sae), CONFIG, seed=0).order
    for _ in range(3):
        trials = {}
        for latent in ranked[:8]:
            if latent not in chosen:
                logits = full_logits(experiment, patch(experiment, sae, [*chosen, latent]))
                trials[latent] = plain_kl(experiment.answers.clean, logits)
        chosen.append(min(trials, key=trials.get))
    got = greedy(experiment.patching(sae), replace(CONFIG, n_greedy=3), seed=0)
    assert list(got.order[:3]) == chosen
    assert list(got.order[3:]) == [j for j in ranked if j not in chosen]
    assert 2 * 3 + 3 <= got.forwards <= 3 * (2 + 8 + 7 + 6)


def test_without_greedy_search_the_estimate_alone_decides(experiment):
    sae = random_topk(32)
    got = greedy(experiment.patching(sae), replace(CONFIG, n_greedy=0), seed=0)
    assert got == attribution(experiment.patching(sae), CONFIG, seed=0) and got.forwards == 6
    order = experiment.patching(sae).first_order().argsort(descending=True, stable=True)
    assert list(got.order) == order.tolist()


# ---- thresholds ------------------------------------------------------------------------------------


def plain_walk(experiment: PatchExperiment, dictionary, n_thresholds: int, seed: int) -> list[set[int]]:
    """The source's procedure, one trial at a time: the set that is left after each tau."""
    patching = experiment.patching(dictionary)
    kept, left = patching.differs.any(0).nonzero()[:, 0].tolist(), []

    def kl(latents: list[int]) -> float:
        readout = trace(patching, latents, [len(latents)]).readout
        return readout.kl[0].mean().item()

    for number, tau in enumerate(torch.logspace(-5, 0, n_thresholds).tolist()):
        order = torch.randperm(len(kept), generator=generator_for(seed, "walk", number)).tolist()
        for latent in [kept[i] for i in order]:
            without = [j for j in kept if j != latent]
            if kl(without) - kl(kept) < tau:
                kept = without
        left.append(set(kept))
    return left


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_batched_walk_is_the_walk_one_at_a_time(experiment, seed):
    sae = random_topk(32)
    got = threshold(experiment.patching(sae), CONFIG, seed=seed)
    with unchecked():
        left = plain_walk(experiment, sae, 12, seed)
    assert len(set(map(len, left))) > 4  # control: it does prune step by step
    for kept in left:
        assert set(got.order[: len(kept)]) == kept and len(kept) in got.counts
    assert got.counts[0] == 0 and got.counts[-1] == 48
    differs = int(experiment.patching(sae).differs.any(0).sum())
    assert got.forwards < 3 * (differs + sum(map(len, left)))  # prompts that are as before are not run


# ---- bad input -------------------------------------------------------------------------------------


def test_negative_sizes_are_refused():
    with user_error("shortlist", "-1"):
        SelectionConfig(shortlist=-1)
