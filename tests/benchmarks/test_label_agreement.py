"""Features against labels: known F1, halves that do not see each other, and the labels of the grammar."""

import random

import pytest
import torch
from handmade import Circuit
from label_agreement import agreements
from storybook_truth import labels, truth
from tiny import user_error

from sae_core.sites import FeatureId, Site
from sae_core.storybook.grammar import Grammar
from sae_core.storybook.page import CLOSING, END

ONE = FeatureId(Site(0), 0)


def on_circuit(labels: dict, features=(ONE,)):
    circuit = Circuit()
    return circuit, agreements(circuit.model, circuit.dictionaries, features, circuit.contexts(40), labels)


def activation() -> torch.Tensor:
    circuit = Circuit()
    return circuit.activation(0, circuit.contexts(40))


def test_a_label_that_is_a_threshold_is_found_with_it():
    f = activation()
    control = torch.rand(f.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    _, (agreement,) = on_circuit({"other": control, "strong": f > 2.0, "stronger": f > 2.3})
    assert agreement.label in ("strong", "stronger") and agreement.f1 == agreement.precision == agreement.recall == 1
    assert agreement.threshold == pytest.approx({"strong": 2.0, "stronger": 2.3}[agreement.label], abs=0.1)
    _, (nothing,) = on_circuit({"other": control})
    assert nothing.f1 < 0.5


def test_f1_is_that_of_the_half_that_chose_nothing():
    f = activation()
    even = (torch.arange(40) % 2 == 0)[:, None]
    _, (agreement,) = on_circuit({"half": (f > 2.0) & even})
    assert agreement.f1 == agreement.recall == agreement.precision == 0  # of the odd documents none has the label
    half = (f > 2.0) & (even | (torch.rand(f.shape, generator=torch.Generator().manual_seed(1)) < 0.5))
    _, (agreement,) = on_circuit({"half": half})
    odd = ~even.expand_as(f) & (f > agreement.threshold)
    precision = float(half[odd].float().mean())
    assert agreement.precision == pytest.approx(precision) and agreement.recall == 1
    assert agreement.f1 == pytest.approx(2 * precision / (1 + precision))


def test_every_feature_has_its_own_and_one_document_is_too_few():
    circuit = Circuit()
    tokens = circuit.contexts(40)
    said = {f"f{i}": circuit.activation(i, tokens) > circuit.activation(i, tokens).median() for i in (0, 4, 5)}
    features = [FeatureId(Site(1), 1), ONE, FeatureId(Site(1), 0)]
    best = agreements(circuit.model, circuit.dictionaries, features, tokens, said)
    assert [(a.feature, a.label) for a in best] == list(zip(features, ("f5", "f0", "f4"), strict=True))
    assert all(a.f1 == 1 for a in best)
    with user_error("at least two"):
        agreements(circuit.model, circuit.dictionaries, [ONE], tokens[:1], {"a": tokens[:1] > 3})


# ---- the grammar's labels --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_truth_is_that_of_the_text(storybook):
    """Brackets by a stack of our own, names by their tokens; what pads or stands first is nobody's label."""
    grammar = truth(storybook, 40)
    assert grammar.tokens.shape[1] <= storybook.n_ctx and {*grammar.labels} == {*labels()}
    (end,) = storybook.to_ids(END)
    assert not any(mask[grammar.tokens == end].any() for mask in grammar.labels.values())
    words = [[storybook.token_text(t).strip(" ") for t in row] for row in grammar.tokens.tolist()]
    seen = 0
    for row, text in enumerate(words):
        stack: list[str] = []
        for place, word in enumerate(text):
            if word == END:
                continue
            for mark in CLOSING:
                assert grammar.labels[f"inside: {mark}"][row, place] == (mark in stack)
                assert grammar.labels[f"innermost: {mark}"][row, place] == (stack[-1:] == [mark])
            closes = bool(stack) and CLOSING[stack[-1]] == word
            opens = word in CLOSING and not closes
            assert grammar.labels["close: any bracket"][row, place] == (closes and word != '"')
            assert any(grammar.labels[f"open: {mark}"][row, place] for mark in CLOSING) == opens
            seen += opens
            stack = stack[:-1] if closes else [*stack, word] if opens else stack
    assert seen > 20
    for name in ("Mary", "John"):
        assert torch.equal(grammar.labels[f"name: {name}"], grammar.tokens == storybook.to_ids(f" {name}")[0])
    women, men = grammar.labels["name: of a woman"], grammar.labels["name: of a man"]
    assert torch.equal(women | men, grammar.labels["name: any"]) and not (women & men).any()
    first = Grammar().document(random.Random(10**6))
    assert words[0][1:4] == [t.text for t in first[:3]]
