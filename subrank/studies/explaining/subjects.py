"""What is explained and scored: a feature with its rule, and the fragments on which it is shown and tried."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from circuits.features.explanations import Explanation
from sae_core.progress import OnProgress, Stages, silent
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId
from subrank.settings.studies import ExplainSettings
from subrank.studies.explaining.methods import Method
from subrank.studies.simulating.fragments import Examples, choose, fragments_of
from subrank.studies.simulating.simulation import Trial, trial

PLACES = 3
"""Of each quarter of the active tokens, from which patterns are made: on cards there are more of small models."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A feature that is to be explained."""

    method: Method
    feature: FeatureId
    rule: Explanation
    """What the offline explainer says of it."""
    shown: Examples
    """Fragments of the training contexts, for a language model that is to explain it."""
    trial: Trial
    """On held-out contexts."""


def subjects_of(method: Method, settings: ExplainSettings, on_progress: OnProgress = silent) -> list[Subject]:
    """The features of a method; left out are those that are silent on all fragments of the held-out contexts."""
    catalogue, stages = method.catalogue, Stages(on_progress, len(method.features))
    read, held = catalogue.training, catalogue.held
    content = catalogue.model.content
    shown_from = fragments_of(read, content(read), settings.fragment)
    tried_on = fragments_of(held, content(held), settings.fragment, seen=read)
    subjects = []
    for site, group in groupby(method.features, lambda feature: feature.site):
        features = list(group)
        stages.begin(f"{method.name}: rules for {len(features)} directions at {site}")
        seen, later = (catalogue.survey.activations(features, contexts) for contexts in (read, held))
        for feature in features:
            shown, tried = shown_from.of(seen[feature]), tried_on.of(later[feature])
            if not ((tried > 0).any() and (shown > 0).any()):
                continue
            chance = generator_for(settings.seed, "fragments", method.name, feature)
            rule = catalogue.rule(feature, seen[feature], catalogue.places(feature, seen[feature], PLACES))
            examples = choose(tried_on, tried, settings.examples, chance)
            first = choose(shown_from, shown, settings.examples, chance)
            subjects.append(Subject(method, feature, rule, first, trial(examples, chance)))
    return subjects


def with_partners(subjects: Sequence[Subject]) -> Iterator[tuple[Subject, Subject]]:
    """Each feature of a trained dictionary with another one of its site; none that is alone there."""
    for _, group in groupby(subjects, lambda subject: (subject.method.name, subject.feature.site)):
        same = list(group)
        if same[0].method.is_set and len(same) > 1:
            yield from zip(same, [*same[1:], same[0]], strict=True)
