"""Several sites patched jointly: against full forwards of the formula, each site in the run as patched below it."""

import pytest
import torch
from comparing import close
from handmade import complete_basis, random_topk
from plain_patching import plain_kl, random_pairs
from tiny import user_error

from editing.ioi.curve import floor, trace
from editing.ioi.feature_selection import SELECTORS, SelectionConfig, Selector
from editing.ioi.joint_experiment import JointExperiment, JointPatching
from editing.ioi.site_experiment import PatchExperiment
from editing.tasks.pairs import at_end
from sae_core.sites import FeatureId, Site, Stream

LOWER, HIDDEN, UPPER = Site(0, Stream.MLP_OUT), Site(1, Stream.MLP_HIDDEN), Site(1)
SITES = (LOWER, HIDDEN, UPPER)
CONFIG = SelectionConfig(n_greedy=4, shortlist=6, n_thresholds=3)


def dictionaries(experiment: JointExperiment) -> dict:
    return {site: random_topk(x.shape[-1], 24, seed=site.layer) for site, x in experiment.x.items()}


@pytest.fixture
def experiment(tiny) -> JointExperiment:
    return JointExperiment(tiny, random_pairs(tiny), SITES)


@pytest.fixture(scope="module")
def patching(tiny_models) -> JointPatching:
    experiment = JointExperiment(tiny_models["gpt2"], random_pairs(tiny_models["gpt2"]), (LOWER, UPPER))
    return experiment.patching(dictionaries(experiment))


class PlainPatch:
    """x' = x_bar + sum_i (c_i - c_bar_i) f_i, token by token; notes |x' - x_bar|."""

    def __init__(self, site, dictionary, x, mask, latents):
        self.site, self.settings, self.sizes = site, (dictionary, x, mask, latents), []

    def __call__(self, h):
        dictionary, x, mask, latents = self.settings
        h = h.clone()
        for pos in mask.nonzero()[:, 0].tolist():
            c, c_bar = dictionary.encode(x[0, pos]), dictionary.encode(h[0, pos])
            moved = sum(((c[i] - c_bar[i]) * dictionary.directions[i] for i in latents), torch.zeros_like(h[0, pos]))
            h[0, pos] += moved
            self.sizes.append(moved.norm())
        return h


def reference(experiment: JointExperiment, saes: dict, features: list[FeatureId]) -> torch.Tensor:
    """KL and edit size of every prompt alone, by full forwards from the tokens."""
    model, pairs, rows = experiment.model, experiment.pairs, []
    for row, end in enumerate(pairs.end.tolist()):
        clean, corrupted = pairs.clean[row : row + 1, : end + 1], pairs.corrupted[row : row + 1, : end + 1]
        x, mask = model.record(clean, saes), experiment.mask[row, : end + 1]
        edits = [
            PlainPatch(site, sae, x[site], mask, [f.index for f in features if f.site == site])
            for site, sae in saes.items()
        ]
        with model.hooks(*edits):
            patched = model.logits(corrupted)[:, -1]
        size = sum(torch.stack(edit.sizes).mean() for edit in edits)
        rows.append(torch.stack([torch.tensor(plain_kl(model.logits(clean)[:, -1], patched)), size]))
    return torch.stack(rows)


def test_every_point_is_that_of_the_formula_in_the_run_as_patched_below(experiment):
    saes = dictionaries(experiment)
    patching, order = (
        experiment.patching(saes),
        torch.randperm(72, generator=torch.Generator().manual_seed(0)).tolist(),
    )
    features, counts = [patching.feature(number) for number in order], [0, 1, 20, 72]
    assert sorted(features) == [FeatureId(site, j) for site in sorted(SITES) for j in range(24)]
    readout = trace(patching, order, counts).readout
    read = torch.stack([readout.kl, readout.edit_size], -1)
    for row, count in enumerate(counts):
        close(read[row], reference(experiment, saes, features[:count]).double(), 5e-4)
    assert (read[0] - read[3]).abs().max() > 1e-2


def test_sites_patched_apart_do_not_add_up_to_sites_patched_jointly(patching):
    """Control: with c_bar and x_bar of the run that is not patched below it would be another experiment."""
    experiment, everyone = patching.experiment, torch.arange(3)
    apart = {site: PatchExperiment(experiment.model, experiment.pairs, site) for site in experiment.sites}
    upper = apart[UPPER].patching(patching.dictionaries[UPPER])
    frozen = upper.contributions(torch.arange(24), everyone)
    below = patching.contributions(torch.arange(24), everyone)
    both = patching.contributions(torch.arange(48), everyone)
    joint, alone = (patching.table([(everyone, sets)]).edit_size[0] for sets in (both, below))
    assert (joint - alone - apart[UPPER].sizes(frozen, everyone)).abs().max() > 1e-2


@pytest.mark.slow
def test_one_site_is_the_experiment_at_that_site(tiny):
    for site in (UPPER, HIDDEN):
        pairs = random_pairs(tiny)
        joint, single = JointExperiment(tiny, pairs, [site]), PatchExperiment(tiny, pairs, site)
        sae = random_topk(single.x.shape[-1])
        several, alone = joint.patching({site: sae}), single.patching(sae)
        assert torch.equal(several.differs, alone.differs)
        readouts = (torch.stack(trace(patching, range(48), [0, 3, 48]).readout) for patching in (several, alone))
        close(*readouts, 1e-4)
        close(several.first_order(), alone.first_order(), 1e-4)
        for name, value in floor(several).items():
            assert value == pytest.approx(floor(alone)[name], rel=1e-3, abs=1e-5)


def test_everything_patched_is_the_clean_run_and_complete_bases_get_there(experiment):
    """The uppermost site is a residual: what is patched below is covered by it, and c_bar there knows of it."""
    clean = experiment.patching(dictionaries(experiment)).activation_patched()
    assert clean.kl.max() < 1e-4
    basis = {site: complete_basis(x.shape[-1]) for site, x in experiment.x.items()}
    complete, sparse = (floor(experiment.patching(saes)) for saes in (basis, dictionaries(experiment)))
    assert complete["all_latents"] == pytest.approx(0, abs=1e-3) and sparse["all_latents"] > 0.05
    assert complete["nothing"] == sparse["nothing"] > 0.1


def test_the_estimate_is_the_derivative_of_the_kl(patching):
    step, everyone = 0.01, torch.arange(3)

    def kl(sign: int) -> torch.Tensor:
        return patching.table((everyone, sign * step * patching.contribution(j, everyone)) for j in range(48)).kl.mean(
            1
        )

    got, expected = patching.first_order(), (kl(1) - kl(-1)) / (2 * step)
    assert expected.abs().max() > 1e-3 and expected[:24].any() and expected[24:].any()
    assert (got + expected).abs().max() < 0.02 * expected.abs().max() + 1e-4


@pytest.mark.parametrize("name", Selector)
def test_features_of_all_sites_are_ranked_together(patching, name):
    chosen = SELECTORS[name](patching, CONFIG, seed=0)
    assert sorted(chosen.order) == list(range(48))
    assert {patching.feature(j).site for j in chosen.order[:16]} == {LOWER, UPPER}
    kl = trace(patching, chosen.order, [0, 8, 48]).readout.kl.mean(1)
    if name is Selector.GREEDY:
        assert kl[1] < kl[0]


def test_rows_do_not_notice_how_they_are_stacked(patching):
    expected, measured = torch.stack(trace(patching, range(48), range(0, 49, 6)).readout), patching.at_once
    for at_once in (1, 4):
        patching.at_once = at_once
        close(torch.stack(trace(patching, range(48), range(0, 49, 6)).readout), expected, 1e-4)
    patching.at_once = measured


def test_logits_are_those_of_the_runs(experiment):
    pairs = experiment.pairs
    close(experiment.resumed.logits, at_end(experiment.model.logits(pairs.corrupted), pairs.end))
    close(experiment.answers.clean, at_end(experiment.model.logits(pairs.clean), pairs.end).log_softmax(-1))


def test_mistakes(patching):
    experiment = patching.experiment
    with user_error("no site"):
        JointExperiment(experiment.model, experiment.pairs, [])
    with user_error("width 64", "mlp_out.0", "width 32"):
        experiment.patching(patching.dictionaries | {LOWER: random_topk(64)})
    with pytest.raises(IndexError):
        patching.feature(48)
