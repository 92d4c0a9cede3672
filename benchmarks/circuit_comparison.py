"""One search by all ways: ours whole, the others on a sample of its questions, and scaled."""

import statistics
import sys
from dataclasses import dataclass

import torch
from circuit_causes import Size, best, same_edges, search
from circuit_cost import Cost, measured
from circuit_questions import Question, literal, literal_forwards, loop_forwards, looped, routed
from circuit_subjects import Subject
from jaxtyping import Float, Int
from torch import Tensor

from editing.engine.batching import peak_bytes
from sae_core.seeds import generator_for


@dataclass(frozen=True)
class TimedQuestion:
    """One question by the other two ways, beside ours."""

    loop: Cost
    literal: Cost
    """Of a sample of latents."""
    same: bool
    """Whether the loop keeps the same edges."""
    apart: tuple[float, float]
    """The largest difference of ours from the loop's effects, and from the literal ones."""
    gain: float
    """The loop's CPU time over ours."""


def attempt(question: Question, answer: Float[Tensor, "n_latents"], size: Size) -> TimedQuestion:
    """Ask the question by all ways; `answer` is what ours said."""
    model = question.model
    other, loop = measured(model, lambda: looped(question))
    again = statistics.median(measured(model, lambda: routed(question))[1].cpu for _ in range(size.rounds))
    latents = sample(answer, size.literal, generator_for(0, "latents", question.target.node))
    exact, full = measured(model, lambda: literal(question, latents.tolist()))
    apart = float((answer - other).abs().max()), float((answer[latents] - exact).abs().max())
    print(f"{question.target.node}: the loop takes {loop.cpu / again:.1f} times as long", file=sys.stderr, flush=True)
    return TimedQuestion(loop, full, same_edges(answer, other), apart, loop.cpu / again)


def sample(effects: Float[Tensor, "n_latents"], n: int, generator: torch.Generator) -> Int[Tensor, "k"]:
    """The kept causes, and other latents drawn at random."""
    kept, drawn = torch.tensor(best(effects)), torch.randperm(len(effects), generator=generator)
    return torch.cat([kept, drawn[~torch.isin(drawn, kept)]])[:n]


@dataclass(frozen=True, eq=False)
class Comparison:
    """One search by all ways."""

    costs: dict[str, Cost]
    peaks: dict[str, int]
    """Bytes."""
    n_targets: int
    timed: list[TimedQuestion]


def compare(subject: Subject, size: Size) -> Comparison:
    """Search by ours, answer a sample of the questions by the other ways, and scale."""
    model = subject.model
    answered, first = measured(model, lambda: search(subject, routed, size))
    chosen = torch.linspace(0, len(answered) - 1, min(size.looped, len(answered))).long().tolist()
    timed = [attempt(*answered[number], size) for number in chosen]
    more = [measured(model, lambda: search(subject, routed, size))[1] for _ in range(size.rounds - 1)]
    questions = [question for question, _ in answered]
    full = sum((each.literal for each in timed), Cost())
    loop = sum((each.loop for each in timed), Cost())
    costs = {
        "literal": full.scaled(sum(literal_forwards(question, subject.n_latents) for question in questions)),
        "loop": loop.scaled(sum(map(loop_forwards, questions))),
        "ours": sorted([first, *more], key=lambda cost: cost.cpu)[size.rounds // 2],
    }
    return Comparison(costs, peaks(questions[0]), len(answered), timed)


def peaks(question: Question) -> dict[str, int]:
    """The most bytes of tensors that each way holds at one time; the loop's on the eight longest examples."""
    return {
        "literal": peak_bytes(lambda: literal(question, [0])),
        "loop": peak_bytes(lambda: looped(question.longest(8))),
        "ours": peak_bytes(lambda: routed(question)),
    }
