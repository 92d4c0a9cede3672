"""Dose and response: what algebra says of a linear model, and what controls of the same size do."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import user_error

from editing.engine.batching import peak_bytes
from editing.steering.dose_response import Along, DoseResponse, dose_response, slope
from editing.steering.edits import Mode, Steering, promoted
from editing.steering.held_out import DoseConfig
from sae_core.codec import from_plain, to_plain
from sae_core.sites import Site

SITE = Site(0)
STRENGTHS = (-2.0, 0.0, 1.0, 2.0, 4.0)


def test_the_response_to_scaling_is_the_line_that_algebra_says(toy):
    tokens = promoted(toy.model, toy.dictionaries, toy.text, 2)
    along = toy.model.embedding @ toy.dictionaries[SITE].directions[0]
    assert set(tokens.tolist()) == set(along.topk(2).indices.tolist())
    response = toy.respond(Mode.SCALE)
    doses = response.of(Along.FEATURES)
    values = [dose.logit.value for dose in doses]
    assert values == sorted(values) and values[0] < values[2] == 0 < values[-1]
    f = toy.held_out.f[..., 0]  # no context has more active places than are read
    mean_f = torch.stack([row[row > 0].mean() for row in f if row.any()]).mean()
    assert response.slope[Along.FEATURES].value == pytest.approx(
        float(mean_f * (along[tokens].mean() - along.mean())), rel=1e-3
    )
    assert all(dose.logit.low <= dose.logit.value <= dose.logit.high for dose in doses)
    assert all(dose.kl.value == 0 for dose in response.doses)  # nothing happens where the feature is silent


def test_likelier_are_the_tokens_that_lose_most_when_the_feature_is_off(toy):
    embedding, d = toy.model.embedding, toy.dictionaries[SITE].directions[0]
    f = toy.held_out.f[..., 0]
    h = embedding[toy.held_out.contexts][f > 0]
    fall = (h @ embedding.T).softmax(-1) - ((h - f[f > 0][:, None] * d) @ embedding.T).softmax(-1)
    tokens = fall.mean(0).topk(2).indices.tolist()
    assert toy.respond(Mode.SCALE).likelier == tuple(f"t{token}" for token in tokens)


@pytest.mark.slow
def test_random_directions_of_the_same_size_promote_less(toy):
    for mode in (Mode.SCALE, Mode.CLAMP):
        response = toy.respond(mode)
        sizes = [[dose.edit_size for dose in response.of(method)] for method in (Along.FEATURES, Along.RANDOM)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-4, abs=1e-5)
        assert abs(response.slope[Along.RANDOM].value) < 0.3 * response.slope[Along.FEATURES].value
        assert response.slope[Along.MEAN_DIFFERENCE].value > 0.5 * response.slope[Along.FEATURES].value


def test_clamping_costs_where_the_feature_is_silent(toy):
    kl = [dose.kl.value for dose in toy.respond(Mode.CLAMP, (0.0, 0.5, 1.0, 2.0)).of(Along.FEATURES)]
    assert kl[0] == 0 and kl == sorted(kl) and kl[-1] > 0.01
    (off,) = toy.respond(Mode.OFF, (0.0,)).of(Along.FEATURES)
    assert off.logit.value < 0 and toy.respond(Mode.OFF, (0.0,)).slope == {}


def test_a_feature_that_is_silent_on_held_out_text_has_no_doses(toy):
    silent = replace(toy.held_out, f=torch.zeros_like(toy.held_out.f))
    steering = Steering(toy.dictionaries, toy.text, Mode.SCALE)
    response = dose_response(toy.model, steering, STRENGTHS, silent, DoseConfig(n_promoted=2))
    assert response.doses == response.likelier == () and response.n_places == 0 and len(response.promoted) == 2


@pytest.mark.slow
def test_responses_do_not_depend_on_how_many_logits_are_there_at_once(toy):
    whole = toy.respond(Mode.CLAMP, (0.5, 2.0))
    parts = toy.respond(Mode.CLAMP, (0.5, 2.0), logits_at_once=7 * toy.model.n_vocab)
    assert parts.likelier == whole.likelier and parts.n_neutral_places == whole.n_neutral_places > 7
    for dose, whole_dose in zip(parts.doses, whole.doses, strict=True):
        for name in ("logit", "log_prob", "kl"):
            expected = getattr(whole_dose, name)
            assert getattr(dose, name).value == pytest.approx(expected.value, rel=1e-5, abs=1e-6)
            assert getattr(dose, name).high == pytest.approx(expected.high, rel=1e-5, abs=1e-6)


def test_memory_for_logits_is_bounded(toy):
    """Logits of a few places at a time, of either kind, before and after: all are never there together."""
    toy.respond(Mode.CLAMP, (2.0,))
    places, vocab = 2 * 30 * 12, toy.model.n_vocab
    assert peak_bytes(lambda: toy.respond(Mode.CLAMP, (2.0,), logits_at_once=20 * vocab)) < 4 * vocab * places / 2


def test_slope():
    strengths = (-1.0, 0.0, 3.0)
    lines = torch.tensor([[2.0 * s + 1, -0.5 * s] for s in strengths])
    assert slope(strengths, lines).tolist() == pytest.approx([2.0, -0.5])


@pytest.mark.parametrize(("name", "value"), [("contexts", 1), ("n_promoted", 0), ("random_draws", 0)])
def test_too_little_to_measure_is_refused(name, value):
    with user_error(name, str(value)):
        DoseConfig(**{name: value})


def test_a_response_reads_back_as_it_was_written(toy):
    stages = []
    steering, config = Steering(toy.dictionaries, toy.text, Mode.CLAMP), DoseConfig(contexts=4, n_promoted=2)
    response = dose_response(toy.model, steering, (0.5, 2.0), toy.held_out, config, stages.append)
    assert [(stage.done, stage.total) for stage in stages] == [(0, 3), (1, 3), (2, 3)]
    plain = json.loads(json.dumps(to_plain(response), allow_nan=False))
    assert from_plain(DoseResponse, plain) == response
    assert {*plain["doses"][0]["logit"]} == {*plain["slope"]["features"]} == {"value", "low", "high"}
