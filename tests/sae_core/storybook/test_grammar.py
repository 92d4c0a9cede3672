"""The grammar gives exact probabilities, is repeatable, and keeps what training never sees apart."""

import math
import random
from collections import Counter
from itertools import pairwise

import pytest
from planted import unchecked

from sae_core.storybook import words
from sae_core.storybook.grammar import Grammar, vocabulary
from sae_core.storybook.page import END, NAMES, Page, unseen
from sae_core.storybook.sentences import State
from sae_core.storybook.train import N_CTX, build_tokenizer, rows
from sae_core.storybook.words import SENTENCES

N_DOCUMENTS = 1500
GIFTS = frozenset(words.CLASSES["gift"])


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar()


@pytest.fixture(scope="module")
def written() -> dict:
    """A few thousand documents, and every distribution from which a token was drawn."""
    draws = []
    original = Page.draw

    def draw(self, choice):
        before = tuple(token.text for token in self.tokens)
        word = original(self, choice)
        draws.append((before, dict(choice.weights), word, self.tokens[-1].log_prob))
        return word

    rng = random.Random(0)
    grammar = Grammar()
    with pytest.MonkeyPatch.context() as patch, unchecked():
        patch.setattr(Page, "draw", draw)
        documents = [grammar.document(rng) for _ in range(N_DOCUMENTS)]
    return {"documents": documents, "draws": draws}


@pytest.fixture(scope="module")
def documents(written):
    return written["documents"]


# ---- probabilities ---------------------------------------------------------------------------------


def test_every_token_is_drawn_from_a_distribution_and_keeps_its_log_probability(written):
    tokens = [token for document in written["documents"] for token in document]
    assert len(tokens) == len(written["draws"]) > 10 * N_DOCUMENTS
    for token, (_, options, word, log_prob) in zip(tokens, written["draws"], strict=True):
        assert token.text == word and token.log_prob == log_prob
        assert all(p > 0 for p in options.values())
        assert math.isclose(math.exp(log_prob), options[word] / sum(options.values()), rel_tol=1e-9)


def test_the_first_sentences_have_total_weight_one(grammar):
    """The trie's children share out exactly what their parent has."""

    def check(node: State) -> None:
        if node.children:
            assert math.isclose(node.weight, sum(child.weight for child in node.children.values()), rel_tol=1e-9)
        for child in node.children.values():
            check(child)

    assert math.isclose(grammar.states["start"].weight, 1.0, rel_tol=1e-9)
    for state in grammar.states.values():
        check(state)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_empirical_frequencies_agree_with_the_probabilities(written, length):
    """After every beginning of `length` tokens, each token is as frequent as stated, within five sigma."""
    counts, stated = {}, {}
    for before, options, word, _ in written["draws"]:
        if len(before) == length:
            total = sum(options.values())
            stated.setdefault(before, {w: p / total for w, p in options.items()})
            counts.setdefault(before, Counter())[word] += 1
    tested = 0
    for before, count in counts.items():
        n = sum(count.values())
        for word, p in stated[before].items():
            if n * p >= 10:
                tested += 1
                assert abs(count[word] - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1e-9, (before, word)
    assert tested >= 10


def test_a_beginning_has_one_distribution(written):
    """The probability is a function of the tokens so far: what a language model could know, and no more."""
    seen = {}
    for before, options, _, _ in written["draws"]:
        if len(before) <= 3:
            total = sum(options.values())
            now = {word: p / total for word, p in options.items()}
            assert seen.setdefault(before, now).keys() == now.keys(), before
            assert all(math.isclose(now[word], seen[before][word], rel_tol=1e-9) for word in now), before
    assert len(seen) > 300


# ---- what training never sees ----------------------------------------------------------------------


def people(document) -> set[str]:
    return {token.text for token in document if token.text in NAMES}


def gift_combinations(document) -> set[tuple[str, str]]:
    """(recipient, gift) of a story's gift: the gift stands in the sentence that names the recipient."""
    result, sentence = set(), []
    for token in document:
        sentence.append(token)
        if token.role == "recipient":
            start = max(i for i, t in enumerate(sentence) if t.role == "giver")
            result |= {(token.text, t.text) for t in sentence[start:] if t.text in GIFTS}
        if token.text in (".", END):
            sentence = []
    return result


def test_training_never_shows_an_unseen_pair_of_names(documents):
    pairs = {frozenset((a, b)) for d in documents for a in people(d) for b in people(d) if a != b}
    assert len(pairs) > 500
    assert not [pair for pair in pairs if unseen(*pair)]


def test_training_never_shows_an_unseen_gift(documents):
    combinations = {c for document in documents for c in gift_combinations(document)}
    assert len(combinations) > 500
    assert not [c for c in combinations if unseen(*c)]


def test_unseen_is_symmetric_and_about_a_twelfth():
    assert all(unseen(a, b) == unseen(b, a) for a in NAMES for b in NAMES)
    share = sum(unseen(a, b) for a in NAMES for b in NAMES if a != b) / (len(NAMES) * (len(NAMES) - 1))
    assert 0.05 < share < 0.12
    assert all(any(unseen(name, gift) for gift in GIFTS) for name in NAMES)
    assert all(any(unseen(name, other) for other in NAMES if other != name) for name in NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("unseen_sentences", [False, True])
def test_gift_stories_are_made_of_what_training_never_shows(grammar, unseen_sentences):
    rng = random.Random(1)
    stories = [grammar.gift_story(rng, unseen_sentences=unseen_sentences) for _ in range(300)]
    for story in stories:
        recipient = story[-1]
        giver = [token for token in story if token.role == "giver"][-1]
        assert recipient.role == "recipient"
        assert recipient.text != giver.text
        assert unseen(giver.text, recipient.text)
        assert gift_combinations(story) and all(unseen(*c) for c in gift_combinations(story))
    orders = Counter(next(t.text for t in s if t.text in NAMES) == s[-1].text for s in stories)
    assert min(orders.values()) > 60  # the first and the second person receive about equally often


def shapes(sentences) -> set[tuple[str, ...]]:
    """Sentences with every slot replaced by its kind, so that wordings can be compared."""
    return {tuple("{}" if text[0] == "{" and len(text) > 1 else text for text in s.split(" ")) for s in sentences}


def is_written_as(shape: tuple[str, ...], text: list[str]) -> bool:
    return len(shape) == len(text) and all(a in ("{}", b) for a, b in zip(shape, text, strict=True))


def parts(document) -> list[list[str]]:
    """Sentences, and for gifts in one sentence with their opening, what stands before the giver and after."""
    result, text = [], []
    for token in document:
        if token.role == "giver" and text:
            result.append(text)
            text = []
        text.append(token.text)
        if token.text == ".":
            result.append(text)
            text = []
    return result


UNSEEN_SHAPES = shapes((*SENTENCES["unseen_meetings"], *SENTENCES["unseen_openings"], *SENTENCES["unseen_gifts"]))


def n_unseen_sentences(documents) -> int:
    return sum(is_written_as(shape, text) for d in documents for text in parts(d) for shape in UNSEEN_SHAPES)


def test_training_never_shows_an_unseen_sentence(documents):
    assert n_unseen_sentences(documents[:1500]) == 0


def test_gift_stories_of_unseen_sentences_show_them(grammar):
    """Control for the test above: the same search finds them where they are."""
    rng = random.Random(2)
    stories = [grammar.gift_story(rng, unseen_sentences=True) for _ in range(50)]
    assert n_unseen_sentences(stories) >= 50


def test_unseen_sentences_are_made_of_known_words():
    vocabulary_words = set(vocabulary())
    for sentence in (*SENTENCES["unseen_meetings"], *SENTENCES["unseen_openings"], *SENTENCES["unseen_gifts"]):
        assert {text for text in sentence.split(" ") if text[0] != "{"} <= vocabulary_words


# ---- repeatability and vocabulary ------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_seed_writes_the_same_documents():
    def sample(seed):
        rng, grammar = random.Random(seed), Grammar()
        return [grammar.document(rng) for _ in range(20)]

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)


@pytest.mark.slow
def test_vocabulary_is_fixed_and_covers_everything(grammar, documents):
    text = vocabulary()
    assert text == vocabulary() and len(set(text)) == len(text)
    assert 800 <= len(text) <= 1100
    assert text[:2] == [END, "<unk>"]
    assert {token.text for document in documents for token in document} <= set(text)
    rng = random.Random(5)
    stories = [grammar.gift_story(rng, unseen_sentences=new) for new in (False, True) for _ in range(100)]
    assert {token.text for story in stories for token in story} <= set(text)


def test_the_tokenizer_reads_the_tokens_of_the_grammar(documents):
    tokenizer = build_tokenizer()
    ids = tokenizer.get_vocab()
    for document in documents[:300]:
        text = " ".join(token.text for token in document[:-1])
        assert tokenizer(text)["input_ids"] == [ids[token.text] for token in document[:-1]]
    assert tokenizer("xyzzy")["input_ids"] == [ids["<unk>"]]
    assert tokenizer("Mary,John")["input_ids"] == [ids[text] for text in ("Mary", ",", "John")]


def test_training_rows_are_documents_after_their_end_token():
    ids = {word: i for i, word in enumerate(vocabulary())}
    stream = rows(0, ids)
    sample = [next(stream) for _ in range(20)]
    assert all(len(row) == N_CTX and row[0] == ids[END] for row in sample)
    assert all(a != ids[END] or b != ids[END] for row in sample for a, b in pairwise(row))
