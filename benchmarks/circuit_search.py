"""Circuit search by ablation, three ways: a full forward pass per latent, an engineered loop, and ours.

    python benchmarks/circuit_search.py                        storybook and a random GPT-2 of its size
    python benchmarks/circuit_search.py --looped 13            the engineered loop on every target, not on a sample

The search is that of Cunningham et al. 2023: from a latent of the last layer, the three strongest causes in the
layer before; all three are asked for theirs, and below them the strongest one each, down to the first layer.
64 examples per target, none longer than 64 tokens. All ways answer the same questions with the same number, a
ratio of sums; nothing but the effects is computed (no null, no error terms, no single positions).

    literal   every latent of the layer below, one full forward pass of all examples each, with a hook that encodes
              the residual and takes c_j f_j away; logits at all positions, the target read from the whole code
    loop      pairs of latent and example only where the latent is active; again from the source's layer, no further
              than the target's, cut at the target's position, stacked under a budget of memory; the target's
              latent alone is read where that is possible. Our own `Rerun`, so that only the route differs
    ours      what `circuits/effects/exact_routes.py` chooses

A position-layer-forward (PLF) is one position through one block: rows of the modules q, k, v, o and MLP are counted
by hooks, weighted by their parameters. Scores, norms, backward passes and our arithmetic outside of these modules
are not in it; the clean pass, and what is run to measure memory, are. The literal way is timed on a sample of
latents, the kept causes among them, of a sample of targets, the loop on a sample of targets; both are scaled by
their position-layer-forwards, which follow from the examples and codes of all targets. On a machine that is not
idle read CPU time at `--threads 1`. `--quick` runs all of it at a size that shows only that it works; `--record`
appends what is printed to RESULTS.md.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from circuit_subjects import MODELS, Subject, Texts, language_model, subjects
from jaxtyping import Float, Int
from torch import Tensor, nn
from train_throughput import Report, record

from circuits.effects.ablation_effects import AblatedCodes, Causes, ToMean, ablation_effects, to_zero
from circuits.effects.exact_routes import Rerun
from circuits.effects.scene import Scene
from circuits.effects.screens import audited, shortlist
from circuits.effects.targets import LogitTarget, Target
from circuits.features.atlas import Examples
from circuits.graph import Readout
from editing.engine.batching import peak_bytes
from editing.interventions.patch import ablate
from sae_core.dictionaries.saes import SAE
from sae_core.model.block import block_of
from sae_core.model.language_model import LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site

KEEP = 3
TOLERANCE = 1e-5
FEWER, FASTER = 300, 100
"""Bars against the literal way: position-layer-forwards, time."""
BARS = {"parallel": 10, "sequential": 4}
"""Bars against the engineered loop: time."""


@dataclass(frozen=True)
class Size:
    """How much is run."""

    texts: Texts = field(default_factory=Texts)
    n_examples: int = 64
    least: int = 16
    """Examples that a cause must have to be asked."""
    literal: int = 12
    """Latents per target on which the literal way is timed."""
    looped: int = 4
    """Targets on which loop and literal way are timed."""
    rounds: int = 3
    """Times that ours is run; the median counts."""
    few: int = 16
    """Examples for the cases that gain least."""


@dataclass(frozen=True)
class Cost:
    """What some work took."""

    forwards: float = 0.0
    """Position-layer-forwards."""
    wall: float = 0.0
    cpu: float = 0.0
    """Seconds, as is `wall`."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forwards + other.forwards, self.wall + other.wall, self.cpu + other.cpu)

    def scaled(self, forwards: float) -> "Cost":
        """What so many position-layer-forwards take, at the same rate."""
        factor = forwards / self.forwards
        return Cost(forwards, factor * self.wall, factor * self.cpu)


@dataclass(frozen=True, eq=False)
class Question:
    """How much does `target` depend on each latent of `source`, on these examples?"""

    model: LanguageModel
    target: Target
    source: Site
    dictionary: SAE
    """Of the source."""
    examples: Examples
    ablation: AblatedCodes = to_zero

    @property
    def gap(self) -> int:
        return self.target.site.layer - self.source.layer

    @property
    def width(self) -> int:
        return int(self.examples.end.max()) + 1

    def longest(self, n: int) -> "Question":
        """Of only the examples with the latest ends."""
        kept, own = self.examples.end.argsort(descending=True)[:n], self.examples
        return replace(self, examples=Examples(own.tokens[kept], own.end[kept], own.activation[kept]))


Way = Callable[[Question], Float[Tensor, "n_latents"]]


# ---- three ways ---------------------------------------------------------------------------------------


def ours(question: Question) -> Float[Tensor, "n_latents"]:
    """Effects by the routes that the package chooses."""
    q = question
    causes = Causes.of(q.model, q.dictionary, q.source, q.target, q.examples, ablation=q.ablation)
    return ablation_effects(causes).effect


def rerun(question: Question) -> Causes:
    """The question, to be answered by running blocks again."""
    q = question
    scene = Scene.of(q.model, q.source, q.target, q.examples)
    content = q.model.content(scene.tokens) & (torch.arange(scene.tokens.shape[1]) <= scene.end[:, None])
    return Causes(scene, Rerun(scene), q.dictionary, q.ablation, content)


def looped(question: Question) -> Float[Tensor, "n_latents"]:
    """Effects by the engineered loop."""
    return ablation_effects(rerun(question)).effect


@torch.no_grad()
def literal(question: Question, latents: Iterable[int]) -> Float[Tensor, "k"]:
    """Effects of some latents by the published procedure."""
    model, target, end = question.model, question.target, question.examples.end
    tokens, everyone = question.examples.tokens[:, : question.width], torch.arange(len(end))
    content = model.content(tokens)

    def read(*edits) -> Tensor:
        seen = Seen(target.site)
        with model.hooks(*edits, seen):
            model.bridge(tokens)
        return target.dictionary.encode(seen.h)[everyone, end, target.node.index].double()

    clean = read()
    drops = [(clean - read(ablate(question.source, question.dictionary, [j], mask=content))).sum() for j in latents]
    return torch.stack(drops) / clean.sum().abs()


class Seen:
    """An intervention that changes nothing and keeps what it was shown."""

    def __init__(self, site: Site):
        self.site = site

    def __call__(self, h: Tensor) -> Tensor:
        self.h = h
        return h


def literal_forwards(question: Question, n_latents: int) -> float:
    """Position-layer-forwards of the literal way: full passes, one of them clean."""
    return (n_latents + 1) * len(question.examples) * question.width * question.model.n_layers


@torch.no_grad()
def loop_forwards(question: Question) -> float:
    """Position-layer-forwards of the loop: one clean pass, and for each pair the positions up to the target's."""
    causes = rerun(question)
    pairs = [int((causes.taken(i) != 0).any(0).sum()) for i in range(len(question.examples))]
    again = sum(n * (end + 1) for n, end in zip(pairs, causes.scene.end.tolist(), strict=True))
    return again * question.gap + len(pairs) * question.width * (question.target.site.layer + 1)


# ---- counting -----------------------------------------------------------------------------------------


def measured(model: LanguageModel, run: Callable[[], object]) -> tuple[object, Cost]:
    """What `run` returns, and what it took."""
    rows: dict[nn.Module, int] = {}
    shares: dict[nn.Module, float] = {}

    def count(module, args, out) -> None:
        out = out[0] if isinstance(out, tuple) else out
        rows[module] = rows.get(module, 0) + out.numel() // out.shape[-1]

    with ExitStack() as undo:
        for block in [block_of(model, layer, 1) for layer in range(model.n_layers)]:
            parts = [block.q, block.k, block.v, block.o, block.mlp]
            sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
            for part, size in zip(parts, sizes, strict=True):
                shares[part] = size / sum(sizes)
                undo.callback(part.register_forward_hook(count).remove)
        wall, cpu = time.perf_counter(), time.process_time()
        found = run()
        took = time.perf_counter() - wall, time.process_time() - cpu
    return found, Cost(sum(shares[part] * n for part, n in rows.items()), *took)


def best(effects: Float[Tensor, "n_latents"]) -> list[int]:
    """The kept causes, the largest |effect| first."""
    return effects.abs().argsort(descending=True, stable=True)[:KEEP].tolist()


def same_edges(one: Float[Tensor, "n_latents"], other: Float[Tensor, "n_latents"]) -> bool:
    """Whether both keep the same causes in the same order; effects within the tolerance of each other are a tie."""
    first, second = (one.abs()[best(own)] for own in (one, other))
    return bool((first - second <= TOLERANCE).all())


def search(subject: Subject, way: Way, size: Size) -> list[tuple[Question, Tensor]]:
    """All questions of one search with their answers: of the root all kept causes are asked, of others the strongest.

    A cause with fewer than `size.least` examples is passed over.
    """
    root = subject.root(size.n_examples)
    waiting, found, asked = [root], [], set()
    while waiting:
        node = waiting.pop(0)
        if node in asked:
            continue
        asked.add(node)
        source, examples = Site(node.site.layer - 1), subject.examples(node, size.n_examples)
        question = Question(subject.model, subject.target(node), source, subject.dictionaries[source], examples)
        found.append((question, way(question)))
        if source.layer:
            causes = [FeatureId(source, j) for j in best(found[-1][1])]
            causes = [cause for cause in causes if len(subject.examples(cause, size.n_examples)) >= size.least]
            waiting += causes if node == root else causes[:1]
    return found


# ---- comparing ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
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


def attempt(question: Question, answer: Float[Tensor, "n_latents"], size: Size) -> Trial:
    """Ask the question by all ways; `answer` is what ours said."""
    model = question.model
    other, loop = measured(model, lambda: looped(question))
    again = statistics.median(measured(model, lambda: ours(question))[1].cpu for _ in range(size.rounds))
    latents = sample(answer, size.literal, generator_for(0, "latents", question.target.node))
    exact, full = measured(model, lambda: literal(question, latents.tolist()))
    apart = float((answer - other).abs().max()), float((answer[latents] - exact).abs().max())
    print(f"{question.target.node}: the loop takes {loop.cpu / again:.1f} times as long", file=sys.stderr, flush=True)
    return Trial(loop, full, same_edges(answer, other), apart, loop.cpu / again)


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
    trials: list[Trial]


def compare(subject: Subject, size: Size) -> Comparison:
    """Search by ours, answer a sample of the questions by the other ways, and scale."""
    model = subject.model
    found, first = measured(model, lambda: search(subject, ours, size))
    chosen = torch.linspace(0, len(found) - 1, min(size.looped, len(found))).long().tolist()
    trials = [attempt(*found[number], size) for number in chosen]
    more = [measured(model, lambda: search(subject, ours, size))[1] for _ in range(size.rounds - 1)]
    questions = [question for question, _ in found]
    full = sum((trial.literal for trial in trials), Cost())
    loop = sum((trial.loop for trial in trials), Cost())
    costs = {
        "literal": full.scaled(sum(literal_forwards(question, subject.n_latents) for question in questions)),
        "loop": loop.scaled(sum(map(loop_forwards, questions))),
        "ours": sorted([first, *more], key=lambda own: own.cpu)[size.rounds // 2],
    }
    return Comparison(costs, peaks(questions[0]), len(found), trials)


def peaks(question: Question) -> dict[str, int]:
    """The most bytes of tensors that each way holds at one time; the loop's on the eight longest examples."""
    return {
        "literal": peak_bytes(lambda: literal(question, [0])),
        "loop": peak_bytes(lambda: looped(question.longest(8))),
        "ours": peak_bytes(lambda: ours(question)),
    }


def tell(report: Report, name: str, found: Iterable[Subject], size: Size) -> None:
    """Compare on every dictionary of one model, and say how the ratios stand to the bars."""
    kind, texts = MODELS[name], size.texts
    report.say(
        f"### {name}, {kind} blocks: {size.n_examples} examples of up to {texts.n_ctx} tokens, "
        f"{torch.get_num_threads()} thread(s)"
    )
    took, ratios = [], []
    for subject in found:
        own = compare(subject, size)
        label = (str(subject.n_latents), subject.kind)
        for way, cost in own.costs.items():
            numbers = (f"{cost.forwards:.3g}", f"{cost.wall:.3g}", f"{cost.cpu:.3g}", f"{own.peaks[way] / 2**20:.0f}")
            took.append((*label, f"{subject.l0:.0f}", f"{subject.fvu:.2f}", way, *numbers))
        mine, loop, full = (own.costs[way] for way in ("ours", "loop", "literal"))
        against = (full.forwards / mine.forwards, full.cpu / mine.cpu, loop.forwards / mine.forwards)
        apart = [max(those) for those in zip(*(trial.apart for trial in own.trials), strict=True)]
        equal = all(trial.same for trial in own.trials) and max(apart) <= TOLERANCE
        passed = against[0] >= FEWER and against[1] >= FASTER and loop.cpu / mine.cpu >= BARS[kind]
        ratios.append(
            (
                *label,
                str(own.n_targets),
                *(f"{ratio:.0f}" for ratio in against),
                f"{loop.cpu / mine.cpu:.1f}",
                f"{loop.wall / mine.wall:.1f}",
                f"{min(trial.gain for trial in own.trials):.1f}",
                f"{sum(trial.same for trial in own.trials)} of {len(own.trials)}",
                *(f"{most:.0e}" for most in apart),
                "yes" if passed and equal else "no",
            )
        )
        print(f"{name}: {' '.join(ratios[-1])}", file=sys.stderr, flush=True)
    report.table(("latents", "kind", "L0", "FVU", "way", "PLF", "wall, s", "CPU s", "peak, MiB"), took)
    head = ("latents", "kind", "targets", "literal/ours PLF", "CPU time", "loop/ours PLF", "CPU time", "wall clock")
    report.table((*head, "least", "same edges", "loop apart", "literal apart", "all bars"), ratios)
    report.say(
        f"Bars: {FEWER} times fewer PLF and {FASTER} times less CPU time than literal, {BARS[kind]} times less "
        f"than the loop, effects within {TOLERANCE:g}. Literal is timed on {size.literal} latents of {size.looped} "
        f"targets, the loop on {size.looped} targets, both are scaled; of ours the median of {size.rounds} searches. "
        "`least` is the smallest gain of a timed target. The loop's memory is that of its eight longest examples."
    )
    report.say()


# ---- where least is gained ----------------------------------------------------------------------------


def hard_cases(report: Report, name: str, subject: Subject, size: Size) -> None:
    """One question each of the kinds that gain least, by the loop and by ours."""
    model, last, rows = subject.model, max(subject.dictionaries), []
    root = subject.root(size.n_examples)
    examples = subject.examples(root, size.few)
    near, far = Site(last.layer - 1), Site(0)
    target, logit = subject.target(root), top_logit(model, examples)

    def question(source: Site, read: Target, ablation: AblatedCodes = to_zero) -> Question:
        return Question(model, read, source, subject.dictionaries[source], examples, ablation)

    own = subject.atlas.sites[near]
    means = ToMean(own.density * own.mean_active)
    for what, asked, way in (
        ("zero ablation", question(near, target), ours),
        ("mean ablation", question(near, target, means), ours),
        ("a logit, one block away", question(near, logit), ours),
        (f"a latent, {last.layer} blocks away, screened", question(far, target), screened),
        (f"a logit, {last.layer} blocks away, screened", question(far, logit), screened),
    ):
        exact, loop = measured(model, lambda asked=asked: looped(asked))
        answer, mine = measured(model, lambda asked=asked, way=way: way(asked))
        recall = len(set(best(answer)) & set(best(exact))) / KEEP
        times = (f"{loop.cpu:.3g}", f"{mine.cpu:.3g}", f"{loop.cpu / mine.cpu:.1f}")
        rows.append((what, f"{loop.forwards / mine.forwards:.0f}", *times, f"{recall:.2f}"))
        print(f"{name}: {' '.join(rows[-1])}", file=sys.stderr, flush=True)
    report.say(f"### {name}, where least is gained: one target, {len(examples)} examples, {subject.n_latents} latents")
    head = ("case", "loop/ours PLF", "loop, CPU s", "ours, CPU s", "times faster")
    report.table((*head, "share of the true three strongest"), rows)


def screened(question: Question) -> Float[Tensor, "n_latents"]:
    """Effects of the latents that three screens propose and of those that an audit draws; 0 for the rest."""
    causes = rerun(question)
    listed = shortlist(causes, 20)
    effects = ablation_effects(causes, listed).effect
    _, drawn, more = audited(causes, listed, 60, float(effects.abs()[best(effects)].min()))
    effects[drawn] = more.effect[drawn]
    return effects


@torch.no_grad()
def top_logit(model: LanguageModel, examples: Examples) -> LogitTarget:
    """The logit of the token that the model says comes next."""
    logits = model.logits(examples.tokens)[torch.arange(len(examples)), examples.end]
    return LogitTarget(Readout("the next token"), model, logits.argmax(-1))


def tiny_model(report: Report, folder: Path, size: Size) -> None:
    """A whole search where overhead is all there is."""
    n_contexts = min(1000, size.texts.n_contexts)
    texts = Texts(n_ctx=16, n_contexts=n_contexts, n_latents=(128,), width=32, n_layers=3)
    small = replace(size, texts=texts, n_examples=16, least=4)
    found = compare(next(subjects(language_model("GPT-2 shape", folder, texts), texts)), small)
    mine, loop, full = (found.costs[way] for way in ("ours", "loop", "literal"))
    report.say(
        f"A sequential model of 3 layers, d=32, 128 latents, 16 examples of 16 tokens: {loop.cpu / mine.cpu:.1f} times "
        f"less CPU time than the loop, {full.cpu / mine.cpu:.0f} than literal, which has "
        f"{full.forwards / mine.forwards:.0f} times the PLF."
    )
    report.say()


# ---- the command --------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS)[:2], help="models to run")
    parser.add_argument("--latents", nargs="+", type=int, default=[1024, 4096], help="latents per layer")
    parser.add_argument("--looped", type=int, default=4, help="targets on which the others are timed")
    parser.add_argument("--rounds", type=int, default=3, help="times that ours is run")
    parser.add_argument("--threads", type=int, default=2, help="threads")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    parser.add_argument("--record", action="store_true", help="append the figures to RESULTS.md")
    return parser


QUICK = Size(
    Texts(n_ctx=16, n_contexts=120, n_latents=(128,), k=8, width=32, n_layers=3),
    n_examples=6,
    least=2,
    literal=5,
    looped=2,
    rounds=1,
    few=2,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    options, report, started = build_parser().parse_args(arguments), Report(), time.time()
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    size = Size(Texts(n_latents=tuple(options.latents)), looped=options.looped, rounds=options.rounds)
    size = QUICK if options.quick else size
    torch.set_num_threads(options.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in options.models:
                found = list(subjects(language_model(name, Path(folder, name), size.texts), size.texts))
                tell(report, name, found, size)
                hard_cases(report, name, found[0], size)
            tiny_model(report, Path(folder, "tiny"), size)
    finally:
        torch.set_num_threads(threads)
    minutes = (time.time() - started) / 60
    report.say(f"{minutes:.1f} minutes; load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end.")
    if options.record:
        given = sys.argv[1:] if arguments is None else arguments
        record(Path(__file__).with_name("RESULTS.md"), report, given, script=Path(__file__).name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
