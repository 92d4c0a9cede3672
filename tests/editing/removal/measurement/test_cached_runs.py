"""Runs recorded once: an edit from its layer up is the edit of a full forward."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparing import close
from handmade import random_topk
from removal_world import MLP
from tiny import random_tokens, user_error

from editing.interventions.compose import Scaled
from editing.interventions.patch import ablate
from editing.removal.measurement.cached_runs import PromptRuns, TokenRuns
from sae_core.model.language_model import load_model
from sae_core.sites import Site, Stream


def test_a_change_of_mlp_out_is_one_of_the_residual_where_norms_follow_it_too(tmp_path):
    """What is read and written is what is added to the residual: once it was what the norm behind the MLP reads."""
    model = load_model(write_gemma(tmp_path), device="cpu")
    tokens = random_tokens(model.n_vocab, 3, 9)
    edit = ablate(MLP, random_topk(32), range(40))
    runs = TokenRuns(model, tokens, torch.ones_like(tokens, dtype=torch.bool))
    with torch.no_grad(), model.hooks(edit):
        expected = model.record(tokens, [Site(2)])[Site(2)]
    close(runs.edited([edit]).final, expected, 1e-4)
    assert (runs.edited([Scaled(edit, 0.0)]).final - expected).abs().max() > 0.05  # control


def write_gemma(folder: Path) -> Path:
    """A random Gemma 2 of three layers, which has norms after attention and after the MLP."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    from sae_core.storybook.train import build_tokenizer

    tokenizer, generator = build_tokenizer(), torch.Generator().manual_seed(0)
    ends = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "final_logit_softcapping": None}
    model = AutoModelForCausalLM.from_config(Gemma2Config(**ends, **heads, **width))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.25 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_streams_that_do_not_add_to_the_residual_are_refused(storybook, task):
    with user_error("attn_out.2", "resid_post", "mlp_out"):
        PromptRuns.of(storybook, Site(2, Stream.ATTN_OUT), task.selection)


def test_fewer_prompts_are_the_first(runs_at_middle):
    few = runs_at_middle.first(6)
    change = torch.randn(2, *runs_at_middle.x.shape, generator=torch.Generator().manual_seed(0))
    close(few.scores(change[:, :6]), runs_at_middle.scores(change)[:, :6], 1e-4)
    assert len(few.prompts) == 6 and len(runs_at_middle.prompts) == 32


def test_prompts_are_read_in_any_order_and_in_parts(runs_at_middle):
    change = torch.randn(runs_at_middle.x.shape, generator=torch.Generator().manual_seed(0))
    which, strengths = torch.tensor([3, 0, 3, 9]), torch.tensor([0.0, 0.5, 2.0])
    whole = runs_at_middle.scores((strengths[:, None, None, None] * change)[:])
    parts = replace(runs_at_middle, at_once=3)
    close(
        parts.scores_of_rows(which, lambda part: change[which[part]]),
        runs_at_middle.scores(change[None])[0, which],
        1e-4,
    )
    close(parts.scores_at(strengths, change), whole, 1e-4)
    assert runs_at_middle.at_once > 32 and (whole[0] - whole[2]).abs().max() > 0.1


def test_the_gradient_is_that_of_the_scores(runs_at_middle):
    few = runs_at_middle.first(5)
    weights, along = torch.linspace(-1, 1, 5), torch.randn(few.x.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-2 * along
    up, down = (few.scores(sign * step[None])[0] for sign in (1, -1))
    slope = ((up - down) * weights).sum().item() / 2e-2
    scores, gradients = few.scores_and_gradients(torch.zeros_like(few.x))
    assert (weights[:, None, None] * gradients * along).sum().item() == pytest.approx(slope, rel=0.02)
    close(scores, few.scores(torch.zeros_like(few.x)[None])[0], 1e-4)
    elsewhere = few.scores_and_gradients(up_change := 0.5 * along)  # at another point: other scores, other slopes
    close(elsewhere[0], few.scores(up_change[None])[0], 1e-4)
    assert (elsewhere[1] - gradients).abs().max() > 1e-3
