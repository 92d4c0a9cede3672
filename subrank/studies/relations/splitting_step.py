"""One step from a smaller dictionary to a larger one: what becomes of the features, in shares, beside chance."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.estimate import Estimate
from sae_core.seeds import generator_for
from sae_core.sites import Site
from subrank.studies.relations.families import NEAR, NOBODY, TOGETHER, Coactivity, Seen, n_children, nearest
from subrank.studies.relations.shares import mean_estimate, share, shuffled


@dataclass(frozen=True)
class Step:
    """Two dictionaries of one site; intervals of shares are Wilson's, over latents."""

    site: Site
    small: str
    large: str
    n_small: int
    """Latents that are active on the text."""
    n_large: int
    kept: Estimate
    """Of the smaller one's: with one child."""
    split: Estimate
    """With several children."""
    gone: Estimate
    """With none."""
    coalesced: Estimate
    """Of the smaller one's: those that share the latent that is nearest to them with another."""
    new: Estimate
    """Of the larger one's: without a parent by direction."""
    new_by_chance: Estimate
    """The same of as many random directions."""
    alone: Estimate
    """Of the larger one's: without a parent by activity."""
    alone_by_chance: Estimate
    """The same with the tokens of the one shuffled."""
    split_together: Estimate
    """Of the smaller one's: with several children by activity."""
    split_together_by_chance: Estimate
    """The same with the tokens of the one shuffled."""
    same_number: Estimate
    """Of the larger one's with a parent by direction: where that is the latent of the same number. Dictionaries of one
    seed begin from the same directions, number by number; others have no reason to."""
    agree: Estimate
    """Of those with a parent by either: where both are the same latent."""
    agree_by_chance: Estimate
    """The same with the parents by activity shuffled."""
    covered: Estimate
    """Mean over split features: share of its tokens on which a child is active; resampled over features."""
    covered_by_chance: Estimate
    """The same with the children's parents shuffled."""
    parents: tuple[int, ...]
    """By direction, of every latent of the larger one; -1 for none."""
    parents_by_activity: tuple[int, ...]
    cosines: tuple[float, ...]
    """With the nearest latent of the smaller one."""


class StepCount:
    """What is counted for a step while the text is read."""

    def __init__(self, site: Site, small: tuple[str, Dictionary], large: tuple[str, Dictionary], seed: int):
        self.site, self.small, self.large = site, small, large
        self.a, self.b = (F.normalize(d.directions.detach().float().cpu(), dim=-1) for d in (small[1], large[1]))
        self.chance = generator_for(seed, "splitting", site, small[0], large[0])
        self.cosines = self.b @ self.a.T
        sizes = len(self.a), len(self.b)
        self.counts, self.by_chance, self.seen = Coactivity(*sizes), Coactivity(*sizes), Seen()

    def add(self, small: Tensor, large: Tensor) -> None:
        """Codes of the same tokens."""
        small, large = (codes.cpu() > 0 for codes in (small, large))
        self.counts.add(small, large)
        self.seen.add(small, large)
        self.by_chance.add(shuffled(small, self.chance), large)

    def step(self, seed: int) -> Step:
        """The shares, once all is counted."""
        counts, cosines = self.counts, self.cosines
        lives, living = counts.small > 0, counts.large > 0
        near = cosines.masked_fill(~lives, -1.0)  # dead latents are nobody's parents
        parents = nearest(near, NEAR).masked_fill(~living, NOBODY)
        children = n_children(parents, len(lives))
        back = nearest(cosines.T.masked_fill(~living, -1.0), NEAR).masked_fill(~lives, NOBODY)
        shared = (n_children(back, len(living)) > 1)[back] & (back != NOBODY)
        by_activity, by_chance = (nearest(each.excess(), TOGETHER) for each in (counts, self.by_chance))
        together, by_chance_together = (n_children(each, len(lives)) > 1 for each in (by_activity, by_chance))
        random = F.normalize(torch.randn(self.b.shape, generator=self.chance), dim=-1)
        either = living & ((parents != NOBODY) | (by_activity != NOBODY))
        same = (parents == by_activity)[either]
        other = parents[either] == shuffled(by_activity[either], self.chance)
        split = lives & (children > 1)
        families = parents, parents.clone()
        families[1][living] = shuffled(parents[living], self.chance)
        covered = [mean_estimate(self.seen.covered(each)[split], seed) for each in families]
        return Step(
            site=self.site,
            small=self.small[0],
            large=self.large[0],
            n_small=int(lives.sum()),
            n_large=int(living.sum()),
            kept=share((children == 1)[lives]),
            split=share(split[lives]),
            gone=share((children == 0)[lives]),
            coalesced=share(shared[lives]),
            new=share((parents == NOBODY)[living]),
            new_by_chance=share((nearest((random @ self.a.T).masked_fill(~lives, -1.0), NEAR) == NOBODY)[living]),
            alone=share((by_activity == NOBODY)[living]),
            alone_by_chance=share((by_chance == NOBODY)[living]),
            split_together=share(together[lives]),
            split_together_by_chance=share(by_chance_together[lives]),
            same_number=share((parents == torch.arange(len(parents)))[parents != NOBODY]),
            agree=share(same),
            agree_by_chance=share(other),
            covered=covered[0],
            covered_by_chance=covered[1],
            parents=tuple(parents.tolist()),
            parents_by_activity=tuple(by_activity.masked_fill(~living, NOBODY).tolist()),
            cosines=tuple(near.amax(1).tolist()),
        )
