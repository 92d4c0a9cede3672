"""The example on which a circuit is shown: one text with the activation of every node on every token."""

import torch

from circuits.discovery.request import ResolvedRequest
from circuits.effects.targets import LogitTarget
from circuits.graph import FeatureGraph, NodeId
from circuits.shown_prompt import Prompt
from sae_core.model.generation import pieces

FOLLOWING = 3
"""Tokens behind the one at which the target is read."""


@torch.no_grad()
def example_of(resolved: ResolvedRequest, graph: FeatureGraph) -> Prompt | None:
    """Of the target's examples the one on which most of the circuit's features are active, the first of equals.

    None where it is a single token. Activations are zero on special tokens, and rounded to four digits.
    """
    model, dictionaries, prompts = resolved.search.model, resolved.search.dictionaries, resolved.prompts()
    examples, last, features = prompts.examples, model.sites()[-1], graph.features()
    recorded = model.record(examples.tokens, {feature.site for feature in features} | {last})
    read = model.content(examples.tokens) & (torch.arange(examples.tokens.shape[1]) <= examples.end.cpu()[:, None])
    f = {
        site: dictionaries[site].encode(recorded[site]).cpu() * read[..., None]
        for site in {feature.site for feature in features}
    }
    active = sum((f[feature.site][..., feature.index] != 0).any(1).int() for feature in features)
    i = int(active.argmax()) if isinstance(active, torch.Tensor) else 0
    tokens, end = examples.tokens[i].tolist(), int(examples.end[i])
    if not end:
        return None
    n_after = int(model.content(examples.tokens[i, end + 1 : end + 1 + FOLLOWING]).int().cumprod(0).sum())
    words = pieces(model, [], tokens[: end + 1 + n_after])
    activations: dict[NodeId, list[float]] = {
        feature: [float(f"{value:.4g}") for value in f[feature.site][i, : end + 1, feature.index].tolist()]
        for feature in features
    }
    outputs = {}
    if isinstance(prompts.target, LogitTarget):
        token = int(prompts.target.plus[i])
        outputs[prompts.target.node] = token, float(model.unembed(recorded[last][i, end]).softmax(-1)[token])
    return Prompt(tuple(words[: end + 1]), activations, outputs, tuple(words[end + 1 :]))
