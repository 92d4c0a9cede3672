"""Blocks run only where a change can show: the same logits as the model's own pass gives, or no short way at all."""

from dataclasses import replace

import pytest
import torch
from comparing import close
from handmade import normal
from plain_patching import random_pairs
from tiny import random_tokens

from editing.engine import suffix_run as module
from editing.engine.resumed_run import ResumedRun, adds_to_residual
from editing.engine.suffix_run import SuffixRun, suffix_run
from editing.interventions.add_direction import AddDirection
from editing.ioi.site_experiment import PatchExperiment
from editing.tasks.pairs import at_end
from sae_core.model.block import block_of
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.sites import Site, Stream

END = torch.tensor([8, 5, 6])


@pytest.fixture
def tokens(tiny) -> torch.Tensor:
    return random_tokens(tiny.n_vocab, 3, 9)


def tail_at(model: LanguageModel, tokens: torch.Tensor, layer: int) -> tuple[SuffixRun | None, torch.Tensor]:
    """The blocks above a layer, and the residual after it."""
    return suffix_run(model, tokens, END, layer), model.record(tokens, [Site(layer)])[Site(layer)]


def fully(model: LanguageModel, x: torch.Tensor, change: torch.Tensor, prompts: torch.Tensor, layer: int):
    return model.unembed(at_end(model.final(x[prompts] + change, layer), END[prompts]))


@pytest.mark.parametrize("layer", [0, 1])
def test_logits_are_those_of_the_models_own_pass_wherever_the_change_begins(tiny, tokens, layer):
    tail, x = tail_at(tiny, tokens, layer)
    prompts = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 2])
    change = 2 * normal(10, 9, 32)
    for row, first in enumerate((0, 0, 0, 4, 3, 6, 8, 5, 7, 9)):  # the last two: after the prompt's end, or nowhere
        change[row, :first] = 0
    expected = fully(tiny, x, change, prompts, layer)
    close(tail.logits(prompts, change), expected, 1e-4)
    # control: what is left as it was does matter to what follows
    assert (expected - fully(tiny, x.flip(0), change, prompts, layer)).abs().max() > 0.1
    assert torch.equal(tail.logits(prompts[-1:], change[-1:]), tail.logits(prompts[-1:], 0 * change[-1:]))


def test_before_the_first_changed_position_nothing_is_run(tiny, tokens, monkeypatch):
    tail, _ = tail_at(tiny, tokens, 0)
    ran, run = [], SuffixRun._run
    monkeypatch.setattr(
        SuffixRun, "_run", lambda self, rows, change: ran.append(tuple(change.shape)) or run(self, rows, change)
    )
    change = torch.zeros(2, 9, 32)
    change[0, 7], change[1, 1] = 1.0, 1.0
    tail.logits(torch.tensor([0, 0]), change)
    assert ran == [(1, 4, 32), (1, 8, 32)]  # of nine columns; two of them and eight, in steps of four


def test_gradients_are_those_of_the_models_own_pass(tiny, tokens):
    tail, x = tail_at(tiny, tokens, 0)
    prompts, change = torch.arange(3), normal(3, 9, 32).requires_grad_()
    gradient, expected = (
        torch.autograd.grad(logits[:, 7].sum(), change)[0]
        for logits in (tail.logits(prompts, change), fully(tiny, x, change, prompts, 0))
    )
    assert expected.abs().max() > 1e-2
    close(gradient, expected, 1e-4)


def test_there_is_no_short_way_where_parts_do_not_say_all(tiny, tokens, monkeypatch):
    """Control for the check: a block that is told wrongly is found out."""
    assert suffix_run(tiny, tokens, END, 1) is not None and suffix_run(tiny, tokens, END, 2) is None
    held = 2 * tokens.numel() * 32 * 4
    assert suffix_run(tiny, tokens, END, 1, held=held) is not None
    assert suffix_run(tiny, tokens, END, 1, held=held - 1) is None
    for wrong in ({"parallel": not tiny._parallel}, {"mlp": torch.nn.Identity()}):
        monkeypatch.setattr(module, "block_of", lambda *at, wrong=wrong: replace(block_of(*at), **wrong))
        assert suffix_run(tiny, tokens, END, 1) is None
    monkeypatch.setattr(module, "block_of", lambda *at: None)
    assert suffix_run(tiny, tokens, END, 1) is None


def test_without_a_short_way_the_model_runs_itself(tiny, tokens, monkeypatch):
    pairs, change = random_pairs(tiny), normal(3, 9, 32)
    short = PatchExperiment(tiny, pairs, Site(0))
    monkeypatch.setattr("editing.ioi.site_experiment.suffix_run", lambda *arguments: None)
    long = PatchExperiment(tiny, pairs, Site(0))
    assert short.suffix is not None and long.suffix is None
    readouts = (torch.stack(runs.read(torch.arange(3), change)) for runs in (short, long))
    close(*readouts, 1e-4)


# ---- a model with more norms -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> LanguageModel:
    """A tiny Gemma 2: norms behind attention and MLP, capped scores, windows in every other layer."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from sae_core.storybook.train import build_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("gemma2"), build_tokenizer()
    width = {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 4}
    ends = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = Gemma2ForCausalLM(Gemma2Config(**(width | heads | ends), sliding_window=4, final_logit_softcapping=None))
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.copy_(0.25 * normal(*weight.shape, seed=number))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder, device="cpu")


@pytest.mark.parametrize("stream", Stream)
def test_gemma_is_patched_where_its_outputs_are_added(gemma, stream):
    """What is read behind the norms is what the residual gets; there is no short way, and numbers are right."""
    site, tokens = Site(0, stream), random_tokens(gemma.n_vocab, 3, 9)
    resumed = ResumedRun(gemma, tokens, END, 0, [site])
    assert suffix_run(gemma, tokens, END, 0) is None
    change = normal(*resumed.recorded[site].shape)
    moved = resumed.logits_under(torch.arange(3), [AddDirection(site, change)])
    assert (moved - resumed.logits).abs().max() > 1e-2
    assert adds_to_residual(gemma, site) == (stream in (Stream.RESID_POST, Stream.MLP_OUT))
    if adds_to_residual(gemma, site):
        close(resumed.logits_changed(torch.arange(3), change), moved, 1e-4)
