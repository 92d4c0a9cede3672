"""Prompts of several lengths on tiny models, dictionaries that miss much, and circuits of their active latents."""

import torch
from handmade import random_topk
from tiny import random_tokens

from circuits.effects.targets import FeatureTarget, LogitTarget
from circuits.features.atlas import Examples
from circuits.graph import Readout
from circuits.scoring.ablations import ResampleAblation
from circuits.scoring.circuit_runs import CircuitRuns
from sae_core.sites import FeatureId, Site, Stream


def strong_topk(seed: int):
    """An untrained TopK dictionary whose reconstruction is as large as its error."""
    sae = random_topk(32, seed=seed)
    with torch.no_grad():
        sae.W_enc.mul_(10)
    return sae


class TinyCircuit:
    """Prompts of several lengths, dictionaries that miss much, two targets."""

    def __init__(self, model, streams=(Stream.RESID_POST,)):
        self.model = model
        sites = [site for stream in streams for site in model.sites(stream)]
        self.dictionaries = {site: strong_topk(number) for number, site in enumerate(sorted(sites))}
        self.tokens, self.corrupted = (random_tokens(model.n_vocab, 3, 6, seed=seed) for seed in (0, 1))
        self.tokens[:, 0] = self.corrupted[:, 0] = model.bos_id
        self.end = torch.tensor([5, 3, 4])
        self.prompts = Examples(self.tokens, self.end, torch.ones(3))
        plus, minus = random_tokens(model.n_vocab, 2, 3, seed=2)
        h, top = model.record(self.tokens, {*sites, Site(2)}), self.dictionaries.get(Site(2), strong_topk(9))
        strongest = int(top.encode(h[Site(2)][0, 5]).argmax())
        self.targets = {
            "logit": LogitTarget(Readout("a - b"), model, plus, minus),
            "feature": FeatureTarget(FeatureId(Site(2), strongest), top),
        }
        active = {site: d.encode(h[site][:, 1:]).sum((0, 1)) for site, d in self.dictionaries.items()}
        ranked = {site: sums.argsort(descending=True) for site, sums in active.items()}
        self.members = {site: tuple(order[[0, 1, 2, 3, -1]].tolist()) for site, order in ranked.items()}

    def runs(self, target="logit", ablation=None) -> CircuitRuns:
        target = self.targets[target]
        ablation = ablation or ResampleAblation.paired(self.model, self.dictionaries, self.prompts, self.corrupted)
        return CircuitRuns(self.model, self.dictionaries, target, self.prompts, ablation)

    def covered(self, target="logit") -> dict:
        return {site: latents for site, latents in self.members.items() if target == "logit" or site < Site(2)}
