"""LanguageModel gives what the Hugging Face model gives, edits only while told, and skips what it can."""

import http.server
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager

import pytest
import torch
from comparing import close, n_hooks, reference_points
from tiny import Edit, random_tokens, user_error, write_tiny

from sae_core.model import language_model as models
from sae_core.model.language_model import hook_name, hub_answers, load_model, pad
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
    return [site for stream in Stream for site in model.sites(stream)]


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
    assert set(got) == set(expected) and len(got) == 12
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


# ---- edits -----------------------------------------------------------------------------------------


def test_an_edit_replaces_the_activation(tiny, tokens):
    """At the last residual the logits must be those of the edited vector."""
    edit = Edit(Site(2), lambda h: h.flip(-1) + 1)
    h = tiny.record(tokens, [Site(2)])[Site(2)]
    with tiny.hooks(edit):
        close(tiny.record(tokens, [Site(2)])[Site(2)], edit(h), 1e-6)
        close(tiny.logits(tokens), tiny.unembed(edit(h)), 1e-6)
        assert (tiny.logits(tokens) - tiny.unembed(h)).abs().max() > 0.1


def test_an_edit_that_changes_nothing_changes_no_bit(tiny, tokens):
    before = tiny.logits(tokens)
    with tiny.hooks(*(Edit(site, lambda h: h) for site in all_sites(tiny))):
        assert torch.equal(tiny.logits(tokens), before)


def test_edits_compose_left_to_right(tiny, tokens):
    site = Site(1)
    add, double = Edit(site, lambda h: h + 1), Edit(site, lambda h: 2 * h)
    h = tiny.record(tokens, [site])[site]
    with tiny.hooks(add, double):
        assert torch.equal(tiny.record(tokens, [site])[site], 2 * (h + 1))
    with tiny.hooks(double, add):
        assert torch.equal(tiny.record(tokens, [site])[site], 2 * h + 1)
    with tiny.hooks(add), tiny.hooks(double):
        assert torch.equal(tiny.record(tokens, [site])[site], 2 * (h + 1))


def test_nothing_is_left_after_the_block(tiny, tokens):
    before, hooks = tiny.logits(tokens), n_hooks(tiny)
    with tiny.hooks(Edit(Site(0), torch.zeros_like), Edit(Site(1, Stream.ATTN_OUT), torch.zeros_like)):
        assert n_hooks(tiny) == hooks + 2
        assert not torch.equal(tiny.logits(tokens), before)
    assert n_hooks(tiny) == hooks
    assert torch.equal(tiny.logits(tokens), before)


def test_nothing_is_left_after_an_exception_in_the_block(tiny, tokens):
    before, hooks = tiny.logits(tokens), n_hooks(tiny)
    with pytest.raises(ZeroDivisionError), tiny.hooks(Edit(Site(0), torch.zeros_like)):
        raise ZeroDivisionError
    assert n_hooks(tiny) == hooks
    assert torch.equal(tiny.logits(tokens), before)


def test_nothing_is_left_after_an_exception_in_an_edit(tiny, tokens):
    def fail(h):
        raise ZeroDivisionError

    before, hooks = tiny.logits(tokens), n_hooks(tiny)
    with pytest.raises(ZeroDivisionError), tiny.hooks(Edit(Site(0), torch.zeros_like), Edit(Site(1), fail)):
        tiny.logits(tokens)
    assert n_hooks(tiny) == hooks
    assert torch.equal(tiny.logits(tokens), before)


def test_nothing_is_left_when_a_later_site_does_not_exist(tiny, tokens):
    before, hooks = tiny.logits(tokens), n_hooks(tiny)
    with user_error("resid_post.7"), tiny.hooks(Edit(Site(0), torch.zeros_like), Edit(Site(7), torch.zeros_like)):
        pass
    with user_error("resid_post.7"):
        tiny.record(tokens, [Site(0), Site(7)])
    assert n_hooks(tiny) == hooks
    assert torch.equal(tiny.logits(tokens), before)


# ---- places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "attention_feeds"),
    [("neox", {"resid_post"}), ("gpt2", {"mlp_hidden", "mlp_out", "resid_post"})],
    ids=["parallel", "sequential"],
)
def test_feeds_within_a_block(tiny_models, kind, attention_feeds):
    table = {
        "attn_out": attention_feeds,
        "mlp_hidden": {"mlp_out", "resid_post"},
        "mlp_out": {"resid_post"},
        "resid_post": set(),
    }
    for a in Stream:
        assert {str(b) for b in Stream if tiny_models[kind].feeds(Site(1, a), Site(1, b))} == table[a]


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
        assert tiny.bridge.hook_dict[hook_name(site)] is tiny._point(site)


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


# ---- loading ---------------------------------------------------------------------------------------


@pytest.fixture
def refused(monkeypatch):
    """Every attempt to reach the network fails and is counted."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("the tests have no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return attempts


@pytest.mark.parametrize("as_text", [True, False])
def test_loading_a_directory_asks_no_network(checkpoints, refused, as_text):
    folder = checkpoints["llama"]
    load_model(str(folder) if as_text else folder, device="cpu")
    assert refused == []
    assert not hub_answers("http://model-hub.invalid", seconds=1.0)
    assert len(refused) >= 1  # control: the guard does see attempts


def test_a_hub_name_without_hub_fails_within_seconds(monkeypatch, refused):
    monkeypatch.setattr(models, "hub_answers", lambda endpoint: False)
    start = time.perf_counter()
    with user_error("nobody/no-such-model", "hub does not answer"):
        load_model("nobody/no-such-model", device="cpu")
    assert time.perf_counter() - start < 5
    assert refused == []


@pytest.fixture
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def test_hub_answers_is_quick_to_say_no(no_proxy):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        start = time.perf_counter()
        assert not hub_answers(f"http://127.0.0.1:{port}")  # nobody listens
        silent.listen()
        assert not hub_answers(f"http://127.0.0.1:{port}", seconds=0.2)  # connects, never replies
        assert time.perf_counter() - start < 3
    assert not hub_answers("")


def test_hub_answers_says_yes_to_any_reply(no_proxy, monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{server.server_port}"
            assert hub_answers(endpoint)
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
            assert not hub_answers(endpoint)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["./not-here", "/not/here", "a/b/c", "~/not-here-at-all"])
def test_a_missing_directory_is_named(refused, name):
    with user_error(name.strip("./~"), "no model directory"):
        load_model(name, device="cpu")
    assert refused == []


def test_directories_that_hold_no_model(tmp_path, refused):
    with user_error(str(tmp_path / "gone"), "no model directory"):
        load_model(tmp_path / "gone", device="cpu")
    with user_error(str(tmp_path), "config.json"):
        load_model(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text("{")
    with user_error(str(tmp_path), "could not be loaded"):
        load_model(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with user_error(str(tmp_path), "could not be loaded"):
        load_model(tmp_path, device="cpu")
    assert refused == []


def test_a_directory_without_weights_or_with_damaged_ones(tmp_path, refused):
    folder = write_tiny(tmp_path / "model", "neox")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with user_error(str(folder), "could not be loaded"):
        load_model(folder, device="cpu")
    weights.unlink()
    with user_error(str(folder), "could not be loaded"):
        load_model(folder, device="cpu")
    assert refused == []


def test_a_directory_without_tokenizer(tmp_path, refused):
    folder = write_tiny(tmp_path / "model", "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with user_error(str(folder), "tokenizer"):
        load_model(folder, device="cpu")
    assert refused == []


def test_the_model_is_frozen(tiny, tokens):
    assert not any(weight.requires_grad for weight in tiny.bridge.parameters())
    assert not tiny.bridge.training and torch.equal(tiny.logits(tokens), tiny.logits(tokens))


# ---- fingerprint -----------------------------------------------------------------------------------


def test_fingerprint_is_the_same_for_two_loads(tiny, checkpoints, kind):
    before = tiny.fingerprint()
    tiny.logits(random_tokens(tiny.n_vocab, 1, 4))
    assert load_model(checkpoints[kind], device="cpu").fingerprint() == before == tiny.fingerprint()


def test_fingerprints_of_the_tiny_models_differ(tiny_models):
    assert len({model.fingerprint() for model in tiny_models.values()}) == 3


def test_fingerprint_changes_with_every_weight(checkpoints, kind):
    model = load_model(checkpoints[kind], device="cpu")
    before = model.fingerprint()
    for name, weight in model.bridge.original_model.state_dict().items():
        original = weight.clone()
        weight.mul_(1.01).add_(0.01)
        assert model.fingerprint() != before, name
        weight.copy_(original)
    assert model.fingerprint() == before


@pytest.mark.parametrize(
    ("kind", "change"),
    [("neox", {"rotary_pct": 1.0}), ("gpt2", {"activation_function": "relu"}), ("llama", {"rms_norm_eps": 0.1})],
)
def test_fingerprint_changes_with_the_architecture(tiny_models, kind, change, tmp_path):
    other = load_model(write_tiny(tmp_path / "other", kind, **change), device="cpu")
    tokens = random_tokens(other.n_vocab, 1, 8)
    assert (other.logits(tokens) - tiny_models[kind].logits(tokens)).abs().max() > 1e-2
    assert other.fingerprint() != tiny_models[kind].fingerprint()
