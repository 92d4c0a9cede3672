"""Where least is gained over the loop: one question of each such kind, and a model that is all overhead."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from circuit_causes import KEEP, Size, best
from circuit_comparison import compare
from circuit_cost import measured
from circuit_questions import Question, looped, rerun, routed
from circuit_subjects import Subject, Texts, language_model, subjects
from jaxtyping import Float
from report import Report
from torch import Tensor

from circuits.effects.ablation_effects import AblatedCodes, ToMean, ablation_effects, to_zero
from circuits.effects.screens import audited, shortlist
from circuits.effects.targets import LogitTarget, Target
from circuits.features.atlas import Examples
from circuits.graph import Readout
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site


def hard_cases(report: Report, name: str, subject: Subject, size: Size) -> None:
    """One question each of the kinds that gain least, by the loop and by ours."""
    model, last, rows = subject.model, max(subject.dictionaries), []
    root = subject.root(size.n_examples)
    examples = subject.examples(root, size.few)
    near, far = Site(last.layer - 1), Site(0)
    target, logit = subject.target(root), top_logit(model, examples)

    def question(source: Site, read: Target, ablation: AblatedCodes = to_zero) -> Question:
        return Question(model, read, source, subject.dictionaries[source], examples, ablation)

    statistics = subject.atlas.sites[near]
    means = ToMean(statistics.density * statistics.mean_active)
    for what, asked, way in (
        ("zero ablation", question(near, target), routed),
        ("mean ablation", question(near, target, means), routed),
        ("a logit, one block away", question(near, logit), routed),
        (f"a latent, {last.layer} blocks away, screened", question(far, target), screened),
        (f"a logit, {last.layer} blocks away, screened", question(far, logit), screened),
    ):
        exact, loop = measured(model, lambda asked=asked: looped(asked))
        answer, routes = measured(model, lambda asked=asked, way=way: way(asked))
        recall = len(set(best(answer)) & set(best(exact))) / KEEP
        times = (f"{loop.cpu:.3g}", f"{routes.cpu:.3g}", f"{loop.cpu / routes.cpu:.1f}")
        rows.append((what, f"{loop.forwards / routes.forwards:.0f}", *times, f"{recall:.2f}"))
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
    comparison = compare(next(subjects(language_model("GPT-2 shape", folder, texts), texts)), small)
    routes, loop, full = (comparison.costs[way] for way in ("ours", "loop", "literal"))
    report.say(
        f"A sequential model of 3 layers, d=32, 128 latents, 16 examples of 16 tokens: {loop.cpu / routes.cpu:.1f} "
        f"times less CPU time than the loop, {full.cpu / routes.cpu:.0f} than literal, which has "
        f"{full.forwards / routes.forwards:.0f} times the PLF."
    )
    report.say()
