"""Sets of features, many at a time: what shares a pass does not matter, what need not run does not, memory is kept."""

from functools import partial

import pytest
import torch
from comparing import close
from handmade import random_topk
from plain_patching import EVERY_SITE, RESID, random_pairs

from editing.engine import batching as memory
from editing.engine.batching import peak_bytes
from editing.ioi.curve import trace
from editing.ioi.site_experiment import PatchExperiment


@pytest.fixture(scope="module")
def neox(tiny_models) -> PatchExperiment:
    return PatchExperiment(tiny_models["neox"], random_pairs(tiny_models["neox"]), RESID)


@pytest.mark.slow
@EVERY_SITE
def test_rows_do_not_notice_how_they_are_stacked(tiny_models, site):
    experiment = PatchExperiment(tiny_models["gpt2"], random_pairs(tiny_models["gpt2"]), site)
    sae = random_topk(experiment.x.shape[-1])
    expected = trace(experiment.patching(sae), range(48), list(range(49)))
    for at_once in (1, 4, 1000):
        patching = experiment.patching(sae)
        patching.at_once = at_once
        readout = trace(patching, range(48), list(range(49))).readout
        close(torch.stack(readout), torch.stack(expected.readout), 1e-4)


def test_a_prompt_on_which_nothing_was_added_is_not_run_again(neox, monkeypatch):
    sae, ran, read = random_topk(32), [], neox.read
    differs = ((sae.encode(neox.x) - sae.encode(neox.x_bar)) * neox.mask[..., None]).ne(0).any(1)
    patching = neox.patching(sae)
    assert torch.equal(patching.differs, differs) and patching.at_once
    monkeypatch.setattr(neox, "read", lambda rows, change: ran.append(len(rows)) or read(rows, change))
    trace(patching, range(48), range(49))
    assert sum(ran) == differs.sum() < 0.9 * differs.numel()


@pytest.mark.slow
def test_passes_stay_within_their_memory(neox, monkeypatch):
    """The real peak of a curve, with budgets for a few rows and for many: all that waits for a pass is counted.

    Beside it there is what the experiment itself holds: no more than a few tensors of the size of its runs.
    """
    sae, held = random_topk(32), 4 * neox.x.nbytes
    for budget in (2**17, 2**19):
        monkeypatch.setattr(memory, "MEMORY", budget)
        fresh = PatchExperiment(neox.model, neox.pairs, neox.site)
        patching = fresh.patching(sae)
        rows = torch.arange(3).repeat(patching.at_once)[: patching.at_once]
        change = torch.zeros(len(rows), 9, 32)
        assert 0.5 * budget < peak_bytes(partial(fresh.read, rows, change)) <= budget
        trials = ((torch.arange(3), patching.contributions(torch.arange(n % 48), torch.arange(3))) for n in range(60))
        assert peak_bytes(partial(patching.table, trials)) <= budget + held + 60 * 16 * neox.corrupted.kl.nbytes
