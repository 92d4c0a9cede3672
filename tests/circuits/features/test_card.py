"""Cards: every number is that of a plain computation, light or full, and nothing of a text reaches a page unescaped."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy
import pytest
import torch
from handmade import Circuit, Zero, normal, random_topk
from tiny import random_tokens, user_error
from torch import Tensor

import subrank.cli.features
from circuits.features.card import TOP, Card, spots
from circuits.features.catalogue import Catalogue, read_catalogue
from circuits.features.geometry import coordinates, nearest
from circuits.features.histograms import N_BINS, N_TOKENS, activation_histogram, logit_drops
from circuits.features.reading import Chunks
from circuits.features.statistics import AFTER, BEFORE, activations, tally
from editing.interventions.add_direction import written
from editing.interventions.patch import ablate
from editing.loss_recovered import SpliceCost
from editing.set_quality import SetQuality
from sae_core.data.text import Text
from sae_core.dictionaries.baselines import Basis
from sae_core.evaluation.reconstruction import Quality
from sae_core.files import write_json
from sae_core.sites import FeatureId, Site, Stream
from sae_core.storage import QUALITY, DictionarySet
from subrank.cli import command
from subrank.pages.features_figures import activation_figure, drops_figure
from subrank.pages.features_page import card_html, cards_section
from subrank.pages.page import write_page

NASTY = ("<script>alert(1)</script>", '" onload="x', "שלום", "🙂", "\n", "</div>")
SITES = (Site(0), Site(1), Site(1, Stream.MLP_OUT), Site(2))


def contexts(n: int = 20, length: int = 18, *, seed: int = 0, n_vocab: int = 30) -> Tensor:
    tokens = random_tokens(n_vocab, n, length, seed=seed)
    tokens[:, 0] = 0
    tokens[::4, 9] = 0  # a piece that begins within a context
    return tokens


def dictionaries(d_in: int = 32) -> dict:
    return {site: random_topk(d_in, seed=number) for number, site in enumerate(SITES)}


@pytest.fixture(scope="module")
def catalogue(tiny_models) -> Catalogue:
    return read_catalogue(tiny_models["neox"], dictionaries(), contexts(), contexts(seed=1))


@pytest.fixture(scope="module")
def full(catalogue) -> list[Card]:
    features = [FeatureId(site, index) for site in SITES for index in catalogue.alive(site)[:2]]
    return list(catalogue.full(features))


def codes(catalogue: Catalogue, site: Site) -> Tensor:
    """Dense codes `[contexts, pos, n_latents]`, 0 on special tokens."""
    h = catalogue.model.record(catalogue.training, [site])[site]
    return catalogue.dictionaries[site].encode(h) * catalogue.model.content(catalogue.training)[..., None]


# ---- the streaming pass ----------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES, ids=str)
def test_the_tally_is_what_a_dense_computation_says(catalogue, site):
    f, own = codes(catalogue, site), catalogue.tally.sites[site]
    content = catalogue.model.content(catalogue.training)
    x = catalogue.model.record(catalogue.training, [site])[site][content].double()
    n = int(content.sum())
    assert catalogue.tally.n_tokens == n
    torch.testing.assert_close(own.statistics.density, (f != 0).sum((0, 1)) / n)
    assert torch.equal(own.active, (f != 0).sum((0, 1)))
    torch.testing.assert_close(own.total, f.double().sum((0, 1)))
    torch.testing.assert_close(own.norm_share, f.double().square().sum((0, 1)) / x.square().sum())
    first = content & (content.cumsum(1) == 1)
    expected = f[first].sum(0) / f.sum((0, 1)).clamp_min(1e-12)
    torch.testing.assert_close(own.first_position.float(), expected, atol=1e-6, rtol=1e-5)
    peaks = f.max(1).values.sort(0, descending=True).values[:8].T
    torch.testing.assert_close(own.statistics.top, peaks)
    dense = torch.zeros(48, catalogue.model.n_vocab, dtype=torch.float64)
    for token in catalogue.training.unique().tolist():
        dense[:, token] = f[catalogue.training == token].double().sum(0)
    sparse = torch.zeros_like(dense)
    sparse[own.pairs.latent, own.pairs.token] = own.pairs.total
    torch.testing.assert_close(sparse, dense)
    assert int(own.pairs.active.sum()) == int(own.active.sum()) and (own.pairs.active > 0).all()


def test_examples_of_the_tally_carry_their_activations(catalogue):
    site = SITES[1]
    f, own = codes(catalogue, site), catalogue.tally.sites[site]
    for latent in catalogue.alive(site)[:12]:
        for k in range(int((own.statistics.top[latent] > 0).sum())):
            row, at = int(own.statistics.context[latent, k]), int(own.statistics.position[latent, k])
            for offset in range(-BEFORE, AFTER + 1):
                inside = 0 <= at + offset < f.shape[1]
                value = f[row, at + offset, latent].item() if inside else 0.0
                assert own.nearby[latent, k, offset + BEFORE].item() == pytest.approx(value, abs=1e-5)


def test_the_chunks_do_not_show(tiny_models):
    """Contexts one or many at a time, codes in small pieces, sums merged at once or late."""
    model, own, text = tiny_models["gpt2"], dictionaries(), contexts(21)
    one = tally(model, own, text)
    two = tally(model, own, text, chunks=Chunks(contexts=5, codes=18 * 48 * 2, pairs=16))
    for site in SITES:
        a, b = one.sites[site], two.sites[site]
        for name in ("active", "total", "square", "first_position", "norm_share", "nearby"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-5, rtol=1e-5)
        for name in ("latent", "token", "active", "total"):
            torch.testing.assert_close(getattr(a.pairs, name), getattr(b.pairs, name), atol=1e-5, rtol=1e-5)
        for name in ("top", "context", "position"):
            torch.testing.assert_close(getattr(a.statistics, name), getattr(b.statistics, name))
    torch.testing.assert_close(one.atlas.mean_final, two.atlas.mean_final)


@pytest.mark.parametrize(("n", "passes"), [(3, 1), (33, 3), (160, 10)])
def test_every_stage_is_announced_and_their_number_known(n, passes):
    """Four quarters of the training text, or one stage per forward pass if those are fewer; one held-out pass."""
    circuit, heard = Circuit(), []
    read_catalogue(
        circuit.model, circuit.dictionaries, circuit.contexts(n), circuit.contexts(2), on_progress=heard.append
    )
    assert [(step.done, step.total) for step in heard] == [(i, min(passes, 4) + 2) for i in range(min(passes, 4) + 2)]
    assert heard[0].stage == f"training text: reading from context 0 of {n}" and "held-out" in heard[-2].stage


def test_equal_peaks_leave_the_earlier_context():
    circuit = Circuit()
    text = circuit.contexts(1).repeat(9, 1)
    own = tally(circuit.model, circuit.dictionaries, text, top=4, chunks=Chunks(contexts=2)).sites[Site(0)]
    assert own.statistics.context[0].tolist() == [0, 1, 2, 3]


# ---- cards -----------------------------------------------------------------------------------------


KEYS = (
    "id site index density mean_active max first_position norm_share n_tokens label examples histogram drops promotes "
    "suppresses near"
).split()


def test_json_has_the_fixed_form(catalogue, full):
    light = [card for site in SITES for card in catalogue.light(site)]
    assert len(light) == 48 * len(SITES)
    for card in [*light, *full]:
        value = json.loads(json.dumps(card.to_json(), allow_nan=False))
        assert list(value) == KEYS
        assert FeatureId.parse(value["id"]) == card.feature
        for one in value["examples"]:
            assert list(one) == ["group", "tokens", "activations", "end"]
            assert len(one["tokens"]) == len(one["activations"]) > one["end"]
        if value["label"]:
            label = dict(value["label"])
            assert list(label.pop("control")) == ["precision", "recall", "correlation"]
            assert list(label) == ["text", "kind", "precision", "recall", "correlation"]
            assert label["kind"] in ("pattern", "tokens") and isinstance(label["text"], str)
    for card in full:
        value = card.to_json()
        assert list(value["histogram"]) == ["edges", "tokens", "other", "zero"]
        assert list(value["drops"]) == ["token", "edges", "counts", "mean"]
        assert value["near"] and all(list(one) == ["id", "cosine"] for one in value["near"])
    assert all(card.histogram is None and card.drops is None for card in light)


def test_light_and_full_cards_agree(catalogue, full):
    light = {card.feature: card for site in SITES for card in catalogue.light(site)}
    for card in full:
        other = light[card.feature]
        for name in ("density", "mean_active", "max", "first_position", "norm_share", "n_tokens"):
            assert getattr(card, name) == getattr(other, name)
        assert [token for token, _ in card.promotes][:4] == [token for token, _ in other.promotes]
        top = next(one for one in card.examples if one.group == TOP)
        assert (
            max(top.activations)
            == pytest.approx(card.max, rel=1e-5)
            == other.examples[0].activations[other.examples[0].end]
        )
        assert 0 < len(other.examples) <= 4


def test_a_dead_latent_has_an_empty_light_card_and_no_full_one(tiny_models):
    text = contexts()
    found = read_catalogue(tiny_models["neox"], {Site(1): Zero(32)}, text, text)
    (card,) = found.light(Site(1))
    assert (card.density, card.max, card.label, card.examples) == (0, 0, None, ())
    assert "no label" in card_html(card)
    with user_error("1_0 is never active", "choose another feature"):
        list(found.full([FeatureId(Site(1), 0)]))


def test_features_that_are_not_there_are_refused(catalogue):
    for feature, words in (
        (FeatureId(Site(1), 48), ("1_48", "has 48")),
        (FeatureId(Site(7), 0), ("7_0", "no dictionary")),
    ):
        with user_error(*words):
            list(catalogue.full([feature]))
    with user_error("none twice"):
        list(catalogue.full([FeatureId(Site(1), 1)] * 2))


def test_a_text_of_special_tokens_only_is_refused(tiny_models):
    with user_error("no tokens but special ones"):
        tally(tiny_models["neox"], dictionaries(), torch.zeros(2, 5, dtype=torch.long))


def test_the_same_seed_gives_the_same_cards(catalogue, full):
    features = [card.feature for card in full[:2]]
    first, second = ([card.to_json() for card in catalogue.full(features)] for _ in range(2))
    assert first == second and not list(catalogue.full([]))
    for one, card in zip(first, full, strict=False):  # only the control depends on who else is asked for
        one["label"]["control"] = card.to_json()["label"]["control"]
        assert one == card.to_json()


def test_features_are_drawn_evenly_over_the_sites(catalogue, monkeypatch):
    monkeypatch.setattr(subrank.cli.features, "_SEEN_OFTEN", 20)
    found = subrank.cli.features.drawn(catalogue, SITES, 6)
    assert found == sorted(found) and [sum(f.site == site for f in found) for site in SITES] == [2, 2, 1, 1]
    assert {f.site for f in subrank.cli.features.drawn(catalogue, SITES[1:2], 5)} == {SITES[1]}
    everything = subrank.cli.features.drawn(catalogue, SITES, 10**6)
    often = {f for f in everything if catalogue.tally.sites[f.site].active[f.index] >= 20}
    assert often == {*everything} and len(everything) == len(often) > 20


def test_a_dictionary_with_negative_codes_has_cards(tiny_models):
    """Signed coordinates are active nearly everywhere; their range reaches below zero."""
    text = contexts()
    basis = Basis(torch.eye(32)[:3], normal(32))
    found = read_catalogue(tiny_models["neox"], {Site(1): basis}, text, text)
    (card,) = found.full([FeatureId(Site(1), 1)])
    f = codes(found, Site(1))[..., 1]
    assert card.histogram.edges[0] == pytest.approx(f.min().item()) and card.histogram.edges[0] < 0
    assert card.density == 1 and card.max == pytest.approx(f.max().item())
    assert 'class="down"' in card_html(card)


def test_examples_are_peaks_and_places_of_each_quarter(catalogue):
    feature = FeatureId(
        SITES[1], max(catalogue.alive(SITES[1]), key=lambda i: codes(catalogue, SITES[1])[..., i].sum())
    )
    f = codes(catalogue, feature.site)[..., feature.index]
    found = spots(f, catalogue.training, top=3, per_quarter=2, generator=torch.Generator().manual_seed(0))
    assert len({spot.context for spot in found}) == len(found) == len({(spot.context, spot.position) for spot in found})
    values = [f[spot.context, spot.position].item() for spot in found]
    peaks = f.max(1).values.sort(descending=True).values
    assert values[:3] == peaks[:3].tolist() and [spot.group for spot in found[:3]] == [TOP] * 3
    active = f[f > 0].sort().values
    for spot, value in zip(found[3:], values[3:], strict=True):
        low, high = (float(part) for part in spot.group.split("-"))
        assert active[int(len(active) * low)] <= value <= active[max(0, int(len(active) * high) - 1)]
    assert {spot.group for spot in found[3:]} >= {"0.75-1.0", "0.0-0.25"}


def test_texts_that_end_alike_count_once():
    text = torch.tensor([[1, *range(10, 20)], [2, *range(10, 20)], [3, *range(30, 40)]])
    f = torch.zeros(3, 11)
    f[:, 10] = torch.tensor([3.0, 2.0, 1.0])
    found = spots(f, text, top=3, per_quarter=0, generator=torch.Generator())
    assert [spot.context for spot in found] == [0, 2]


# ---- histograms ------------------------------------------------------------------------------------


def test_the_histogram_is_that_of_a_dense_computation(catalogue, full):
    content = catalogue.model.content(catalogue.training)
    for card in full:
        f = codes(catalogue, card.feature.site)[..., card.feature.index]
        own, active = card.histogram, content & (f != 0)
        values, tokens = f[active].double().numpy(), catalogue.training[active].numpy()
        assert own.edges == pytest.approx(numpy.linspace(0, values.max(), N_BINS + 1).tolist())
        counts, _ = numpy.histogram(values, own.edges)
        parts = numpy.array([*(bar.counts for bar in own.tokens), own.other])
        assert (parts.sum(0) == counts).all() and parts.sum() == len(values)
        often = numpy.bincount(tokens)
        ranked = sorted(numpy.unique(tokens), key=lambda token: (-often[token], token))[:N_TOKENS]
        assert [bar.token for bar in own.tokens] == [catalogue.names[token] for token in ranked]
        for bar, token in zip(own.tokens, ranked, strict=True):
            assert (numpy.histogram(values[tokens == token], own.edges)[0] == bar.counts).all()
        assert own.zero == pytest.approx(1 - len(values) / int(content.sum()))
        assert own.zero == pytest.approx(1 - card.density, abs=1e-6)


def test_a_feature_of_few_tokens_has_no_others():
    f = torch.tensor([[0.0, 2.0, 0.0, 1.0]])
    own = activation_histogram(f, torch.tensor([[5, 3, 5, 4]]), f >= 0, [f"t{i}" for i in range(6)])
    assert [bar.token for bar in own.tokens] == ["t3", "t4"] and not any(own.other) and own.zero == 0.5
    assert own.tokens[0].counts[-1] == 1 and own.tokens[1].counts[N_BINS // 2] == 1


@pytest.mark.parametrize("stream", list(Stream), ids=str)
@pytest.mark.parametrize("layer", [0, 1])
def test_logit_drops_are_those_of_full_forward_passes(tiny, stream, layer):
    site = Site(layer, stream)
    own = {site: random_topk(tiny.d_in(site), k=8, seed=5)}
    text = contexts(5, 12)
    alive = codes_of(tiny, own, site, text).flatten(0, 1).sum(0).argmax()
    feature = FeatureId(site, int(alive))
    f = activations(tiny, own, [feature], text)[feature]
    names = [tiny.token_text(token) for token in range(tiny.n_vocab)]
    found = logit_drops(tiny, own, feature, text, f, names, generator=torch.Generator().manual_seed(0))

    mask = tiny.content(text)
    with torch.no_grad(), tiny.hooks(ablate(site, own[site], [feature.index], mask=mask)):
        ablated = tiny.logits(text)
    drop = (tiny.logits(text) - ablated)[f != 0].double()
    drop = drop - drop.mean(-1, keepdim=True)
    token = int(drop.mean(0).abs().argmax())
    assert found.token == names[token]
    assert found.mean == pytest.approx(drop[:, token].mean().item(), abs=1e-5) and abs(found.mean) > 1e-3
    edges = numpy.array(found.edges)
    assert edges[0] == pytest.approx(drop[:, token].min().item(), abs=1e-5)
    assert edges[-1] == pytest.approx(drop[:, token].max().item(), abs=1e-5)
    edges[[0, -1]] += (-1e-4, 1e-4)  # rounding must not push an end out of its bin
    assert numpy.abs(numpy.histogram(drop[:, token].numpy(), edges)[0] - numpy.array(found.counts)).sum() <= 2
    assert sum(found.counts) == len(drop)


def codes_of(model, own, site, text) -> Tensor:
    return own[site].encode(model.record(text, [site])[site]) * model.content(text)[..., None]


def test_drops_of_a_planted_circuit_have_the_sign_of_its_path():
    """In `Circuit` the unembedding is the embedding: ablating f0 lowers the tokens that are given most of it."""
    circuit = Circuit()
    text = circuit.contexts()
    feature = FeatureId(Site(3), 0)
    f = activations(circuit.model, circuit.dictionaries, [feature], text)[feature]
    names = [circuit.model.token_text(token) for token in range(60)]
    nothing = logit_drops(
        circuit.model, circuit.dictionaries, feature, text, f, names, generator=torch.Generator().manual_seed(0)
    )
    assert abs(nothing.mean) < 1e-4  # f8's direction is orthogonal to every token's
    feature = FeatureId(Site(0), 0)
    f = activations(circuit.model, circuit.dictionaries, [feature], text)[feature]
    found = logit_drops(
        circuit.model, circuit.dictionaries, feature, text, f, names, generator=torch.Generator().manual_seed(0)
    )
    given = circuit.given[:, 0] - circuit.given[:, 0].mean()
    assert found.token == names[int(given.abs().argmax())]
    assert (found.mean > 0) == bool(given[given.abs().argmax()] > 0)


def test_drops_of_a_silent_feature_are_none(tiny_models):
    text = contexts()
    found = logit_drops(
        tiny_models["neox"],
        {Site(1): Zero(32)},
        FeatureId(Site(1), 0),
        text,
        torch.zeros(text.shape),
        [],
        generator=torch.Generator(),
    )
    assert found is None


# ---- what a feature writes, and its neighbours -----------------------------------------------------


def test_a_hidden_direction_writes_what_the_mlp_makes_of_it(tiny):
    site, out = Site(1, Stream.MLP_HIDDEN), Site(1, Stream.MLP_OUT)
    directions = torch.nn.functional.normalize(normal(4, tiny.d_in(site)), dim=-1)
    found = written(tiny, site, directions)
    text = contexts(4, 12)
    for direction, expected in zip(directions, found, strict=True):
        push = type("Push", (), {"site": site, "__call__": lambda _, h, d=direction: h + 3 * d})()
        with tiny.hooks(push):
            moved = tiny.record(text, [out])[out]
        change = (moved - tiny.record(text, [out])[out]) / 3
        torch.testing.assert_close(change, expected.expand_as(change), atol=1e-4, rtol=1e-4)
    assert written(tiny, out, directions[:, :32]) is not found


def test_neighbours_are_the_largest_cosines_of_its_own_and_the_adjacent_layers():
    own = dictionaries() | {Site(1, Stream.MLP_HIDDEN): random_topk(64)}
    feature = FeatureId(Site(1), 5)
    found = nearest(own, feature, 2)
    direction = own[feature.site].directions[5]
    expected = []
    for site in SITES:
        cosine = own[site].directions @ direction
        ranked = [int(i) for i in cosine.argsort(descending=True) if (site, int(i)) != (feature.site, 5)]
        expected += [(FeatureId(site, i), cosine[i].item()) for i in ranked[:2]]
    expected.sort(key=lambda pair: -pair[1])
    assert [f for f, _ in found] == [f for f, _ in expected]
    assert {f.site for f, _ in nearest(own, FeatureId(Site(0), 1))} == set(SITES) - {Site(2)}
    assert {f.site for f, _ in nearest(own, FeatureId(Site(1, Stream.MLP_HIDDEN), 1))} == {Site(1, Stream.MLP_HIDDEN)}


def test_neurons_are_coordinates_of_both_signs():
    basis, x = coordinates(random_topk(32).directions), normal(5, 32)
    assert torch.equal(basis.encode(x), torch.cat([x.relu(), (-x).relu()], 1))
    torch.testing.assert_close(basis.decode(basis.encode(x)), x)


# ---- the page --------------------------------------------------------------------------------------


class Structure(HTMLParser):
    """Tags in the order in which they open, with what events and links they carry."""

    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}


def nasty(card: Card) -> Card:
    """The card with hostile tokens everywhere."""
    examples = tuple(
        replace(one, tokens=tuple(NASTY[i % len(NASTY)] for i in range(len(one.tokens)))) for one in card.examples
    )
    pairs = tuple((NASTY[i % len(NASTY)], 1.0) for i in range(len(card.promotes)))
    tokens = tuple(replace(bar, token=name) for name, bar in zip(NASTY, card.histogram.tokens, strict=False))
    return replace(
        card,
        examples=examples,
        promotes=pairs,
        suppresses=pairs,
        label=replace(card.label, text=NASTY[0]),
        histogram=replace(card.histogram, tokens=tokens),
        drops=replace(card.drops, token=NASTY[0]),
    )


def test_hostile_tokens_are_shown_as_text(full, tmp_path):
    plain, hostile = Structure(), Structure()
    plain.feed(card_html(full[0]))
    body = card_html(nasty(full[0]))
    hostile.feed(body)
    assert hostile.tags == plain.tags and hostile.attributes == plain.attributes
    assert NASTY[0] not in body and "&lt;script&gt;" in body and "↵" in body and NASTY[2] in body
    write_page(tmp_path / "features.html", "Features", cards_section([nasty(full[0])]))
    page = (tmp_path / "features.html").read_text(encoding="utf-8")
    assert NASTY[0] not in page and "unicode-bidi: isolate" in page


def test_the_page_shows_every_card_and_links_them(full, catalogue):
    body = cards_section(full, {full[0].feature: full[1]})
    for card in full:
        assert body.count(f'id="{card.feature}"') == 1 and f'href="#{card.feature}"' in body
        assert f"{card.label.score.correlation:.2f} ({card.label.control.correlation:.2f})" in body
    assert body.count("plotly-graph-div") == 2 * (len(full) + 1) and "<details>" in body


def test_figures_say_what_the_card_says(full):
    card = full[0]
    bars = activation_figure(card).data
    counts = numpy.array([[row[0] for row in bar.customdata] for bar in bars])
    assert counts.sum() == round(card.density * card.n_tokens)
    heights = numpy.array([bar.y for bar in bars]).sum(0)
    assert heights == pytest.approx(numpy.log10(1 + counts.sum(0)).tolist())
    (drops,) = drops_figure(card).data
    assert list(drops.y) == list(card.drops.counts)
    light = replace(card, histogram=None, drops=None)
    assert activation_figure(light) is drops_figure(light) is None and "plotly" not in card_html(light)


# ---- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(storybook, tmp_path_factory):
    """A set of untrained dictionaries of storybook."""
    found = tmp_path_factory.mktemp("set")
    own = {site: random_topk(128, 300, 12, seed=site.layer) for site in (Site(1), Site(2))}
    text = Text("storybook", 64, True, 64 * 60)
    DictionarySet("storybook", storybook.fingerprint(), text, own).save(found)
    costs = SetQuality(
        {site: Quality(0.5, 12.0, 0.0, 100) for site in own}, {site: SpliceCost(1.0, 1.1, 3.0) for site in own}
    )
    write_json(found / QUALITY, costs.to_json())
    return found


@pytest.mark.slow
def test_the_command_writes_cards_of_all_features_and_a_page(folder, capsys):
    out = folder / "features"
    asked = ["features", str(folder), "--contexts", "16", "--full", "2", "--neurons", "--device", "cpu"]
    assert command.main(asked) == 0, capsys.readouterr().err
    result, index = (json.loads((out / name).read_text()) for name in ("result.json", "features/index.json"))
    assert len(result["features"]) == 2 == len(index["full"])
    assert index["features"] == {"resid_post.1": 300, "resid_post.2": 300} and index["chunk"] == 256
    cards = [
        card
        for site in index["features"]
        for number in range(2)
        for card in json.loads((out / "features" / site / f"{number}.json").read_text())
    ]
    assert [card["id"] for card in cards] == [f"{layer}_{i}" for layer in (1, 2) for i in range(300)]
    assert {card["id"] for card in cards if card["histogram"]} == set(index["full"])
    assert result["features"] == [card for card in cards if card["histogram"]]
    assert set(result["neurons"]) <= set(index["full"]) and result["neurons"]
    assert {"n_latents", "alive", "tokens_label", "control"} == set(result["sites"]["resid_post.1"])
    page = (out / "features.html").read_text(encoding="utf-8")
    assert "<td>resid_post.2</td><td>300</td>" in page
    assert all(f'id="{name}"' in page for name in index["full"]) and (out / "plotly.min.js").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--features", "1_300"], ("1_300", "has 300")),
        (["--features", "5_0"], ("5_0", "no dictionary")),
        (["--features", "five"], ("five", "features read like")),
        (["--features", "1_2,1_2"], ("none twice",)),
        (["--site", "resid_post.5"], ("resid_post.5", "this set has")),
        (["--site", "nowhere"], ("nowhere", "sites read like")),
        (["--contexts", "2"], ("--contexts", "at least 8")),
        (["--full", "-1"], ("--full", "at least 0")),
    ],
)
def test_mistakes_are_answered_in_one_line(folder, capsys, arguments, words):
    assert command.main(["features", str(folder), "--device", "cpu", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words)
