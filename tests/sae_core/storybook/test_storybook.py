"""What the grammar says of its tokens is true, and the bundled model has learned it."""

import random
from collections import Counter
from itertools import pairwise

import pytest
import torch
from planted import unchecked

from sae_core.model.hub import STORYBOOK
from sae_core.storybook.grammar import Grammar, vocabulary
from sae_core.storybook.measure import measure
from sae_core.storybook.page import CLOSING, END, NAMES, PRONOUNS, female
from sae_core.storybook.train import build_model, train

N_DOCUMENTS = 1500


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar()


@pytest.fixture(scope="module")
def documents(grammar) -> list:
    rng = random.Random(0)
    with unchecked():
        return [grammar.document(rng) for _ in range(N_DOCUMENTS)]


# ---- truth -----------------------------------------------------------------------------------------


def test_brackets_are_balanced_and_open_is_true(documents):
    n_closed = Counter()
    for document in documents:
        stack = ""
        for token in document:
            assert token.open == stack
            if stack and CLOSING[stack[-1]] == token.text:
                stack = stack[:-1]
                assert token.role == "close"
                n_closed[token.text] += 1
            else:
                assert token.role != "close" and token.text not in ")]}"
                stack += token.text if token.text in CLOSING else ""
        assert stack == ""
    assert set(n_closed) == set(CLOSING.values()) and min(n_closed.values()) > 50


def test_documents_end_once(documents):
    for document in documents:
        assert [token.text == END for token in document] == [False] * (len(document) - 1) + [True]


def meant_by_pronouns(document) -> list[tuple[str, str, set[str]]]:
    """(pronoun, person meant, people named before): the subject, or after "gave" and after gifts the receiver."""
    result, named, receiver = [], set(), ""
    for before, token in pairwise(document):
        receiver = before.text if before.role == "recipient" else receiver
        named |= {before.text} & set(NAMES)
        if token.text in FORMS:
            person = token.subject if token.subject and before.text != "gave" else receiver
            result.append((token.text, person, named.copy()))
    return result


FORMS = {form: female for forms in PRONOUNS.values() for form, female in zip(forms, (True, False), strict=True)}


def test_pronouns_agree_with_the_one_they_stand_for(documents):
    uses = [use for document in documents for use in meant_by_pronouns(document)]
    assert all(FORMS[pronoun] == female(person) for pronoun, person, _ in uses)
    count = Counter(pronoun for pronoun, _, _ in uses)
    assert set(count) == set(FORMS) and min(count.values()) > 10
    # control: where people of both kinds were named before, a pronoun for the wrong one would show
    assert sum(len({female(name) for name in named}) == 2 for _, _, named in uses) > N_DOCUMENTS / 6


def test_a_subject_is_a_name_of_its_own_sentence(documents):
    subjects = 0
    for document in documents:
        sentence = []
        for token in document:
            sentence.append(token.text)
            if token.subject:
                subjects += 1
                assert token.subject in NAMES and token.subject in sentence
            if token.text == ".":
                sentence = []
    assert subjects > N_DOCUMENTS


def test_every_role_and_register_occurs(documents):
    roles = Counter(token.role for document in documents for token in document)
    assert set(roles) == {"", "name", "subject", "giver", "recipient", "pronoun", "close"}
    registers = Counter(document[0].register for document in documents)
    assert set(registers) == set("story letter recipe weather science law medicine german code".split())
    assert min(registers.values()) > 0.01 * N_DOCUMENTS
    assert all(len({token.register for token in document}) == 1 for document in documents)


# ---- training it -----------------------------------------------------------------------------------


def train_tiny(seed: int, steps: int = 15):
    ids = {word: i for i, word in enumerate(vocabulary())}
    model = build_model(len(ids), n_layers=2, d_model=32, seed=seed)
    with unchecked():
        losses = [loss for _, loss in train(model, ids, steps=steps, batch=4, lr=1e-2, seed=seed)]
    return losses, model.state_dict()


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_the_seed_decides():
    before = torch.get_rng_state()
    losses, weights = train_tiny(0)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    assert losses[-1] < losses[0] - 1
    again, same = train_tiny(0)
    assert again == losses and all(torch.equal(weights[name], same[name]) for name in weights)
    (_, weights), (_, other) = (train_tiny(seed, steps=1) for seed in (0, 1))
    assert not torch.equal(weights["gpt_neox.embed_in.weight"], other["gpt_neox.embed_in.weight"])


# ---- the bundled model -----------------------------------------------------------------------------


def test_the_bundled_model_speaks_this_language():
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(STORYBOOK).get_vocab()
    assert [word for word, _ in sorted(ids.items(), key=lambda item: item[1])] == vocabulary()


def test_the_bundled_model_is_small():
    assert sum(path.stat().st_size for path in STORYBOOK.iterdir()) <= 6 * 10**6


@pytest.fixture(scope="module")
def figures():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(STORYBOOK, dtype=torch.float32).eval()
    with unchecked():
        return measure(model, AutoTokenizer.from_pretrained(STORYBOOK).get_vocab(), n=100)


@pytest.mark.slow
def test_the_bundled_model_can_do_its_tasks(figures):
    accuracies = {name: value for name, value in figures.items() if name.startswith("ioi_")}
    assert len(accuracies) == 6
    accuracies |= {name: figures[name] for name in ("pronoun_agreement", "bracket_closing")}
    assert all(value >= 0.99 for value in accuracies.values()), figures
    assert figures["n_pronoun_agreement"] > 50 and figures["n_bracket_closing"] > 50


@pytest.mark.slow
def test_the_bundled_model_is_near_the_grammars_entropy(figures):
    assert figures["entropy"] - 0.02 < figures["loss"] < figures["entropy"] + 0.1


def test_an_untrained_model_can_do_none_of_it():
    ids = {word: i for i, word in enumerate(vocabulary())}
    figures = measure(build_model(len(ids), n_layers=1, d_model=16).eval(), ids, n=20)
    assert max(value for name, value in figures.items() if name.startswith("ioi_")) < 0.5
    assert figures["pronoun_agreement"] < 0.9
    assert figures["loss"] > figures["entropy"] + 3
