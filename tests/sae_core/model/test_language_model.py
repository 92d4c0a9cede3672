"""LanguageModel gives what the Hugging Face model gives, edits only while told, and skips what it can."""

from collections import Counter
from contextlib import ExitStack, contextmanager

import pytest
import torch
from comparing import close, reference_points
from tiny import Edit, random_tokens, user_error, write_tiny

from sae_core.formats.hook_names import bridge_hook, hook_name
from sae_core.model.language_model import load_model
from sae_core.model.padding import pad
from sae_core.sites import Site, Stream


@pytest.fixture(scope="session")
def references(checkpoints):
    """The same weights without TransformerLens."""
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained
    return {kind: load(folder, attn_implementation="eager").eval() for kind, folder in checkpoints.items()}


@pytest.fixture
def reference(references, kind):
    return references[kind]


@pytest.fixture
def tokens(tiny):
    return random_tokens(tiny.n_vocab, 3, 12)


def record_by_hand(reference, tokens) -> dict[Site, torch.Tensor]:
    kept = {}
    with ExitStack() as undo, torch.no_grad():
        for site, (module, is_input) in reference_points(reference).items():

            def keep(module, args, output, site=site, is_input=is_input):
                value = args[0] if is_input else output
                kept[site] = value[0] if isinstance(value, tuple) else value

            undo.callback(module.register_forward_hook(keep).remove)
        reference(tokens)
    return kept


def all_sites(model) -> list[Site]:
    return [site for stream in Stream for site in model.offered(stream)]


@contextmanager
def counting_calls(model):
    """Calls of the attention and MLP modules and all that is in them, by layer."""
    calls = Counter()
    with ExitStack() as undo:
        for layer, block in enumerate(model.bridge.blocks):
            for part in {*block.attn.modules(), *block.mlp.modules()}:

                def count(module, args, output, layer=layer):
                    calls[layer] += 1

                undo.callback(part.register_forward_hook(count).remove)
        yield calls


# ---- forward passes --------------------------------------------------------------------------------


def test_logits_equal_those_of_the_plain_model(tiny, reference, tokens):
    with torch.no_grad():
        expected = reference(tokens).logits
    close(tiny.logits(tokens), expected)
    assert tiny.logits(tokens).dtype == torch.float32


def test_positions_matter_in_these_models(tiny, reference, tokens):
    """Control: with shuffled tokens, or with one position for all, equal logits would be no evidence."""
    shuffled = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], dim=1)
    assert (tiny.logits(shuffled)[:, -1] - tiny.logits(tokens)[:, -1]).abs().max() > 1e-2
    with torch.no_grad():
        nowhere = reference(tokens, position_ids=torch.zeros_like(tokens)).logits
    assert (tiny.logits(tokens) - nowhere)[:, -1].abs().max() > 1e-2


def test_one_forward_records_every_site_as_hooks_by_hand_do(tiny, reference, tokens):
    with counting_calls(tiny) as calls:
        got = tiny.record(tokens, all_sites(tiny))
    expected = record_by_hand(reference, tokens)
    middle = set(tiny.offered(Stream.RESID_MID))
    assert set(got) - middle == set(expected) and len(got) == 15 + len(middle)
    for site in middle - {Site(0, Stream.RESID_MID)}:
        close(got[site], expected[Site(site.layer - 1)] + expected[Site(site.layer, Stream.ATTN_OUT)])
    for site, h in expected.items():
        close(got[site], h)
        assert got[site].shape == (*tokens.shape, tiny.d_in(site))
    with counting_calls(tiny) as once:
        tiny.logits(tokens)
    assert calls == once


def test_a_block_adds_its_attention_and_its_mlp(tiny, tokens):
    h = tiny.record(tokens, all_sites(tiny))
    for layer in range(1, tiny.n_layers):
        parts = h[Site(layer, Stream.ATTN_OUT)] + h[Site(layer, Stream.MLP_OUT)]
        close(h[Site(layer)], h[Site(layer - 1)] + parts)
        assert (h[Site(layer)] - h[Site(layer - 1)]).abs().max() > 0.1


def test_the_last_residual_unembedded_is_the_logits(tiny, tokens):
    last = tiny.sites()[-1]
    h = tiny.record(tokens, [last])[last]
    assert torch.equal(tiny.unembed(h), tiny.logits(tokens))
    close(tiny.unembed(h[1, 4]), tiny.logits(tokens)[1, 4])
    before = tiny.record(tokens, [Site(1)])[Site(1)]
    assert (tiny.unembed(before) - tiny.logits(tokens)).abs().max() > 0.1


def test_no_rows_have_no_logits(tiny):
    """Once an empty tensor could not be given its shape, and a command ended in a traceback."""
    assert tiny.unembed(torch.zeros(0, tiny.d_model)).shape == (0, tiny.n_vocab)
    assert tiny.unembed(torch.zeros(3, 0, tiny.d_model)).shape == (3, 0, tiny.n_vocab)


def test_record_stops_after_the_last_site_asked_for(tiny, tokens):
    with counting_calls(tiny) as calls:
        tiny.record(tokens, [Site(0)])
    assert calls[0] and not calls[1] and not calls[2]
    with counting_calls(tiny) as calls:
        tiny.record(tokens, [Site(2, Stream.ATTN_OUT)])
    assert calls[0] and calls[1] and calls[2]


def test_recording_nothing_runs_nothing(tiny, tokens):
    with counting_calls(tiny) as calls:
        assert tiny.record(tokens, []) == {}
    assert not calls


def test_right_padding_changes_no_earlier_position(tiny, tokens):
    rows = [tokens[0].tolist(), tokens[1, :5].tolist()]
    padded, lengths = pad(rows)
    assert lengths.tolist() == [12, 5] and padded.shape == (2, 12)
    close(tiny.logits(padded)[1, :5], tiny.logits(tokens[1:2, :5])[0])
    left = padded.clone()
    left[1] = padded[1].roll(7)
    assert (tiny.logits(left)[1, 7:] - tiny.logits(tokens[1:2, :5])[0]).abs().max() > 1e-2


# ---- resuming --------------------------------------------------------------------------------------


def test_resume_equals_the_full_run_and_runs_no_block_below(tiny, tokens):
    sites = all_sites(tiny)
    full = tiny.record(tokens, sites)
    for layer in range(tiny.n_layers - 1):
        above = [site for site in sites if site.layer > layer]
        with counting_calls(tiny) as calls:
            got = tiny.resume(full[Site(layer)], layer, above)
        assert set(got) == set(above)
        for site in above:
            close(got[site], full[site], 1e-6)
        assert [calls[below] for below in range(layer + 1)] == [0] * (layer + 1)
        assert all(calls[on] for on in range(layer + 1, tiny.n_layers))


def test_final_equals_the_last_residual_from_every_layer(tiny, tokens):
    h = tiny.record(tokens, tiny.sites())
    for site in tiny.sites():
        close(tiny.final(h[site], site.layer), h[Site(2)], 1e-6)
    other = tiny.final(h[Site(0)] + 1, 0)
    assert (other - h[Site(2)]).abs().max() > 0.1


def test_after_resuming_the_skipped_blocks_run_again(tiny, tokens):
    before = tiny.logits(tokens)
    h = tiny.record(tokens, [Site(1)])[Site(1)]
    tiny.resume(h, 1, [Site(2)])
    assert torch.equal(tiny.logits(tokens), before)

    def fail(h):
        raise KeyError("in the middle")

    with pytest.raises(KeyError), tiny.hooks(Edit(Site(2), fail)):
        tiny.resume(h, 1, [Site(2)])
    assert all("forward" not in block.__dict__ for block in tiny.bridge.blocks)
    assert torch.equal(tiny.logits(tokens), before)


def test_an_edit_above_applies_when_resuming_and_one_below_does_not(tiny, tokens):
    h = tiny.record(tokens, [Site(0)])[Site(0)]
    plain = tiny.final(h, 0)
    with tiny.hooks(Edit(Site(1, Stream.MLP_OUT), torch.zeros_like)):
        assert (tiny.final(h, 0) - plain).abs().max() > 0.1
    with tiny.hooks(Edit(Site(0, Stream.MLP_OUT), torch.zeros_like)):
        assert torch.equal(tiny.final(h, 0), plain)


def test_resume_refuses_sites_below(tiny, tokens):
    h = torch.zeros(1, 3, tiny.d_model)
    with user_error("mlp_out.1", "layer 1"):
        tiny.resume(h, 1, [Site(2), Site(1, Stream.MLP_OUT)])


# ---- places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "attention_feeds"),
    [("neox", {"resid_post"}), ("gpt2", {"mlp_hidden", "mlp_out", "resid_post"})],
    ids=["parallel", "sequential"],
)
def test_feeds_within_a_block(tiny_models, kind, attention_feeds):
    table = {
        "attn_z": {"attn_out", *attention_feeds},
        "attn_out": attention_feeds,
        "mlp_hidden": {"mlp_out", "resid_post"},
        "mlp_out": {"resid_post"},
        "resid_post": set(),
    }
    if kind == "gpt2":
        table |= {"resid_mid": {"mlp_hidden", "mlp_out", "resid_post"}}
        table |= {name: table[name] | {"resid_mid"} for name in ("attn_z", "attn_out")}
    streams = [Stream(name) for name in table]
    for a in streams:
        assert {str(b) for b in streams if tiny_models[kind].feeds(Site(1, a), Site(1, b))} == table[a]


def test_feeds_says_which_sites_an_edit_moves(tiny, tokens):
    sites = all_sites(tiny)
    plain = tiny.record(tokens, sites)
    for a in sites:
        with tiny.hooks(Edit(a, lambda h: h + torch.linspace(-1, 1, h.shape[-1]))):
            edited = tiny.record(tokens, sites)
        moved = {b for b in sites if not torch.equal(plain[b], edited[b])}
        assert moved - {a} == {b for b in sites if tiny.feeds(a, b)}


def test_feeds_follows_the_config_not_the_family(tmp_path):
    model = load_model(write_tiny(tmp_path / "sequential", "neox", use_parallel_residual=False), device="cpu")
    assert model.feeds(Site(1, Stream.ATTN_OUT), Site(1, Stream.MLP_OUT))


def test_sites_and_widths(tiny):
    assert (tiny.n_layers, tiny.d_model, tiny.n_ctx) == (3, 32, 64)
    assert tiny.sites(Stream.MLP_OUT) == [Site(layer, Stream.MLP_OUT) for layer in range(3)]
    assert tiny.d_in(Site(0)) == 32 and tiny.d_in(Site(0, Stream.MLP_HIDDEN)) == 64
    for wrong in (Site(3), Site(-1)):
        with user_error(str(wrong), "0 to 2"):
            tiny.check(wrong)


def test_hook_names_are_those_of_the_library(tiny):
    """The name written into files must lead to the module that is read."""
    for site in all_sites(tiny):
        assert tiny.bridge.hook_dict[hook_name(site)] is tiny.bridge.hook_dict[bridge_hook(site)]


# ---- text ------------------------------------------------------------------------------------------


def test_ids_hold_no_special_tokens_and_content_masks_them(tiny):
    ids = tiny.to_ids("Mary went to the store .")
    assert len(ids) == 6 and tiny.bos_id == 0 and tiny.special_ids == {0}
    assert tiny.token_text(ids[0]) == "Mary"
    unknown = tiny.to_ids("Mary xyzzy")[1]
    row = torch.tensor([[tiny.bos_id, *ids, unknown, tiny.bos_id]])
    assert tiny.content(row).tolist() == [[False, *[True] * 7, False]]


def test_continuation_ids(tiny):
    assert tiny.continuation_ids("Mary went", " home") == tiny.to_ids("home")
    with user_error("stand apart"):
        tiny.continuation_ids("go", "ing")
    with user_error("stand apart"):
        tiny.continuation_ids("Mary", "")


def test_the_model_is_frozen(tiny, tokens):
    assert not any(weight.requires_grad for weight in tiny.bridge.parameters())
    assert not tiny.bridge.training and torch.equal(tiny.logits(tokens), tiny.logits(tokens))
