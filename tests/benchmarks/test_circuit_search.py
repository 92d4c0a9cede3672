"""The circuit benchmark works: its three ways agree, and it counts what is run. No speed is asserted."""

from dataclasses import replace

import pytest
import torch
from planted import unchecked

from sae_core.model.block import block_of


@pytest.fixture(scope="module")
def small_subjects(tmp_path_factory) -> list:
    """A small sequential model with TopK and ReLU dictionaries."""
    from circuit_subjects import Texts, language_model, subjects

    texts = Texts(n_ctx=16, n_contexts=120, n_latents=(64,), k=8, width=32, n_layers=3)
    return list(subjects(language_model("Llama shape", tmp_path_factory.mktemp("model"), texts), texts))


@pytest.fixture(params=["TopK", "ReLU"])
def subject(small_subjects, request):
    (chosen,) = (chosen for chosen in small_subjects if chosen.kind == request.param)
    return chosen


@pytest.fixture
def size():
    from circuit_causes import QUICK

    return replace(QUICK, n_examples=5)


@pytest.mark.slow
def test_all_ways_find_the_same_effects(subject, size):
    from circuit_causes import TOLERANCE, best, same_edges, search
    from circuit_questions import literal, looped, routed

    for question, effects in search(subject, routed, size):
        loop, latents = looped(question), [*best(effects), 5, 6, 7]
        assert effects.abs().max() > 0.01 and same_edges(effects, loop)
        assert (effects - loop).abs().max() < TOLERANCE
        assert (effects[latents] - literal(question, latents)).abs().max() < TOLERANCE


@pytest.mark.slow
def test_passes_are_counted_as_the_formulas_say(subject, size):
    from circuit_causes import search
    from circuit_cost import measured
    from circuit_questions import literal, literal_forwards, loop_forwards, looped, routed

    question, _ = search(subject, routed, size)[0]
    _, full = measured(subject.model, lambda: literal(question, [1, 2]))
    assert full.forwards == pytest.approx(literal_forwards(question, 2))
    _, loop = measured(subject.model, lambda: looped(question))
    to_measure_memory = (1 + 3) * question.width * question.gap
    assert loop.forwards == pytest.approx(loop_forwards(question) + to_measure_memory)
    _, routes = measured(subject.model, lambda: routed(question))
    assert routes.forwards < loop.forwards
    assert not block_of(subject.model, 0, 1).mlp._forward_hooks


@pytest.mark.slow
def test_a_search_asks_all_causes_of_the_root_and_the_strongest_of_others(subject, size):
    from circuit_causes import best, search
    from circuit_questions import routed

    steps = search(subject, routed, size)
    (root, effects), *rest = steps
    asked = [question.target.node for question, _ in steps]
    assert root.target.node == subject.root(5) and len(set(asked)) == len(asked)
    assert {(question.target.site.layer, question.source.layer) for question, _ in steps} == {(2, 1), (1, 0)}
    assert {question.target.node.index for question, _ in rest} <= set(best(effects))
    assert len(search(subject, routed, replace(size, least=6))) == 1


def test_edges_differ_unless_they_are_tied():
    from circuit_causes import same_edges

    effects = torch.tensor([0.5, -0.4, 0.3, 0.3, 0.1])
    assert same_edges(effects, effects + torch.tensor([0, 0, 0, 1e-6, 0]))
    assert not same_edges(effects, torch.tensor([0.4, -0.5, 0.3, 0.3, 0.1]))
    assert not same_edges(effects, torch.tensor([0.5, -0.4, 0.1, 0.1, 0.3]))


def test_relu_dictionaries_are_as_active_as_those_they_come_from(small_subjects):
    topk, relu = small_subjects
    assert topk.l0 == pytest.approx(8, abs=0.2) and relu.l0 == pytest.approx(8, abs=1.5)
    assert topk.fvu < 1


@pytest.mark.slow
def test_the_whole_benchmark_runs(capsys):
    from circuit_search import main

    with unchecked():
        assert main(["--quick", "--threads", "1", "--models", "storybook"]) == 0
    shown = capsys.readouterr().out
    assert "### storybook, parallel blocks" in shown and "### storybook, where least is gained" in shown
    assert "literal" in shown and "A sequential model of 3 layers" in shown
