"""What a circuit search asks, and three ways to answer it: a full forward per latent, an engineered loop, and ours.

effect of j on the target = (sum over examples of a - a without j) / |sum of a|
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.effects.ablation_effects import AblatedCodes, Causes, ablation_effects, to_zero
from circuits.effects.exact_routes import Rerun
from circuits.effects.scene import Scene
from circuits.effects.targets import Target
from circuits.features.atlas import Examples
from editing.interventions.patch import ablate
from sae_core.dictionaries.saes import SAE
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site


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
        kept, examples = self.examples.end.argsort(descending=True)[:n], self.examples
        return replace(self, examples=Examples(examples.tokens[kept], examples.end[kept], examples.activation[kept]))


Way = Callable[[Question], Float[Tensor, "n_latents"]]


def routed(question: Question) -> Float[Tensor, "n_latents"]:
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
