"""Effects of the members of a circuit on one another: on the same prompts each is ablated once, and all are read.

A target t is read on prompt i at one place, and a cause u is ablated at all content positions up to the prompt's end:

    effect_ut = (sum_i a_ti - sum_i a_ti(without u)) / |sum_i a_ti|     over the prompts on which t is read

as in `ablation_effects.py`, which runs every pair of cause and target on its own. A total effect goes through all
blocks between. A direct effect goes through the residual alone into the target's own block, its norm and its attention
or MLP: blocks between keep what they wrote. With D_t what t loses when the direct contributions of all members go at
once,

    remainder_t = D_t - sum_u direct_ut

is what the norm, attention, activation function and encoder of t make of them together that they do not make of each
alone; it is 0 where all of these are linear. Cost: a run for each cause and prompt on which it is active, through the
blocks above it, and for direct effects one block for every layer above.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.effects.ablation_effects import AblatedCodes, to_zero
from circuits.effects.targets import FeatureTarget, Target
from circuits.features.atlas import Examples
from circuits.graph import ErrorTerm
from editing.engine.batching import budget_on, measure_rows_that_fit
from editing.engine.resumed_run import adds_to_residual
from editing.interventions.add_direction import AddDirection
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.sites import FeatureId, Site


@dataclass(frozen=True, eq=False)
class Cause:
    """What an ablation takes from a site: amounts along a direction, or the error term, which has one at each place."""

    node: FeatureId | ErrorTerm
    amount: Float[Tensor, "prompts pos"]
    """Zero where nothing is ablated."""
    along: Float[Tensor, "d_in"] | Float[Tensor, "prompts pos d_in"]

    def taken(self, prompts: Int[Tensor, "rows"], width: int) -> Float[Tensor, "rows pos d_in"]:
        """What is taken from the first positions of some prompts."""
        along = self.along if self.along.ndim == 1 else self.along[prompts, :width]
        return self.amount[prompts, :width, None] * along


@dataclass(frozen=True, eq=False)
class Reading:
    """A target on the prompts on which it is read, each at one place."""

    target: Target
    """Cheap to read near its clean activations."""
    place: Int[Tensor, "prompts"]
    """-1 on prompts on which it is not read."""
    row: Int[Tensor, "prompts"]
    """The number by which the target knows a prompt."""
    clean: Float[Tensor, "prompts"]
    """What it reads, in float64; 0 where it is not read."""

    @property
    def n_prompts(self) -> int:
        return int((self.place >= 0).sum())

    def effects(self, lost: Float[Tensor, "causes prompts"]) -> tuple[Float[Tensor, "causes"], Float[Tensor, "causes"]]:
        """Ratios of sums, and their standard errors (`ablation_effects.py`)."""
        total, n = self.clean.sum(), self.n_prompts
        ratio = lost.sum(-1) / total
        spread = (lost - ratio[:, None] * self.clean).square().sum(-1)
        error = (n / (n - 1) * spread).sqrt() / total.abs() if n > 1 else torch.full_like(ratio, torch.nan)
        return lost.sum(-1) / total.abs(), error


@dataclass(frozen=True, eq=False)
class _Runs:
    """Some runs: which cause is ablated on which prompt, from which position on, and what comes of it."""

    causes: Int[Tensor, "runs"]
    prompts: Int[Tensor, "runs"]
    begins: Int[Tensor, "runs"]
    after: dict[Site, Float[Tensor, "runs pos _"]]


class MemberEffects:
    """The root and members of a circuit as readings, members and error terms as causes, on prompts run once."""

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[Site, Dictionary],
        prompts: Examples,
        root: Target,
        members: Mapping[Site, Sequence[int]],
        ablations: Mapping[Site, AblatedCodes],
    ):
        self.model, self.end = model, prompts.end.to(model.device)
        self.tokens = prompts.tokens[:, : int(prompts.end.max()) + 1].to(model.device)
        self.sites = sorted((site for site in members if members[site]), reverse=True)
        below = [Site(layer) for layer in range(max(root.site.layer, *(site.layer for site in self.sites)) + 1)]
        self.recorded = model.record(self.tokens, {root.site, *self.sites, *below})
        up_to_end = torch.arange(self.tokens.shape[1], device=model.device) <= self.end[:, None]
        content = model.content(self.tokens.cpu()).to(model.device) & up_to_end
        self.causes: list[Cause] = []
        """Members, the highest site first, and behind those of a site its error term."""
        self.readings = [self._reading(root, self.end)]
        """The root, then the members that are active on a prompt, each where it is strongest up to the end."""
        for site in self.sites:
            dictionary, x = dictionaries[site], self.recorded[site]
            codes, acts = dictionary.encode(x), content & inliers(x, outlier_norm_of(dictionary))
            ablated = ablations.get(site, to_zero)
            taken = (codes - torch.stack([ablated(c, i) for i, c in enumerate(codes)])) * acts[..., None]
            for j in members[site]:
                self.causes.append(Cause(FeatureId(site, j), taken[..., j], dictionary.directions[j]))
                peak, place = (codes[..., j] * content).max(1)
                if (peak > 0).any():
                    place = place.where(peak > 0, -1)
                    self.readings.append(self._reading(FeatureTarget(FeatureId(site, j), dictionary), place))
            self.causes.append(Cause(ErrorTerm(site), acts.to(x), x - dictionary.decode(codes)))
        changed = torch.stack([cause.amount != 0 for cause in self.causes])
        width = self.tokens.shape[1]
        self.first: Int[Tensor, "causes prompts"] = changed.int().argmax(-1).where(changed.any(-1), width)
        """The first position at which a cause is ablated."""
        self.rows_at_once = measure_rows_that_fit(self._one_pass, budget_on(model.device))

    def _reading(self, target: Target, place: Int[Tensor, "prompts"]) -> Reading:
        prompts = (place >= 0).nonzero()[:, 0]
        row = (place >= 0).long().cumsum(0) - 1
        h = self.recorded[target.site][prompts, place[prompts]]
        near, clean = target.near(h), torch.zeros(len(place), dtype=torch.float64, device=h.device)
        clean[prompts] = near.read(h, row[prompts]).double()
        return Reading(near, place, row, clean)

    # ---- effects -----------------------------------------------------------------------------------

    def total(self, share: float = 1.0) -> Float[Tensor, "causes targets prompts"]:
        """What each target loses without each cause on each prompt, `a - a without`, by all paths.

        With a `share`, where only so much of what an ablation takes is taken.
        """

        def runs() -> Iterator[_Runs]:
            for site in self.sites:
                for causes, prompts, taken in self._rows(site):
                    after = self._after(site, prompts, share * taken)
                    yield _Runs(causes, prompts, self.first[causes, prompts], after)

        return self._lost(runs(), lambda run, place: run.prompts, len(self.end))

    def direct(self, total: Float[Tensor, "causes targets prompts"]) -> Float[Tensor, "causes targets prompts"]:
        """The same by the residual alone; where nothing lies between that could carry more, the total."""

        def runs() -> Iterator[_Runs]:
            for layer in sorted({reading.target.site.layer for reading in self.readings}):
                for site in self.sites:
                    if self._is_between(site, layer):
                        for causes, prompts, taken in self._rows(site):
                            into = [site for site in self._read_at if site.layer == layer]
                            after = self._from(layer, prompts, taken.shape[1], into, taken)
                            yield _Runs(causes, prompts, self.first[causes, prompts], after)

        lost = self._lost(runs(), lambda run, place: run.prompts, len(self.end))
        return torch.where(self.is_carried[..., None], lost, total)

    @property
    def is_carried(self) -> Bool[Tensor, "causes targets"]:
        """Whether something between a cause and a target can carry an effect that is not direct."""
        layers = [reading.target.site.layer for reading in self.readings]
        rows = [[self._is_between(cause.node.site, layer) for layer in layers] for cause in self.causes]
        return torch.tensor(rows, device=self.end.device)

    def together(self) -> Float[Tensor, "targets prompts"]:
        """What each target loses when the direct contributions of all members (not error terms) go at once."""
        everyone, width = torch.arange(len(self.end), device=self.end.device), self.tokens.shape[1]
        sums = {site: torch.zeros_like(self.recorded[site]) for site in self.sites}
        for cause in self.causes:
            if isinstance(cause.node, FeatureId):
                sums[cause.node.site] += cause.taken(everyone, width)
        lost = torch.zeros(len(self.readings), len(everyone), dtype=torch.float64, device=self.end.device)
        for into in {reading.target.site for reading in self.readings}:
            here = [s for s in self.sites if s.layer == into.layer and s != into and self.model.feeds(s, into)]
            below = [sums[site] for site in self.sites if site.layer < into.layer]
            edits = [AddDirection(site, -sums[site]) for site in here]
            if not below and not edits:
                continue
            with self.model.hooks(*edits):
                after = self._from(into.layer, everyone, width, [into], sum(below))
            runs = _Runs(torch.zeros_like(everyone), everyone, torch.zeros_like(everyone), after)
            lost += self._lost([runs], lambda run, place: run.prompts, len(everyone))[0]
        return lost

    def by_offset(self, wanted: Bool[Tensor, "causes targets"]) -> Float[Tensor, "causes targets pos"]:
        """What targets lose in sum where a cause is ablated at one position only, by how far before the target's."""

        def runs() -> Iterator[_Runs]:
            for site in self.sites:
                for causes, prompts, begins, taken in self._single_rows(site, wanted.any(1)):
                    yield _Runs(causes, prompts, begins, self._after(site, prompts, taken))

        return self._lost(runs(), lambda run, place: place - run.begins, self.tokens.shape[1], wanted)

    # ---- inside ------------------------------------------------------------------------------------

    @property
    def _read_at(self) -> set[Site]:
        return {reading.target.site for reading in self.readings}

    def _is_between(self, site: Site, layer: int) -> bool:
        """Whether anything between a site and the block of a later layer reads what changes at the site."""
        return layer > site.layer + adds_to_residual(self.model, site)

    def _lost(
        self,
        runs: Iterable[_Runs],
        slot: Callable[[_Runs, Tensor], Tensor],
        n_slots: int,
        wanted: Bool[Tensor, "causes targets"] | None = None,
    ) -> Float[Tensor, "causes targets slots"]:
        """What targets lose in the runs that begin at or before the place where they are read, summed by slots."""
        size = (len(self.causes), len(self.readings), n_slots)
        lost = torch.zeros(size, dtype=torch.float64, device=self.end.device)
        for run in runs:
            for number, reading in enumerate(self.readings):
                place = reading.place[run.prompts]
                read = run.begins <= place
                if wanted is not None:
                    read &= wanted[run.causes, number]
                rows = read.nonzero()[:, 0]
                if reading.target.site in run.after and len(rows):
                    prompts, h = run.prompts[rows], run.after[reading.target.site][rows, place[rows]]
                    drop = reading.clean[prompts] - reading.target.read(h, reading.row[prompts]).double()
                    lost[:, number].index_put_((run.causes[rows], slot(run, place)[rows]), drop, accumulate=True)
        return lost

    def _rows(self, site: Site) -> Iterator[tuple[Tensor, Tensor, Float[Tensor, "rows pos d_in"]]]:
        """(causes, prompts, what is taken) of a site: each cause on each prompt on which it is ablated anywhere."""
        here = torch.tensor([cause.node.site == site for cause in self.causes], device=self.end.device)
        pairs = ((self.first < self.tokens.shape[1]) & here[:, None]).nonzero()
        for rows in pairs[self.end[pairs[:, 1]].argsort(stable=True)].split(self.rows_at_once):
            causes, prompts = rows.T
            width = int(self.end[prompts].max()) + 1
            taken = self.recorded[site].new_zeros(len(rows), width, self.recorded[site].shape[-1])
            for number in causes.unique().tolist():
                same = causes == number
                taken[same] = self.causes[number].taken(prompts[same], width)
            yield causes, prompts, taken

    def _single_rows(
        self, site: Site, which: Bool[Tensor, "causes"]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Float[Tensor, "rows pos d_in"]]]:
        """(causes, prompts, positions, what is taken) of a site: a run for each position at which one is ablated."""
        for causes, prompts, taken in self._rows(site):
            chosen = which[causes]
            row, position = taken[chosen].ne(0).any(-1).nonzero(as_tuple=True)
            causes, prompts, vectors = causes[chosen][row], prompts[chosen][row], taken[chosen][row, position]
            for part in torch.arange(len(row), device=row.device).split(self.rows_at_once):
                alone = taken.new_zeros(len(part), *taken.shape[1:])
                alone[torch.arange(len(part)), position[part]] = vectors[part]
                yield causes[part], prompts[part], position[part], alone

    def _after(self, site: Site, prompts: Tensor, taken: Float[Tensor, "rows pos d_in"]) -> dict[Site, Tensor]:
        """Where readings are, the activations that the site feeds, without what is taken from it."""
        layer, width = site.layer, taken.shape[1]
        fed = [into for into in self._read_at if self.model.feeds(site, into)]
        if not adds_to_residual(self.model, site):
            with self.model.hooks(AddDirection(site, -taken)):
                return self._from(layer, prompts, width, fed)
        above = [into for into in fed if into.layer > layer]
        after = self._from(layer + 1, prompts, width, above, taken) if above else {}
        here = Site(layer)
        return after | ({here: self.recorded[here][prompts, :width] - taken} if here in fed else {})

    def _from(
        self, layer: int, prompts: Tensor, width: int, into: Sequence[Site], taken: Tensor | int = 0
    ) -> dict[Site, Tensor]:
        """Activations from the block of a layer on, without what is taken from the residual below it."""
        if not layer:
            return self.model.record(self.tokens[prompts, :width], into)
        return self.model.resume(self.recorded[Site(layer - 1)][prompts, :width] - taken, layer - 1, into)

    def _one_pass(self, rows: int) -> None:
        """A pass of so many rows from the lowest site."""
        site, prompts = self.sites[-1], self.end.new_zeros(rows)
        self._after(site, prompts, self.recorded[site][prompts] * 0)
