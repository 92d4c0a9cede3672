"""The examples behind an edge: the activations of cause and target, and what the target loses without the cause."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from circuits.effects.ablation_effects import AblatedCodes, Causes, to_zero
from circuits.effects.scene import Change
from circuits.effects.target_prompts import TargetPrompts
from circuits.features.atlas import Examples
from circuits.graph import Edge, NodeId
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site

AFTER = 3
"""Tokens that are shown after the position that is read: often they are what the target is there for."""


@dataclass(frozen=True)
class EdgeExample:
    """One example of the target: the tokens up to the position that is read, and the few that follow."""

    tokens: tuple[str, ...]
    cause: tuple[float, ...]
    """The cause's activation, token by token, up to the end."""
    target: tuple[float, ...]
    """The target's, if it is a feature; else its value at the end, and zeros before."""
    end: int
    drop: float
    """(a_clean - a_ablated) / |a_clean| on this example alone."""


@dataclass(frozen=True, eq=False)
class EdgeExampleFinder:
    """Finds the examples on which the edges of a circuit show most."""

    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]
    targets: Callable[[NodeId], TargetPrompts]
    """A target of the circuit with the examples on which its causes were searched."""
    ablations: Mapping[Site, AblatedCodes]

    @torch.no_grad()
    def of(self, edge: Edge, n: int = 6) -> list[EdgeExample]:
        """The `n` examples on which the target loses most without the cause; none for the edge of an error term."""
        if not isinstance(edge.cause, FeatureId):
            return []
        read = self.targets(edge.target)
        target, examples = read.target, read.examples
        site, latent = edge.cause.site, edge.cause.index
        ablation = self.ablations.get(site, to_zero)
        causes = Causes.of(self.model, self.dictionaries[site], site, target, examples, ablation=ablation)
        scene = causes.scene
        table = causes.route.table(causes.dictionary.directions)
        # One run per example, in which the cause is ablated at all positions where it is active.
        ranked: list[tuple[float, EdgeExample]] = []
        for i in range(len(scene.end)):
            amount = causes.taken(i)[:, latent]
            position = amount.nonzero()[:, 0]
            if not len(position):
                continue
            run, row = torch.zeros_like(position), torch.full_like(position, latent)
            value = causes.route.values(Change(i, 1, run, position, row, amount[position]), table)
            clean = float(scene.clean[i])
            drop = (clean - float(value)) / abs(clean) if clean else 0.0
            ranked.append((abs(clean - float(value)), self._example(causes, examples, i, latent, drop)))
        ranked.sort(key=lambda lost_and_example: -lost_and_example[0])
        return [example for _, example in ranked[:n]]

    def _example(self, causes: Causes, examples: Examples, i: int, latent: int, drop: float) -> EdgeExample:
        scene, target = causes.scene, causes.scene.target
        end = int(scene.end[i])
        cause = causes.dictionary.encode(scene.x[i, : end + 1])[:, latent].tolist()
        if isinstance(target.node, FeatureId):
            h = scene.recorded[target.site][i, : end + 1]
            read = self.dictionaries[target.site].encode(h)[:, target.node.index].tolist()
        else:
            read = [0.0] * end + [float(scene.clean[i])]
        after = examples.tokens[i, end + 1 : end + 1 + AFTER]
        after = after[self.model.content(after).cumprod(0).bool()]  # not beyond the end of the text
        tokens = [*examples.tokens[i, : end + 1].tolist(), *after.tolist()]
        words: Sequence[str] = [self.model.token_text(token) for token in tokens]
        return EdgeExample(tuple(words), tuple(cause), tuple(read), end, drop)
