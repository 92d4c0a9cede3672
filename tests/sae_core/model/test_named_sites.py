"""A name of another tool is the site that holds the tensor of that name, or none."""

import pytest
import torch
from families import write_family
from tiny import random_tokens, user_error

from sae_core.model.language_model import load_model
from sae_core.model.named_sites import site_named
from sae_core.sites import Site, Stream

ATTENTION, HIDDEN, MLP = Site(1, Stream.ATTN_OUT), Site(1, Stream.MLP_HIDDEN), Site(1, Stream.MLP_OUT)
NAMES = {
    "neox": {
        Site(1): ("layers.1", "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre", "blocks.1.hook_out"),
        ATTENTION: ("gpt_neox.layers.1.attention", "layers.1.attention", "blocks.1.attn.hook_out"),
        HIDDEN: ("layers.1.mlp.act", "blocks.1.mlp.hook_post"),
        MLP: ("layers.1.mlp", "layers.1.mlp.dense_4h_to_h", "blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out"),
    },
    "gpt2": {
        ATTENTION: ("h.1.attn", "transformer.h.1.attn", "blocks.1.hook_attn_out"),
        HIDDEN: ("h.1.mlp.act", "blocks.1.mlp.out.hook_in"),
        MLP: ("h.1.mlp", "h.1.mlp.c_proj"),
    },
    "llama": {ATTENTION: ("layers.1.self_attn",), MLP: ("model.layers.1.mlp", "layers.1.mlp.down_proj")},
}


def test_names_lead_to_the_tensor(tiny_models):
    for kind, names in NAMES.items():
        for site, others in names.items():
            for name in others:
                assert site_named(tiny_models[kind], name) == site, (kind, name)


def test_a_tensor_of_no_site_is_refused(tiny_models):
    with user_error("blocks.0.attn.q.hook_out", "no site"):
        site_named(tiny_models["gpt2"], "blocks.0.attn.q.hook_out")
    with user_error("blocks.0.hook_resid_pre", "embedding", "resid_post.0"):
        site_named(tiny_models["gpt2"], "blocks.0.hook_resid_pre")


def test_the_middle_of_a_block_is_a_site_where_there_is_one(tiny_models):
    for kind in ("gpt2", "llama"):
        assert site_named(tiny_models[kind], "blocks.1.hook_resid_mid") == Site(1, Stream.RESID_MID)
    with user_error("resid_mid.1", "side by side"):
        site_named(tiny_models["neox"], "blocks.1.hook_resid_mid")


def test_heads_are_a_site(tiny_models):
    for name in ("blocks.1.attn.hook_z", "blocks.1.attn.o.hook_in"):
        assert site_named(tiny_models["gpt2"], name) == Site(1, Stream.ATTN_Z)


def test_names_that_a_model_does_not_have(tiny_models):
    with user_error("resid_post.9", "3-layer"):
        site_named(tiny_models["llama"], "layers.9")
    for name in ("layers.9.mlp", "layers.1.attention", "words", "mlp"):  # of the last it has three
        with user_error(name, "modules of the name"):
            site_named(tiny_models["llama"], name)
    with user_error("model.layers.1.mlp.act_fn", "no site"):  # the gate alone, not what it lets through
        site_named(tiny_models["llama"], "model.layers.1.mlp.act_fn")


BEHIND = {
    "Gemma 2": "post_feedforward_layernorm",
    "Gemma 3": "post_feedforward_layernorm",
    "OLMo 2": "post_feedforward_layernorm",
    "GLM-4": "post_mlp_layernorm",
    "Granite": None,  # multiplies by a factor, which is no module
}


@pytest.mark.parametrize("family", BEHIND)
def test_a_module_before_a_norm_or_a_factor_is_no_site(tmp_path, family):
    """It used to be read as what the block adds to the residual, 2 to 13 times its size away."""
    model = load_model(write_family(tmp_path, family), device="cpu")
    for name in ("layers.1.mlp", "model.layers.1.self_attn", "blocks.1.mlp.hook_out", "blocks.1.attn.hook_out"):
        with user_error(name, "no site", "differs from it by"):
            site_named(model, name)
    if BEHIND[family]:
        assert site_named(model, f"model.layers.1.{BEHIND[family]}") == MLP
    for name, site in (("blocks.1.hook_mlp_out", MLP), ("blocks.1.hook_attn_out", ATTENTION), ("layers.1", Site(1))):
        assert site_named(model, name) == site
    h = model.record(random_tokens(60, 1, 6), [Site(0), ATTENTION, MLP, Site(1)])
    assert torch.allclose(h[Site(0)] + h[ATTENTION] + h[MLP], h[Site(1)], atol=1e-4)


def test_a_module_that_adds_the_residual_itself_is_the_residual(tmp_path):
    model = load_model(write_family(tmp_path, "BLOOM"), device="cpu")
    assert site_named(model, "h.1.mlp") == Site(1)
