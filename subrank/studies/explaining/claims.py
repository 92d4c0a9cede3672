"""Explanations of features and what they predict: by rules, or by a language model that explains and simulates.

A claim is an explanation in one role: of its own feature, or, as a control, of another feature of the site.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from circuits.features.explanations import Explanation
from sae_core.errors import UserError
from sae_core.progress import OnProgress, Progress, silent
from sae_core.seeds import generator_for
from subrank.settings.studies import ExplainSettings
from subrank.studies.explaining.subjects import Subject, with_partners
from subrank.studies.llm.answers import Answers, Asked, cost
from subrank.studies.llm.endpoint import Endpoint
from subrank.studies.llm.folder import Folder
from subrank.studies.llm.questions import Question, explanation_in
from subrank.studies.llm.simulation import Reading, explaining
from subrank.studies.simulating.simulation import Predictions, by_rule, unanswered

SHUFFLED, WHOLE = "{}, others' explanations", "{}, whole rules"
RULE, RULE_READ = "{}, by rule", "{}, the rule as read"
_PLACEHOLDER = 25 * " word"
"""Stands for an explanation where questions are counted."""


@dataclass(frozen=True, eq=False)
class Claim:
    """An explanation and what it predicts of a feature."""

    method: str
    """Whose feature it is, and whose explanation where that is not its own."""
    subject: Subject
    text: str
    """Empty where there is none."""
    predictions: Predictions


def language_model_of(settings: ExplainSettings, device: torch.device) -> Asked | None:
    """Who is asked; None for nobody. Raises `UserError` for an endpoint without a name, and for no folder."""
    if settings.llm is None:
        return None
    if settings.llm.startswith(("http:", "https:")):
        if settings.llm_model is None:
            raise UserError("--llm with an address needs --llm-model, the name of a model there")
        return Endpoint(settings.llm, settings.llm_model)
    if settings.llm_model is not None:
        raise UserError("--llm-model is the name of a model at an address; --llm names a folder, so leave it out")
    return Folder(Path(settings.llm), device=device)


def claims_by_rule(subjects: Sequence[Subject]) -> list[Claim]:
    """Each feature by what its rule says in a few words, and by all of it; those of sets by rules of others."""
    claims = [_by_rule(subject.method.name, subject, subject.rule.shortened()) for subject in subjects]
    shuffled = with_partners(subjects)
    claims += [_by_rule(SHUFFLED.format(of.method.name), of, other.rule.shortened()) for of, other in shuffled]
    return claims + [_by_rule(WHOLE.format(subject.method.name), subject, subject.rule) for subject in subjects]


def _by_rule(method: str, subject: Subject, rule: Explanation) -> Claim:
    return Claim(method, subject, rule.text(subject.method.catalogue.model), by_rule(rule, subject.trial))


def claims_by_model(
    subjects: Sequence[Subject], answers: Answers, seed: int, on_progress: OnProgress = silent
) -> list[Claim]:
    """Each feature by what the language model says of it; those of sets also by what it says of others, by what it
    makes of their rules, and by these rules themselves."""
    questions = [explaining(subject.shown, subject.method.catalogue.names) for subject in subjects]
    _announce(subjects, answers, questions, seed, on_progress)
    replies = answers.all(questions, "explanations", on_progress)
    texts = {subject: explanation_in(reply) for subject, reply in zip(subjects, replies, strict=True)}
    told = [(subject.method.name, subject, texts[subject]) for subject in subjects]
    told += [(SHUFFLED.format(of.method.name), of, texts[other]) for of, other in with_partners(subjects)]
    sets = [subject for subject in subjects if subject.method.is_set]
    said = [s.rule.shortened().text(s.method.catalogue.model) for s in sets]
    told += [(RULE_READ.format(s.method.name), s, text) for s, text in zip(sets, said, strict=True)]
    readings = [_reading(subject, text, seed) if text else None for _, subject, text in told]
    questions = [question for reading in readings if reading for question in reading.questions]
    waiting = iter(answers.all(questions, "simulations", on_progress))
    claims = []
    for (method, subject, text), reading in zip(told, readings, strict=True):
        answered = [next(waiting) for _ in reading.questions] if reading else []
        predictions = reading.predictions(answered) if reading else unanswered(subject.trial)
        claims.append(Claim(method, subject, text or "", predictions))
    return claims + [_by_rule(RULE.format(s.method.name), s, s.rule.shortened()) for s in sets]


def _reading(subject: Subject, text: str, seed: int) -> Reading:
    """The questions about an explanation; their order depends on the feature alone, so that explanations compare."""
    catalogue, chance = subject.method.catalogue, generator_for(seed, "order", subject.method.name, subject.feature)
    joint = "" if catalogue.model.brings_spaces else " "
    return Reading(text, subject.trial, catalogue.names, joint=joint, generator=chance)


def _announce(
    subjects: Sequence[Subject], answers: Answers, first: list[Question], seed: int, on_progress: OnProgress
) -> None:
    """Say how many questions there are, before the first is asked."""
    twice = [subject for subject in subjects if subject.method.is_set]
    told = [*subjects, *twice, *twice]
    questions = [question for s in told for question in _reading(s, _PLACEHOLDER, seed).questions]
    known = len(first) - answers.n_unknown(first)
    words = f"{answers.asked.name}: {cost(first + questions)}; {known} of {len(first)} explanations are known"
    on_progress(Progress(words, 0, None))
