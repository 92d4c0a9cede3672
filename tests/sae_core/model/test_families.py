"""Every family that people bring: logits, sites, edits, resumed runs and generation are those of Transformers."""

from pathlib import Path

import pytest
import torch
from comparing import close
from families import FAMILIES, write_family
from tiny import Edit, user_error

from sae_core.model.block import agrees, block_of
from sae_core.model.final_norm import direct_weights
from sae_core.model.fused import fuses
from sae_core.model.generation import Sampling, generate
from sae_core.model.language_model import load_model
from sae_core.sites import Site, Stream

QUICK = ("GPT-2", "BLOOM", "Mistral", "Gemma 3", "Granite")
"""What differs most: learned positions, ALiBi, windows, norms behind the parts, a multiplier."""
UNFIT = {"Mixtral": {Stream.MLP_HIDDEN}, "Qwen 2 MoE": {Stream.MLP_HIDDEN}} | {
    family: {Stream.RESID_MID} for family in ("GPT-J", "GPT-NeoX, Pythia", "Falcon", "Phi", "Cohere", "Granite")
}
IN_PARTS = {"GPT-2", "GPT-BigCode", "GPT-NeoX, Pythia", "Llama", "Mixtral", "Qwen 2", "Qwen 2 MoE"} | {
    *("Gemma", "Phi 3", "StableLM", "SmolLM 3", "StarCoder 2")
}
"""Families whose effects have closed forms; for the others whole passes are run."""
NEVER_FUSED = {"GPT-2", "GPT-BigCode", "GPT-J", "BLOOM", "MPT", "XGLM", "Falcon with ALiBi", "Gemma 2"}
"""Families that attend in parts, however long a context is."""
TABLE = Path(__file__).parents[3] / "docs" / "families.md"
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in FAMILIES],
)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("family"), family)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def reference(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))


def offered(model) -> list[Site]:
    return [site for stream in Stream for site in model.offered(stream)]


def test_logits_are_those_of_transformers(model, reference, tokens):
    with torch.no_grad():
        expected = reference(tokens).logits
    close(model.logits(tokens), expected, 1e-5 * max(1, expected.abs().max().item()))


def test_what_a_family_cannot_do_is_known_before_work_begins(model, family, tokens):
    assert {site.stream for site in model.unfit} == UNFIT.get(family, set())
    for site, reason in model.unfit.items():
        for use in (model.check, model.d_in, lambda s: model.sites(s.stream), lambda s: model.record(tokens, [s])):
            with user_error(str(site.stream), reason):
                use(site)
        with user_error(reason), model.hooks(Edit(site, torch.zeros_like)):
            pass


def test_the_table_in_the_documents_is_true(family):
    (row,) = [line for line in TABLE.read_text().splitlines() if line.startswith(f"| {family} |")]
    assert {stream for stream in Stream if f"`{stream}`" in row} == UNFIT.get(family, set())


def test_every_site_is_recorded_and_its_parts_add_up(model, tokens):
    h = model.record(tokens, offered(model))
    assert set(h) == set(offered(model))
    assert all(x.shape == (*tokens.shape, model.d_in(site)) for site, x in h.items())
    size = h[Site(1)].abs().max().item()
    close(h[Site(1)], h[Site(0)] + h[Site(1, Stream.ATTN_OUT)] + h[Site(1, Stream.MLP_OUT)], 1e-5 * size)
    for middle in model.offered(Stream.RESID_MID):
        close(h[Site(middle.layer)], h[middle] + h[Site(middle.layer, Stream.MLP_OUT)], 1e-5 * size)


def test_an_edit_reaches_what_the_site_feeds_and_nothing_else(model, tokens):
    clean, last = model.record(tokens, offered(model)), Site(1)
    for site in offered(model):
        with model.hooks(Edit(site, torch.zeros_like)):
            edited, logits = model.record(tokens, offered(model)), model.logits(tokens)
        moved = {other for other in clean if not torch.equal(edited[other], clean[other])}
        assert moved - {site} == {other for other in offered(model) if model.feeds(site, other)}
        close(logits, model.unembed(edited[last]), 1e-5 * max(1, logits.abs().max().item()))
        assert (edited[last] - clean[last]).abs().max() > 1e-3 * clean[last].abs().max()
        if site.stream is Stream.RESID_MID:  # the MLP reads what was written, and the residual goes on from it
            rounding = 1e-5 * clean[last].abs().max().item()
            close(edited[site], torch.zeros_like(edited[site]), rounding)
            close(edited[Site(site.layer)], edited[Site(site.layer, Stream.MLP_OUT)], rounding)
        if site.stream is Stream.MLP_OUT:  # it is added last
            close(
                edited[Site(site.layer)], clean[Site(site.layer)] - clean[site], 1e-5 * clean[last].abs().max().item()
            )


def test_the_scale_of_the_last_norm_is_known(model, tokens):
    """What its derivative adds to the direct path: dm/dh = w - (w . h / |P h|^2) P h, P taking the mean out or not."""
    h = model.record(tokens, [Site(1)])[Site(1)][0].requires_grad_()
    (slope,) = torch.autograd.grad(model.unembed(h)[:, 5].sum(), h)
    h = h.detach()
    weights = direct_weights(model, h, lambda logits: logits[:, 5])
    has_mean = "RMS" in type(model.bridge.ln_final.original_component).__name__
    centred = h if has_mean else h - h.mean(-1, keepdim=True)
    back = (weights * h).sum(-1, keepdim=True) / centred.square().sum(-1, keepdim=True) * centred
    close(weights - back, slope, 1e-3 * slope.abs().max().item())


def test_a_resumed_run_is_the_run(model, tokens):
    h = model.record(tokens, offered(model))
    above = [site for site in h if site.layer == 1]
    for site, x in model.resume(h[Site(0)], 0, above).items():
        close(x, h[site], 1e-6 * max(1, h[site].abs().max().item()))
    other = model.resume(h[Site(0)].flip(1), 0, [Site(1)])[Site(1)]
    assert (other - h[Site(1)]).abs().max() > 1e-2 * h[Site(1)].abs().max()


def test_fused_attention_is_attention(model, family, tokens):
    """In long contexts; the wrappers of some families change what they wrap, and keep their parts."""
    before, can = model.fused_from, family not in NEVER_FUSED
    assert fuses(model) == can and before == (64 if can and model.n_ctx > 256 else None)
    if not can:
        return
    in_parts, edit = model.record(tokens, offered(model)), Edit(Site(1, Stream.ATTN_OUT), torch.zeros_like)
    model.fused_from = tokens.shape[1]
    try:
        fused, shorter = (model.record(part, offered(model)) for part in (tokens, tokens[:, :-1]))
        with model.hooks(edit):
            edited = model.record(tokens, offered(model))
    finally:
        model.fused_from = before
    for site, h in in_parts.items():
        close(fused[site], h, 1e-5 * max(1, h.abs().max().item()))
    other = any(not torch.equal(fused[site], h) for site, h in in_parts.items())  # control: another arithmetic
    assert other == (family != "GPT-Neo")  # which attends in one way
    assert all(torch.equal(h, model.record(tokens[:, :-1], [site])[site]) for site, h in shorter.items())
    assert not edited[edit.site].any() and not torch.equal(edited[Site(1)], fused[Site(1)])


def test_fused_attention_in_half_precision(family, folder):
    if not family.startswith("OLMo"):  # the library runs them in float32 only
        assert fuses(load_model(folder, device="cpu", dtype="bfloat16")) == (family not in NEVER_FUSED)


def test_a_block_that_is_not_its_parts_is_refused(model, family, tokens):
    """Once those of OPT, BLOOM, MPT and XGLM raised in the middle of a circuit search."""
    block, h = block_of(model, 1, tokens.shape[1]), model.record(tokens, [Site(0), Site(1)])
    if block is None:
        assert family not in IN_PARTS
        return
    x, position = h[Site(0)], torch.arange(tokens.shape[1]).expand_as(tokens)
    seen = torch.ones(12, 12, dtype=torch.bool).tril().expand(2, -1, -1)
    attention = block.attend(block.queries(x, position), *block.keys_values(x, position), seen)
    assert agrees(block.resid_post(x, attention), h[Site(1)]) == (family in IN_PARTS)


def test_a_rows_text_is_that_of_whole_passes_whatever_stands_beside_it(model, reference):
    """Windows and ALiBi count slots of the cache: padding between a prompt and its text once made another text."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 60, (n,), generator=generator).tolist() for n in (3, 20, 9)]
    together = generate(model, rows, 8, seed=0, sampling=GREEDY)
    for row, text in zip(rows, together, strict=True):
        assert text == generate(model, [row], 8, seed=0, sampling=GREEDY)[0]
        tokens = list(row)
        for _ in range(8):
            with torch.no_grad():
                token = int(reference(torch.tensor([tokens])).logits[0, -1].argmax())
            if token in model.special_ids:
                break
            tokens.append(token)
        assert text == tokens[len(row) :]
