"""Prompts run again with only a circuit left of the model.

At every site that the circuit covers, from the lowest up, codes and error are read from the run as it has
been edited below (`walks.py`); what is outside the circuit takes its ablated value there (`ablations.py`). BOS and
other special tokens keep their activation. Cost: the prompts are recorded once; a circuit then takes the
blocks from the lowest covered site to the target on, one encoding and one decoding per covered site, and
one position read. Circuits and prompts are stacked into passes of a measured size.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.effects.targets import Target
from circuits.features.atlas import Examples
from circuits.graph import NodeId
from circuits.scoring.ablations import AblatedValues, KeepOnly
from circuits.scoring.walks import WRITTEN, walk_of
from editing.engine.batching import budget_on, measure_rows_that_fit
from editing.tasks.pairs import at_end
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site, Stream

Members = Mapping[Site, Sequence[int]]
"""A circuit: the latents it keeps, by site; a site that is not named keeps none."""
_Masks = dict[Site, Bool[Tensor, "circuits n_latents"]]


class Errors(StrEnum):
    """What becomes of the error terms at the covered sites."""

    ABLATED = "ablated"
    KEPT = "kept"

    @property
    def other(self) -> "Errors":
        """What becomes of them in the complement: they are in exactly one of a circuit and its complement."""
        return Errors.KEPT if self is Errors.ABLATED else Errors.ABLATED


# ---- circuits --------------------------------------------------------------------------------------


def covered_sites(dictionaries: Mapping[Site, Dictionary], target: Target) -> list[Site]:
    """The sites with a dictionary whose latents can move the target, from the lowest up: the residual ones.

    Where there is none, those that blocks write: of the target's own block where it is read behind it, since in many
    models attention and MLP do not read each other. For a target read from the logits residual sites include the last;
    a feature is not a member of its own circuit. Raises `UserError` if there are none.
    """
    is_readout = not isinstance(target.node, FeatureId)
    residual, written = (
        sorted(site for site in dictionaries if site.stream in streams) for streams in ([Stream.RESID_POST], WRITTEN)
    )
    sites = [s for s in residual if s.layer < target.site.layer or (is_readout and s == target.site)]
    is_behind = target.site.stream is Stream.RESID_POST
    sites = sites or [s for s in written if s.layer < target.site.layer + is_behind]
    if not sites:
        raise UserError(
            f"no resid_post, attn_out or mlp_out site with a dictionary lies below {target.node}; there is no circuit "
            "to score"
        )
    return sites


def nearest_layers(sites: Sequence[Site], n: int) -> list[Site]:
    """The sites in the `n` highest layers of `sites`, which go from the lowest up."""
    layers = sorted({site.layer for site in sites})[-n:]
    return [site for site in sites if site.layer in layers]


def members_of(nodes: Iterable[NodeId], sites: Iterable[Site]) -> dict[Site, tuple[int, ...]]:
    """The latents of a graph at some sites; error terms, readouts and features elsewhere are no members."""
    features = sorted({node for node in nodes if isinstance(node, FeatureId)})
    return {site: tuple(f.index for f in features if f.site == site) for site in sites}


def features_in(members: Members) -> list[FeatureId]:
    """The members of a circuit by name, from the lowest site up."""
    return [FeatureId(site, int(j)) for site in sorted(members) for j in members[site]]


def by_site(features: Iterable[FeatureId]) -> dict[Site, list[int]]:
    """Features as the members of a circuit."""
    members: dict[Site, list[int]] = {}
    for feature in features:
        members.setdefault(feature.site, []).append(feature.index)
    return members


# ---- runs ------------------------------------------------------------------------------------------


class CircuitRuns:
    """Prompts read once, and what a target is on them when only a circuit is left.

    The circuit covers every site with a dictionary up to the target's (`covered_sites`); give fewer dictionaries to
    leave more of the model as it is. Raises `UserError` where there are no prompts, no such
    site, or the ablation was made for other prompts or sites. `whole` holds the target in the untouched model.
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[Site, Dictionary],
        target: Target,
        prompts: Examples,
        ablation: AblatedValues,
    ):
        if not len(prompts):
            raise UserError("there are no prompts to score a circuit on; give some that discovery has not seen")
        self.model, self.target, self.ablation = model, target, ablation
        self.errors_kept: frozenset[Site] = frozenset()
        """Sites whose error terms are members: they are kept also where error terms are ablated."""
        self.sites = covered_sites(dictionaries, target)
        self.dictionaries = {site: dictionaries[site] for site in self.sites}
        ablation.check(self.sites, len(prompts))
        self.end = prompts.end.to(model.device)
        tokens = prompts.tokens[:, : int(prompts.end.max()) + 1]
        up_to_end = torch.arange(tokens.shape[1], device=model.device) <= self.end[:, None]
        self.mask = model.content(tokens).to(model.device) & up_to_end
        self.walk = walk_of(model, self.sites, target.site)
        with torch.no_grad():
            self.start = self.walk.start(tokens.to(model.device))
            self.whole = self._read(model.record(tokens, [target.site])[target.site], torch.arange(len(prompts)))
        self.rows_at_once = measure_rows_that_fit(self._one_pass, budget_on(self.start.device))
        """Prompts, each under one circuit, that a pass may stack."""

    def __len__(self) -> int:
        return len(self.end)

    def everything(self) -> dict[Site, tuple[int, ...]]:
        """All latents of all covered sites."""
        return {site: tuple(range(len(d.directions))) for site, d in self.dictionaries.items()}

    def without(self, members: Members) -> dict[Site, tuple[int, ...]]:
        """All latents but the members."""
        out = {site: set(latents) for site, latents in members.items()}
        return {s: tuple(j for j in latents if j not in out.get(s, ())) for s, latents in self.everything().items()}

    @torch.no_grad()
    def values(self, circuits: Sequence[Members], errors: Errors) -> Float[Tensor, "circuits prompts"]:
        """The target on every prompt with each circuit alone, in float64; a prompt's value is at its end."""
        return self._values(self._kept(circuits), errors, 0, self.start)

    @torch.no_grad()
    def without_each(self, members: Members, errors: Errors) -> Float[Tensor, "members prompts"]:
        """The target with the circuit less one member, for each in the order of `features_in(members)`.

        A member's absence shows from its own site up: each run starts there, on the circuit's run. Prompts on
        which the member has its ablated value anyway are not run.
        """
        kept = self._kept([members])
        alone, (below, here) = self._values(kept, errors, 0, self.start), self._states(kept, errors)
        parts = [alone[:0]]
        for number, site in enumerate(self.sites):
            latents = [int(j) for j in members.get(site, ())]
            if latents:
                # One circuit per latent, [len(latents), n_latents], each without it; only from this site up.
                fewer = {other: mask.repeat(len(latents), 1) for other, mask in kept.items()}
                fewer[site][torch.arange(len(latents)), latents] = False
                differs = self._differs(site, latents, here[number])
                values = self._values(fewer, errors, number, below[number], differs)
                parts.append(torch.where(differs.cpu(), values, alone))
        return torch.cat(parts)

    def circuit_run(
        self, members: Members, errors: Errors, prompts: Int[Tensor, "rows"], share: float = 1.0
    ) -> tuple[dict[Site, Tensor], dict[Site, Tensor], Float[Tensor, "rows"]]:
        """Activations at the covered sites before and after all but the circuit is ablated, and the target.

        Each is computed from the one before, so that gradients reach all of them. With a `share` below 1 the members
        are only so far from their ablated values.
        """
        kept = {site: mask.expand(len(prompts), -1) for site, mask in self._kept([members]).items()}
        state = self.start[prompts]
        edits = [replace(edit, share=share) for edit in self._edits(0, prompts, kept, errors, state.shape[1])]
        before, after, final = self.walk.traced(state, edits)
        return before, after, self._read(final, prompts)

    # ---- inside ------------------------------------------------------------------------------------

    def _one_pass(self, rows: int) -> None:
        """A pass of so many rows, a prompt under a circuit each, through all covered sites."""
        prompts = self.end.new_zeros(rows)
        masks = {site: mask.expand(rows, -1) for site, mask in self._kept([self.everything()]).items()}
        state = self.start[prompts]
        final = self.walk.final(state, 0, self._edits(0, prompts, masks, Errors.ABLATED, state.shape[1]))
        self._read(final, prompts)

    def _values(
        self,
        kept: _Masks,
        errors: Errors,
        first: int,
        state: Tensor,
        wanted: Bool[Tensor, "circuits prompts"] | None = None,
    ) -> Float[Tensor, "circuits prompts"]:
        """The target from the prompts' `state` at site number `first` on, under each of the circuits in `kept`.

        Zero for pairs of circuit and prompt that are not wanted.
        """
        result = torch.zeros(len(kept[self.sites[0]]), len(self), dtype=torch.float64, device=state.device)
        wanted = torch.ones_like(result, dtype=torch.bool) if wanted is None else wanted
        by_length = self.end.argsort(stable=True)  # so that a pass is cut to prompts of about one length
        places, circuits = wanted[:, by_length].T.nonzero(as_tuple=True)
        prompts = by_length[places]
        for i, which in zip(prompts.split(self.rows_at_once), circuits.split(self.rows_at_once), strict=True):
            if len(i):
                masks = {site: mask[which] for site, mask in kept.items()}
                width = int(self.end[i].max()) + 1
                final = self.walk.final(state[i, :width], first, self._edits(first, i, masks, errors, width))
                result[which, i] = self._read(final, i).double()
        return result.cpu()

    def _differs(
        self, site: Site, latents: list[int], h: Float[Tensor, "prompts pos d_model"]
    ) -> Bool[Tensor, "k prompts"]:
        """Whether a latent's value in `h` is not its ablated one, anywhere in the prompt."""
        parts, dictionary = [], self.dictionaries[site]
        for i in torch.arange(len(self), device=h.device).split(self.rows_at_once):
            ablated, _ = self.ablation.at(site, dictionary, i, h.shape[1])
            differs = dictionary.encode(h[i])[..., latents] != ablated[..., latents]
            parts.append((differs & self.mask[i][..., None]).any(1))
        return torch.cat(parts).T

    def _states(self, kept: _Masks, errors: Errors) -> tuple[list[Tensor], list[Float[Tensor, "prompts pos d_in"]]]:
        """At every covered site the state, and the activation before it is edited, with one circuit alone."""
        parts = []
        for i in torch.arange(len(self), device=self.start.device).split(self.rows_at_once):
            masks = {site: mask.expand(len(i), -1) for site, mask in kept.items()}
            parts.append(self.walk.states(self.start[i], self._edits(0, i, masks, errors, self.start.shape[1])))
        states, here = ([torch.cat(pieces) for pieces in zip(*each, strict=True)] for each in zip(*parts, strict=True))
        return states, here

    def _edits(self, first: int, prompts: Tensor, kept: _Masks, errors: Errors, width: int) -> list[KeepOnly]:
        """The edits of all sites that a run from site number `first` passes."""
        numbers = range(self.walk.entry(first), len(self.sites))
        return [self._edit(number, prompts, kept, errors, width) for number in numbers]

    def _edit(self, number: int, prompts: Tensor, kept: _Masks, errors: Errors, width: int) -> KeepOnly:
        site = self.sites[number]
        codes, error = self.ablation.at(site, self.dictionaries[site], prompts, width)
        error = error if errors is Errors.ABLATED and site not in self.errors_kept else None
        return KeepOnly(site, self.dictionaries[site], kept[site], codes, error, self.mask[prompts, :width])

    def _read(self, h: Float[Tensor, "rows pos d"], prompts: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        prompts = prompts.to(h.device)
        return self.target.read(at_end(h, self.end[prompts]), prompts)

    def _kept(self, circuits: Sequence[Members]) -> _Masks:
        """Circuits as masks; raises `UserError` for a member that no covered dictionary has."""
        for site in sorted({site for members in circuits for site, latents in members.items() if len(latents)}):
            if site not in self.dictionaries:
                covered = ", ".join(map(str, self.sites))
                raise UserError(f"latents of {site} cannot be members of this circuit, which covers {covered}")
        masks = {}
        for site, dictionary in self.dictionaries.items():
            n_latents = len(dictionary.directions)
            masks[site] = torch.zeros(len(circuits), n_latents, dtype=torch.bool, device=self.start.device)
            for row, members in enumerate(circuits):
                latents = torch.tensor(list(members.get(site, ())), dtype=torch.long)
                for latent in latents[(latents < 0) | (latents >= n_latents)].tolist():
                    raise UserError(f"no latent {latent} at {site}: its dictionary has {n_latents}, numbered from 0")
                masks[site][row, latents.to(self.start.device)] = True
        return masks
