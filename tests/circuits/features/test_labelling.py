"""Labels of planted features say what was planted; those of random features, and of other features, say nothing."""

from dataclasses import replace

import pytest
import torch
from characters import Characters, Lookup

from circuits.features.atlas import FeatureAtlas, survey
from circuits.features.label_predicates import LabelText, TokensAt, Usual, word_classes
from circuits.features.labelling import Activity, Labeller
from circuits.features.predicates import predicates
from circuits.features.usual_labels import usual_labels
from circuits.features.verification import best_thresholds
from sae_core.sites import FeatureId, Site

TEXTS = ["f", "(", " x", ")", " y", "\n", " z", ",", " so", " it", " is", " red"]
SITE = Site(0)
CLOSES, INSIDE, ON_Y, NOISE, *RANDOM = range(12)


class Planted(Lookup):
    """Codes that follow the text's truths, by context: contexts come in the order in which they are read."""

    def __init__(self, codes: torch.Tensor):
        super().__init__(torch.zeros(len(TEXTS) + 1, codes.shape[-1]))
        self.codes, self.read = codes, 0

    @property
    def directions(self) -> torch.Tensor:
        """Each feature promotes `)`."""
        directions = torch.zeros(self.codes.shape[-1], len(TEXTS) + 1)
        directions[:, TEXTS.index(")") + 1] = 1
        return directions

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.read += len(x)
        return self.codes[self.read - len(x) : self.read]


def text(n: int, seed: int) -> torch.Tensor:
    """Random tokens; every sixth opens a bracket that closes after two, three or four."""
    chance = torch.Generator().manual_seed(seed)
    names = [i + 1 for i, word in enumerate(TEXTS) if word not in "()"]
    tokens = torch.tensor(names)[torch.randint(len(names), (n, 33), generator=chance)]
    for start in range(1, 30, 6):
        tokens[:, start] = TEXTS.index("(") + 1
        ends = start + torch.randint(2, 5, (n,), generator=chance)
        tokens[torch.arange(n), ends] = TEXTS.index(")") + 1
    tokens[:, 0] = 0
    return tokens


@pytest.fixture(scope="module")
def labeller() -> Labeller:
    model, contexts = Characters(TEXTS), torch.cat([text(60, 0), text(30, 1)])
    truths = predicates(model, contexts)
    chance = torch.Generator().manual_seed(2)
    codes = torch.zeros(*contexts.shape, 12)
    codes[..., CLOSES] = truths["next: )"].float()
    codes[..., INSIDE] = truths["inside ("].float()
    codes[..., ON_Y] = (contexts == TEXTS.index(" y") + 1).float()
    for latent in (NOISE, *RANDOM):
        codes[..., latent] = (torch.rand(contexts.shape, generator=chance) < 0.1).float() * (contexts > 0)
    codes *= 1 + torch.rand(codes.shape, generator=chance)
    atlas = survey(model, {SITE: Planted(codes)}, contexts[:60])
    return Labeller(atlas, contexts[60:])


def test_planted_features_are_labelled_with_what_was_planted(labeller):
    closes, inside, on_y = labeller.labels(FeatureId(SITE, latent) for latent in (CLOSES, INSIDE, ON_Y)).values()
    assert (closes.short, closes.score, closes.output) == ('before ")"', "F1 1.00", '→ ")"')
    assert (inside.short, inside.score) == ("inside ( …", "F1 1.00")
    assert (on_y.short, on_y.score) == ('on " y"', "F1 1.00") and "→" not in on_y.output
    assert closes.promotes[0] == ")" == on_y.promotes[0]  # the direct effect, whether or not it comes next
    assert max(closes.control, inside.control, on_y.control) < 0.4


def test_random_features_are_unclear_and_silent_ones_have_nothing_to_say(labeller):
    labels = labeller.labels(FeatureId(SITE, latent) for latent in (NOISE, *RANDOM))
    assert {label.short for label in labels.values()} == {"unclear"} == {label.score for label in labels.values()}


def test_the_label_of_another_feature_scores_no_better_than_the_control(labeller):
    label = labeller.labels([FeatureId(SITE, CLOSES)])[FeatureId(SITE, CLOSES)]
    wanted = [FeatureId(SITE, latent) for latent in (CLOSES, ON_Y)]
    read = [labeller.atlas.survey.entries(wanted, part.contexts) for part in (labeller.training, labeller.held)]
    closes, on_y = (tuple(Activity(*part[feature]) for part in read) for feature in wanted)
    predicate = Usual("next: )")
    assert predicate.text(labeller.model) == label.context
    assert labeller._as_control(predicate, *closes) == label.f1 == 1
    assert labeller._as_control(predicate, *on_y) < label.control + 0.1


def test_what_comes_next_is_said_where_the_strongest_examples_agree(labeller):
    """Feature 3 (random) is given examples before a bracket closes; the others' examples are followed by anything."""
    truth = predicates(labeller.model, labeller.atlas.contexts)["next: )"]
    rows = torch.arange(8)
    ends = truth[:8].float().argmax(1)
    statistics = labeller.atlas.sites[SITE]
    context, position, top = (x.clone() for x in (statistics.context, statistics.position, statistics.top))
    context[NOISE, :8], position[NOISE, :8], top[NOISE, :8] = rows, ends, 100.0 - rows
    sites = {SITE: replace(statistics, context=context, position=position, top=top)}
    planted = Labeller(FeatureAtlas(labeller.atlas.survey, labeller.atlas.contexts, sites), labeller.held.contexts)
    assert planted._following(FeatureId(SITE, NOISE)).startswith('→ ")" ')
    assert not any(planted._following(FeatureId(SITE, latent)) for latent in RANDOM)


def test_a_label_is_of_half_of_the_activation_and_not_of_the_peaks():
    """Eight peaks on `)` among many weaker activations: alone they have F1 1."""
    f = torch.cat([torch.full((8,), 5.0), torch.linspace(1, 2, 80)])
    peaks, rest = torch.arange(88) < 8, torch.arange(88) % 2 == 0
    truths, n_true = torch.stack([peaks, rest]), torch.tensor([8, 44])
    f1, thresholds = best_thresholds(f, truths, n_true)
    assert f1[0] == 1 and 2 <= thresholds[0] < 5
    f1, thresholds = best_thresholds(f, truths, n_true, 0.5)
    assert f1[0] < 0.5 < f1[1] and f[f > thresholds[0]].sum() >= 0.5 * f.sum()


def test_predicates_of_tokens_count_what_they_say():
    model = Characters(TEXTS)
    contexts = model.contexts(["<s>", " y", "(", " x", ")"], ["<s>", "(", ")", " y", " y"])
    here = LabelText(model, contexts)
    places = torch.arange(contexts.numel())
    for offset, shifted in ((0, 0), (-1, 1), (1, -1)):
        predicate = TokensAt(offset, (2, 5))
        truth = torch.isin(contexts.roll(shifted, 1), torch.tensor([2, 5])) & (contexts > 0)
        truth[:, 0 if shifted == 1 else -1 if shifted == -1 else 0] = False
        assert torch.equal(predicate.at(here, places).view_as(contexts), truth)
        assert predicate.n_true(here) == int(truth.sum())


def test_words_of_the_storybook_are_known_by_their_classes(storybook):
    tokens = torch.tensor([storybook.to_ids("Lily gave Tom the ring")])
    classes = word_classes(storybook, tokens)
    assert classes["a woman's name"].tolist() == [[True, False, False, False, False]]
    assert classes["a name"].sum() == 2 and classes["a word of 'gift'"][0, -1]
    assert not word_classes(Characters(TEXTS), tokens)


def test_labels_of_all_features_at_once_are_those_of_each(labeller):
    """Of planted features, whose threshold is zero; noise is no clearer; a set that takes too much has none."""
    survey, shifted = labeller.atlas.survey, torch.arange(12).roll(1)
    text = (labeller.training.contexts, labeller.held.contexts)
    labels = usual_labels(survey, *text, {SITE: shifted})[SITE]
    assert [(labels[i].short, labels[i].f1) for i in (CLOSES, INSIDE)] == [('before ")"', 1.0), ("inside ( …", 1.0)]
    assert {labels[i].short for i in RANDOM} == {"unclear"}
    truth = labeller.held.truths["inside ("]
    places = survey.entries([FeatureId(SITE, CLOSES)], text[1])[FeatureId(SITE, CLOSES)][0]
    f1 = 2 * int(truth[places].sum()) / (len(places) + int(truth.sum()))
    assert labels[INSIDE].control == pytest.approx(f1)
