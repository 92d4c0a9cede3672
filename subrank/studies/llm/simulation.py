"""What a language model predicts that reads an explanation: the questions of one trial, and the answers to them.

A question for each fragment whose tokens are simulated, and for each few texts that are told apart, in random order.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from subrank.studies.llm.questions import DETECT, FUZZ, SIMULATE, Question, Reply, escaped, explain, levels_in, numbered
from subrank.studies.llm.questions import TOP as HIGHEST
from subrank.studies.simulating.fragments import TOP, Examples
from subrank.studies.simulating.simulation import Predictions, Trial

TEXTS = 5
"""Texts of a question, as delphi has it."""
SILENT = 0.5
"""Expected level up to which a token counts as silent."""


def explaining(examples: Examples, names: Sequence[str]) -> Question:
    """The question what a feature is active on, of the fragments with its highest activations: floor(10 a / max)."""
    top = examples.of(TOP)
    levels = (10 * top.activation.relu() / top.activation.max().clamp_min(1e-12)).long().clamp_max(HIGHEST)
    return explain(
        [(_tokens(top, row, names), levels[row][top.content[row]].tolist()) for row in range(len(top.groups))]
    )


class Reading:
    """One explanation in one trial; the order of texts depends on the seed of `generator` alone."""

    def __init__(self, explanation: str, trial: Trial, names: Sequence[str], *, joint: str, generator: torch.Generator):
        self.trial = trial
        simulated, detected, fuzzed = trial.simulated, trial.detected, trial.fuzzed
        self._simulations = [
            numbered(SIMULATE, explanation, [escaped(token) for token in _tokens(simulated, row, names)], HIGHEST)
            for row in range(len(simulated))
        ]
        plain = [joint.join(map(escaped, _tokens(detected, row, names))) for row in range(len(detected))]
        marked = [
            joint.join(
                f"<b>{escaped(names[int(token)])}</b>" if is_marked else escaped(names[int(token)])
                for token, inside, is_marked in zip(*(part[row].tolist() for part in parts), strict=True)
                if inside
            )
            for parts in [(fuzzed.tokens, fuzzed.content, trial.marked)]
            for row in range(len(fuzzed))
        ]
        self._orders = [torch.randperm(len(texts), generator=generator) for texts in (plain, marked)]
        self._told = [
            [numbered(kind, explanation, [texts[i] for i in rows.tolist()], 1) for rows in order.split(TEXTS)]
            for kind, texts, order in zip((DETECT, FUZZ), (plain, marked), self._orders, strict=True)
        ]
        self.questions = [*self._simulations, *self._told[0], *self._told[1]]

    def predictions(self, replies: Sequence[Reply]) -> Predictions:
        """What the replies to `questions` predict."""
        answers = iter([levels_in(reply, question) for reply, question in zip(replies, self.questions, strict=True)])
        simulated = self.trial.simulated
        activation = torch.zeros(simulated.activation.shape)
        for row, levels in zip(range(len(simulated)), answers, strict=False):
            activation[row, simulated.content[row]] = torch.nan if levels is None else torch.tensor(levels)
        return Predictions(activation, *(self._likely(kind, answers) for kind in (0, 1)), silent=SILENT)

    def _likely(self, kind: int, answers: Iterator[list[float] | None]) -> Float[Tensor, "texts"]:
        likely = torch.full((len(self._orders[kind]),), torch.nan)
        for rows, question in zip(self._orders[kind].split(TEXTS), self._told[kind], strict=True):
            levels = next(answers)
            likely[rows] = torch.tensor(levels if levels is not None else [torch.nan] * question.n)
        return likely


def _tokens(examples: Examples, row: int, names: Sequence[str]) -> list[str]:
    return [names[int(token)] for token in examples.tokens[row][examples.content[row]]]
