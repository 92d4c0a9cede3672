"""Steering: strengths mean what they say, silent features do nothing, and responses are what algebra says."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from handmade import HandModel, Zero, normal, random_topk
from tiny import random_tokens, user_error

from editing.engine.batching import peak_bytes
from editing.interventions.edit_size import Measured
from editing.interventions.masks import Onward
from editing.steering.dose_response import Along, DoseConfig, dose_response, slope
from editing.steering.steer import (
    Mode,
    _written,
    changed_tokens,
    check_features,
    continuations,
    example_prompts,
    promoted,
    random_directions,
    read_features,
    redirected,
    steering,
)
from sae_core.dictionaries.baselines import Rectified, random_basis
from sae_core.model.generation import Sampling, generate
from sae_core.sites import FeatureId, Site, Stream

SITE = Site(0)
ONE = FeatureId(SITE, 0)
STRENGTHS = (-2.0, 0.0, 1.0, 2.0, 4.0)


class Linear(HandModel):
    """Logits are E_v . h, and the blocks add nothing: what an edit does to every logit can be written down."""

    def __init__(self, n_vocab: int = 600, d_model: int = 64):
        nothing = torch.zeros(d_model, d_model)
        embedding = 0.4 * normal(n_vocab, d_model, seed=1)
        embedding[0] = 0
        super().__init__(embedding, [(nothing, nothing)] * 2)
        self.edits = ()

    @contextmanager
    def hooks(self, *edits):
        self.edits = edits
        yield
        self.edits = ()

    def _run(self, h, first, sites):
        kept = {}
        for layer in range(first, self.n_layers):
            for edit in self.edits:
                h = edit(h) if edit.site == Site(layer) else h
            kept[Site(layer)] = h
        return {site: kept[site] for site in sites}


class Toy:
    """A linear model with 64 orthogonal features that are only ever added, at its first site."""

    def __init__(self):
        self.model = Linear()
        directions = random_basis(64, generator=torch.Generator().manual_seed(2)).directions
        self.dictionaries = {SITE: Rectified(directions, torch.zeros(64))}
        tokens = torch.randint(1, 600, (60, 12), generator=torch.Generator().manual_seed(3))
        tokens[:, 0] = 0
        self.text, self.held_out = (
            read_features(self.model, self.dictionaries, [ONE], part) for part in tokens.split(30)
        )

    def respond(self, mode: Mode, strengths=STRENGTHS):
        config = DoseConfig(n_promoted=2)
        *_, found = dose_response(self.model, self.dictionaries, self.text, self.held_out, mode, strengths, config)
        return found


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


# ---- edits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "strength"), [(Mode.SCALE, -1.5), (Mode.CLAMP, 0.5), (Mode.OFF, 0.0)])
def test_strengths_mean_what_they_say(toy, mode, strength):
    h = normal(2, 5, 64, seed=4)
    (edit,) = steering(toy.dictionaries, toy.text, mode, strength)
    d = toy.dictionaries[SITE].directions[0]
    f = (h @ d).relu()
    wanted = {Mode.SCALE: strength * f, Mode.CLAMP: torch.full_like(f, strength * toy.text.maximum[0]), Mode.OFF: 0 * f}
    torch.testing.assert_close(edit(h), h + (wanted[mode] - f)[..., None] * d)


def test_features_of_one_site_are_read_together_and_sites_have_an_edit_each(storybook):
    dictionaries = {Site(layer): random_topk(storybook.d_model, seed=layer) for layer in (1, 2)}
    features = [FeatureId(Site(2), 5), FeatureId(Site(1), 7), FeatureId(Site(1), 3)]
    text = read_features(storybook, dictionaries, features, random_tokens(storybook.n_vocab, 8, 30))
    edits = steering(dictionaries, replace(text, f=text.f + 1), Mode.SCALE, 2.0)
    assert [(edit.site, edit.latents.tolist()) for edit in edits] == [(Site(1), [3, 7]), (Site(2), [5])]


def test_controls_move_as_far_as_the_features_at_every_position(toy):
    h = normal(3, 7, 64, seed=5)
    edits = steering(toy.dictionaries, toy.text, Mode.SCALE, 3.0)
    u = random_directions(toy.model, [SITE], generator=torch.Generator().manual_seed(0))
    own, other = (edit(h) - h for edit in (edits[0], redirected(edits, u)[0]))
    torch.testing.assert_close(other.norm(dim=-1), own.norm(dim=-1))
    silent = own.norm(dim=-1) == 0
    assert silent.any() and not silent.all() and not other[silent].any()
    assert ((other @ u[SITE])[~silent] > 0).all()
    down = redirected(steering(toy.dictionaries, toy.text, Mode.SCALE, -1.0), u)[0](h) - h
    assert ((down @ u[SITE])[~silent] < 0).all()


def test_what_a_text_says_of_a_feature(toy):
    text, d = toy.text, toy.dictionaries[SITE].directions[0]
    h = toy.model.embedding[text.contexts]
    content = text.contexts != 0
    f = (h @ d).relu() * content
    torch.testing.assert_close(text.f[..., 0], f)
    assert text.maximum[0] == f.max() and text.n_tokens == content.sum()
    assert text.density[0] == pytest.approx((f > 0).sum().item() / content.sum().item())
    difference = h[f > 0].mean(0) - h[content & (f == 0)].mean(0)
    torch.testing.assert_close(text.difference[SITE], difference / difference.norm(), atol=1e-5, rtol=1e-4)


# ---- dose and response -----------------------------------------------------------------------------


def test_the_response_to_scaling_is_the_line_that_algebra_says(toy):
    tokens = promoted(toy.model, toy.dictionaries, toy.text, 2)
    along = toy.model.embedding @ toy.dictionaries[SITE].directions[0]
    assert set(tokens.tolist()) == set(along.topk(2).indices.tolist())
    response = toy.respond(Mode.SCALE)
    own = response.of(Along.FEATURES)
    values = [dose.logit.mean for dose in own]
    assert values == sorted(values) and values[0] < values[2] == 0 < values[-1]
    f = toy.held_out.f[..., 0]  # no context has more active places than are read
    mean_f = torch.stack([row[row > 0].mean() for row in f if row.any()]).mean()
    assert response.slope[Along.FEATURES].mean == pytest.approx(
        float(mean_f * (along[tokens].mean() - along.mean())), rel=1e-3
    )
    assert all(dose.logit.low <= dose.logit.mean <= dose.logit.high for dose in own)
    assert all(dose.kl.mean == 0 for dose in response.doses)  # nothing happens where the feature is silent


def test_likelier_are_the_tokens_that_lose_most_when_the_feature_is_off(toy):
    embedding, d = toy.model.embedding, toy.dictionaries[SITE].directions[0]
    f = toy.held_out.f[..., 0]
    h = embedding[toy.held_out.contexts][f > 0]
    fall = (h @ embedding.T).softmax(-1) - ((h - f[f > 0][:, None] * d) @ embedding.T).softmax(-1)
    tokens = fall.mean(0).topk(2).indices.tolist()
    assert toy.respond(Mode.SCALE).likelier == tuple(f"t{token}" for token in tokens)


def test_random_directions_of_the_same_size_promote_less(toy):
    for mode in (Mode.SCALE, Mode.CLAMP):
        response = toy.respond(mode)
        sizes = [[dose.edit_size for dose in response.of(method)] for method in (Along.FEATURES, Along.RANDOM)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-4, abs=1e-5)
        assert abs(response.slope[Along.RANDOM].mean) < 0.3 * response.slope[Along.FEATURES].mean
        assert response.slope[Along.MEAN_DIFFERENCE].mean > 0.5 * response.slope[Along.FEATURES].mean


def test_clamping_costs_where_the_feature_is_silent(toy):
    kl = [dose.kl.mean for dose in toy.respond(Mode.CLAMP, (0.0, 0.5, 1.0, 2.0)).of(Along.FEATURES)]
    assert kl[0] == 0 and kl == sorted(kl) and kl[-1] > 0.01
    (off,) = toy.respond(Mode.OFF, (0.0,)).of(Along.FEATURES)
    assert off.logit.mean < 0 and toy.respond(Mode.OFF, (0.0,)).slope == {}


def test_a_feature_that_is_silent_on_held_out_text_has_no_doses(toy):
    silent = replace(toy.held_out, f=torch.zeros_like(toy.held_out.f))
    *_, found = dose_response(
        toy.model, toy.dictionaries, toy.text, silent, Mode.SCALE, STRENGTHS, DoseConfig(n_promoted=2)
    )
    assert found.doses == found.likelier == () and found.n_places == 0 and len(found.promoted) == 2


def test_responses_do_not_depend_on_how_many_logits_are_there_at_once(toy, monkeypatch):
    whole = toy.respond(Mode.CLAMP, (0.5, 2.0))
    monkeypatch.setattr("editing.steering.dose_response.LOGITS_AT_ONCE", 7 * toy.model.n_vocab)
    parts = toy.respond(Mode.CLAMP, (0.5, 2.0))
    assert parts.likelier == whole.likelier and parts.n_neutral_places == whole.n_neutral_places > 7
    for ours, theirs in zip(parts.doses, whole.doses, strict=True):
        for name in ("logit", "log_prob", "kl"):
            expected = getattr(theirs, name)
            assert getattr(ours, name).mean == pytest.approx(expected.mean, rel=1e-5, abs=1e-6)
            assert getattr(ours, name).high == pytest.approx(expected.high, rel=1e-5, abs=1e-6)


def test_memory_for_logits_is_bounded(toy, monkeypatch):
    """Logits of a few places at a time, of either kind, before and after: all are never there together."""
    toy.respond(Mode.CLAMP, (2.0,))
    places, vocab = 2 * 30 * 12, toy.model.n_vocab
    monkeypatch.setattr("editing.steering.dose_response.LOGITS_AT_ONCE", 20 * vocab)
    assert peak_bytes(lambda: toy.respond(Mode.CLAMP, (2.0,))) < 4 * vocab * places / 2


def test_slope():
    strengths = (-1.0, 0.0, 3.0)
    lines = torch.tensor([[2.0 * s + 1, -0.5 * s] for s in strengths])
    assert slope(strengths, lines).tolist() == pytest.approx([2.0, -0.5])


def test_a_hidden_feature_promotes_what_the_mlp_makes_of_it(tiny):
    site, direction = Site(1, Stream.MLP_HIDDEN), normal(64, seed=6)
    expected = direction @ tiny.bridge.W_out[1]
    torch.testing.assert_close(_written(tiny, site, direction), expected, atol=1e-4, rtol=1e-4)


# ---- text ------------------------------------------------------------------------------------------


def test_a_silent_feature_leaves_generated_text_alone(tiny):
    rows, site = [random_tokens(tiny.n_vocab, n, seed=n).tolist() for n in (6, 3)], Site(1)
    dictionaries = {site: Zero(tiny.d_model)}
    text = read_features(tiny, dictionaries, [FeatureId(site, 0)], torch.tensor(rows[:1]))
    text = replace(text, f=text.f + 30.0)  # as if it had been active elsewhere
    for mode, strength, same in ((Mode.OFF, 0.0, True), (Mode.SCALE, 9.0, True), (Mode.CLAMP, 1.0, False)):
        found = continuations(tiny, dictionaries, text, rows, mode, [strength], 12, seed=0)
        assert [one.strength for one in found] == [None, strength] * 2
        for plain, edited in (found[:2], found[2:]):
            assert (plain.tokens == edited.tokens) is same and any(edited.changed) is not same


def test_every_new_token_is_edited_and_bos_is_not(storybook):
    site = Site(2)
    dictionaries = {site: random_topk(storybook.d_model)}
    prompt = [0, *storybook.to_ids("Mary went to the")]
    text = read_features(storybook, dictionaries, [FeatureId(site, 3)], torch.tensor([prompt]))
    mask = Onward(storybook.content(torch.tensor([prompt])))
    (edit,) = steering(dictionaries, replace(text, f=text.f + 1), Mode.CLAMP, 5.0, mask=mask)
    measured = Measured(edit)
    with storybook.hooks(measured):
        (new,) = generate(storybook, [prompt], 6, seed=0, sampling=Sampling(temperature=0.0))
    first, *later = measured.moved
    assert first[0, 0] == 0 and (first[0, 1:] > 0).all()
    assert len(later) >= len(new) - 1 and all((step > 0).all() for step in later)


def test_the_same_seed_writes_the_same_text(storybook):
    site, feature = Site(2), FeatureId(Site(2), 3)
    dictionaries = {site: random_topk(storybook.d_model)}
    prompt = [0, *storybook.to_ids("Mary went to the")]
    text = read_features(storybook, dictionaries, [feature], random_tokens(storybook.n_vocab, 8, 20))
    text = replace(text, f=text.f + 1)
    one, same, other = (
        continuations(storybook, dictionaries, text, [prompt], Mode.SCALE, [1.0, 4.0], 15, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one == same != other
    assert one[0].tokens == one[1].tokens and not any(one[1].changed)  # scaling by one is no edit
    assert one[0].prompt == "Mary went to the" and all(text.marked() for text in one)


def test_changed_tokens_are_those_that_no_alignment_keeps():
    assert changed_tokens([1, 2, 3, 4], [1, 2, 3, 4]) == (False,) * 4
    assert changed_tokens([1, 2, 3, 4], [1, 9, 2, 3, 4]) == (False, True, False, False, False)
    assert changed_tokens([1, 2, 3, 4, 5, 6], [1, 9, 5, 6]) == (False, True, True, True)  # two by chance
    assert changed_tokens([1, 2, 3], [7, 8]) == (True, True) and changed_tokens([1], []) == ()


def test_example_prompts_end_where_the_feature_peaks_or_begin_where_it_is_silent(toy):
    peak, silent = (example_prompts(toy.model, toy.text, mode) for mode in (Mode.SCALE, Mode.CLAMP))
    along = toy.model.embedding @ toy.dictionaries[SITE].directions[0]
    assert along[peak[0][-1]] == toy.text.maximum[0] and all(row[0] == 0 and row.count(0) == 1 for row in peak)
    assert len(peak) == len(silent) == 2


# ---- mistakes --------------------------------------------------------------------------------------


def test_features_that_are_not_there(toy):
    for name, words in (("3_1", "no dictionary"), ("0_64", "has 64"), ("mlp_out.0_1", "no dictionary")):
        with user_error(name, words):
            check_features(toy.dictionaries, [FeatureId.parse(name)])
    for features in ([], [ONE, ONE]):
        with user_error("at least one feature", "twice"):
            check_features(toy.dictionaries, features)


def test_a_feature_that_is_never_active(toy):
    silent = replace(toy.text, f=torch.zeros_like(toy.text.f))
    with user_error("0_0", "never active", str(toy.text.n_tokens)):
        steering(toy.dictionaries, silent, Mode.SCALE, 2.0)


@pytest.mark.parametrize(("name", "value"), [("contexts", 1), ("n_promoted", 0), ("random_draws", 0)])
def test_too_little_to_measure_is_refused(name, value):
    with user_error(name, str(value)):
        DoseConfig(**{name: value})
