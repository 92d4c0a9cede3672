"""What `circuit --check` computes again: edges, an example at a time, and what the circuit carries on held-out prompts.

Of a few edges drawn at random, over the examples i of the target:

    effect = (sum_i a_i - sum_i a_i') / |sum_i a_i|

a the target (a latent's code, or logits), read where the example ends; a' the same with h -> h - (c_j(h) - c_j') d_j at
the cause's site, c_j' being what causes are set to; of an error term h -> x_hat. And of the score under mean ablation
m(whole), m(nothing) and faithfulness: at every covered site, from the lowest up,

    h -> decode(c') + mean error,    c' = c(h) of the members, else the mean code

Means are over the content tokens of the held-out contexts; all edits leave special tokens and outliers alone.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.discovery.edges import SearchMode
from circuits.discovery.request import ResolvedRequest
from circuits.discovery.target_causes import CauseSearch
from circuits.effects.ablation_effects import to_zero
from circuits.effects.target_prompts import TargetPrompts
from circuits.effects.targets import LogitTarget
from circuits.graph import Edge, ErrorTerm, FeatureGraph
from circuits.scoring.circuit_runs import Errors
from circuits.scoring.faithfulness import CircuitScore
from sae_core.sites import FeatureId, Site
from subrank.checking.plain_runs import Formula, activations, limit_of, logits, mean
from subrank.checking.recomputed import Recomputed, drawn

EDGES = 6


@torch.no_grad()
def recomputed_edges(resolved: ResolvedRequest, graph: FeatureGraph, seed: int) -> list[Recomputed]:
    """The effects of `EDGES` edges; none where they were estimated to first order."""
    if resolved.search.config.edges.search is SearchMode.FIRST_ORDER:
        return []
    edges = drawn(graph.edges, EDGES, seed)
    return [Recomputed(f"edge {edge.cause} -> {edge.target}", edge.effect, _effect(resolved, edge)) for edge in edges]


def _effect(resolved: ResolvedRequest, edge: Edge) -> float:
    search, prompts = resolved.search, resolved.examples_of(edge.target)
    clean = dropped = 0.0
    for i, tokens in _texts(prompts):
        a, ablated = (_read(search, prompts, i, edits) for edits in ([], [_ablation(search, edge, tokens, i)]))
        clean, dropped = clean + a, dropped + a - ablated
    return dropped / abs(clean)


def _ablation(search: CauseSearch, edge: Edge, tokens: Int[Tensor, "pos"], example: int) -> Formula:
    """The edit that takes the cause away from one example."""
    cause = edge.cause
    assert isinstance(cause, FeatureId | ErrorTerm)
    dictionary, ablated = search.dictionaries[cause.site], search.ablations.get(cause.site, to_zero)

    def without(h: Tensor) -> Tensor:
        c = dictionary.encode(h)
        if isinstance(cause, ErrorTerm):
            return dictionary.decode(c)
        taken = (c - ablated(c, example))[:, cause.index]
        return h - taken[:, None] * dictionary.directions[cause.index]

    return Formula(cause.site, without, search.model.content(tokens), limit_of(dictionary))


def _texts(prompts: TargetPrompts) -> Iterator[tuple[int, Int[Tensor, "pos"]]]:
    """Each prompt by its number, cut where it is read."""
    for i, end in enumerate(prompts.examples.end.tolist()):
        yield i, prompts.examples.tokens[i, : end + 1]


def _read(search: CauseSearch, prompts: TargetPrompts, i: int, edits: Sequence[Formula]) -> float:
    """The target at the end of one prompt."""
    target, tokens = prompts.target, prompts.examples.tokens[i, : int(prompts.examples.end[i]) + 1]
    if isinstance(target, LogitTarget):
        z = logits(search.model, tokens, *edits)[-1]
        return float(z[target.plus[i]] - (0 if target.minus is None else z[target.minus[i]]))
    assert isinstance(target.node, FeatureId)
    h = activations(search.model, tokens, [target.site], *edits)[target.site]
    return float(search.dictionaries[target.site].encode(h)[-1, target.node.index])


# ---- what the circuit alone carries ----------------------------------------------------------------


@torch.no_grad()
def recomputed_score(
    search: CauseSearch, prompts: TargetPrompts, contexts: Int[Tensor, "contexts pos"], score: CircuitScore
) -> list[Recomputed]:
    """m(whole), m(nothing) and faithfulness, errors ablated, of a score under mean ablation on held-out prompts."""
    sites = sorted(map(Site.parse, score.covered))
    means = {site: _means(search, site, contexts) for site in sites}
    members = {site: [f.index for f in score.members if f.site == site] for site in sites}

    def m(circuit: dict[Site, list[int]] | None) -> float:
        kept = [] if circuit is None else [(site, circuit.get(site, []), means[site]) for site in sites]
        return mean(
            _read(search, prompts, i, [_alone(search, tokens, *each) for each in kept]) for i, tokens in _texts(prompts)
        )

    whole, nothing, alone = m(None), m({}), m(members)
    faithfulness = score.ways[Errors.ABLATED].faithfulness.value
    return [
        Recomputed(f"{score.target} on held-out prompts", score.m_whole, whole),
        Recomputed(f"{score.target} with everything ablated", score.m_nothing, nothing),
        Recomputed("faithfulness", faithfulness, (alone - nothing) / (whole - nothing)),
    ]


def _alone(
    search: CauseSearch, tokens: Int[Tensor, "pos"], site: Site, kept: list[int], means: tuple[Tensor, Tensor]
) -> Formula:
    """The edit that leaves a site only the latents that are kept."""
    dictionary, (code, error) = search.dictionaries[site], means

    def circuit(h: Tensor) -> Tensor:
        left = code.repeat(len(h), 1)
        left[:, kept] = dictionary.encode(h)[:, kept]
        return dictionary.decode(left) + error

    return Formula(site, circuit, search.model.content(tokens), limit_of(dictionary))


def _means(search: CauseSearch, site: Site, contexts: Int[Tensor, "contexts pos"]) -> tuple[Tensor, Tensor]:
    """(Mean code, mean error) of a site."""
    dictionary, n = search.dictionaries[site], 0
    codes = errors = torch.zeros((), dtype=torch.float64, device=search.model.device)
    for tokens in contexts:
        x = activations(search.model, tokens, [site])[site][search.model.content(tokens)]
        x = x[~(x.norm(dim=-1) > limit_of(dictionary))]
        f, n = dictionary.encode(x), n + len(x)
        codes, errors = codes + f.double().sum(0), errors + (x - dictionary.decode(f)).double().sum(0)
    return (codes / n).to(x), (errors / n).to(x)
