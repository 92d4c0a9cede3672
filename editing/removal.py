"""Removing a capability by ablating features, and what the removal costs elsewhere.

Capability: AUROC of logit(she) - logit(he) over balanced prompts whose names and templates were not used
to choose anything; it is gone within 0.05 of 0.5. Damage: KL per token from the unedited model on
held-out text, where that model gives pronouns less than 1%. Every method edits the same site at the
same positions, all content tokens. Beside the features: LEACE and the projection along the difference
of the class means, both fitted on the selection prompts' last tokens, and random features of like
density, scaled to the same mean edit size.

Features are ablated with a strength, x' = x - s * sum_i c_i f_i. At s = 1 they are set to zero, and what
the encoder missed of them stays behind in the error; as an AUROC does not depend on scale, that rest
can still tell the classes apart. The strength at which the classes meet is read off the selection
prompts; the plain ablation, s = 1, is reported beside it, and so are LEACE and the mean difference with
a strength found in the same way.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.erase import fit_leace, mean_difference
from editing.metrics import auroc, kl_divergence
from editing.patch import ablate
from editing.tasks.pairs import OwnScore, at_end
from editing.tasks.pronouns import PronounPrompts, Split, own_score, pronoun_ids, pronoun_prompts
from editing.tradeoff import AT_ONCE
from sae_core.dictionaries import Dictionary
from sae_core.errors import UserError
from sae_core.models import Intervention, LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site, Stream

GONE = 0.05  # AUROC within this of 0.5


@dataclass(frozen=True)
class RemovalConfig:
    """How much to run."""

    selection_prompts: int = 128
    """To choose features and strength, and as many again, with other names, to check the choice."""
    test_prompts: int = 256
    greedy_prompts: int = 64
    """Of the selection prompts, those on which features are tried one by one."""
    shortlist: int = 20
    max_features: int = 16
    text_contexts: int = 48
    """Held-out contexts, half for choosing the site and half for the reported damage."""
    random_draws: int = 3
    seed: int = 0
    prepend_bos: bool = True


@dataclass(frozen=True)
class Removal:
    """One method at one site, on the test prompts and the test text."""

    method: str
    site: str
    auroc: float
    accuracy: float
    """Share of prompts on which the right pronoun has the higher logit."""
    damage: float
    """Mean KL(unedited || edited) per token of text, nats."""
    edit_size: float
    """Mean |x' - x| over the content tokens of the text."""
    features: tuple[str, ...] = ()
    strength: float = 1.0

    @property
    def gone(self) -> bool:
        return abs(self.auroc - 0.5) <= GONE


@dataclass(frozen=True)
class RemovalResult:
    """The capability, the methods at the chosen site, and the same at every other site."""

    own: OwnScore
    own_auroc: float
    site: str
    methods: tuple[Removal, ...]
    elsewhere: tuple[Removal, ...]
    """Features, LEACE and mean difference at the sites that were not chosen."""
    best: str | None
    """The method with the least damage among those after which the capability is gone; None if none is."""

    def sentence(self) -> str:
        """The outcome in words."""
        if self.best is None:
            return f"at {self.site} no method removes the capability (AUROC within {GONE} of 0.5)"
        least = next(m for m in self.methods if m.method == self.best)
        others = [m for m in self.methods if m.gone and m is not least]
        beside = "; ".join(f"{m.method} {m.damage:.4f}" for m in others) or "nothing else removes it"
        cost = f"{least.damage:.4f} nats per token"
        return f"at {self.site} the least damage that removes it is that of {self.best}: {cost} ({beside})"


class _Ground:
    """Prompts and text recorded once at a site; any edit of it run from there upward."""

    def __init__(self, model: LanguageModel, site: Site, prompts: PronounPrompts, text: Tensor):
        if site.stream not in (Stream.RESID_POST, Stream.MLP_OUT):
            raise UserError(f"removal at {site} is not supported; give a resid_post or mlp_out site")
        self.model, self.site, self.prompts = model, site, prompts
        residual, last = Site(site.layer), model.sites()[-1]
        recorded = model.record(prompts.tokens, {site, residual})
        self.x, self.residual = recorded[site], recorded[residual]
        pos = torch.arange(self.x.shape[1])
        self.mask = (model.content(prompts.tokens) & (pos <= prompts.end[:, None])).to(model.device)
        recorded = model.record(text, {site, residual, last})
        self.text_x, self.text_residual = recorded[site], recorded[residual]
        self.text_mask = model.content(text).to(model.device)
        self.text_logits = model.unembed(recorded[last])
        pronouns = self.text_logits.softmax(-1)[..., pronoun_ids(model)].sum(-1)
        self.counted = self.text_mask & (pronouns < 0.01)

    def first(self, n: int) -> "_Ground":
        """The same ground with the first `n` prompts only."""
        fewer = copy.copy(self)
        fewer.prompts, fewer.x = self.prompts.first(n), self.x[:n]
        fewer.residual, fewer.mask = self.residual[:n], self.mask[:n]
        return fewer

    def last_tokens(self) -> Tensor:
        """Activations at the prompts' ends, what erasers are fitted on."""
        return at_end(self.x, self.prompts.end)

    def scores(self, change: Float[Tensor, "trials batch pos d"]) -> Float[Tensor, "trials batch"]:
        """logit(she) - logit(he) at the prompts' ends when the activation is changed."""
        per_pass = max(1, AT_ONCE // self.x[..., 0].numel())
        scores = []
        for part in change.split(per_pass):
            h = (self.residual + part).flatten(0, 1)
            final = at_end(self.model.final(h, self.site.layer), self.prompts.end.repeat(len(part)))
            scores.append(self.prompts.score(self.model.unembed(final)).unflatten(0, (len(part), -1)))
        return torch.cat(scores)

    def judge(self, edit: Intervention, method: str, features: Sequence[int] = ()) -> Removal:
        """Capability left and damage done by one edit."""
        scores = self.scores((replace(edit, mask=self.mask)(self.x) - self.x)[None])[0].cpu()
        change = replace(edit, mask=self.text_mask)(self.text_x) - self.text_x
        edited = self.model.unembed(self.model.final(self.text_residual + change, self.site.layer))
        female = self.prompts.female
        return Removal(
            method=method,
            site=str(self.site),
            auroc=auroc(scores, female),
            accuracy=((scores > 0) == female).double().mean().item(),
            damage=kl_divergence(self.text_logits[self.counted], edited[self.counted]).mean().item(),
            edit_size=change.norm(dim=-1)[self.text_mask].mean().item(),
            features=tuple(str(FeatureId(self.site, j)) for j in features),
            strength=edit.strength if isinstance(edit, Scaled) else 1.0,
        )


@torch.no_grad()
def remove_pronouns(
    model: LanguageModel,
    dictionaries: dict[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    config: RemovalConfig,
    *,
    site: Site | None = None,
) -> Iterator[str | RemovalResult]:
    """Yield a line of progress before each stage, and the `RemovalResult` last.

    `contexts` are text on which nothing was trained. Without `site`, the one is taken at which ablating
    features costs least on the other half of the text among those where the capability is gone on the
    check prompts (where it is gone nowhere: at which most of it is gone).
    """
    sizes = {
        Split.SELECTION: config.selection_prompts,
        Split.CHECK: config.selection_prompts,
        Split.TEST: config.test_prompts,
    }
    prompts = {
        split: pronoun_prompts(model, split, n, seed=config.seed, prepend_bos=config.prepend_bos)
        for split, n in sizes.items()
    }
    own, own_auroc = own_score(model, prompts[Split.TEST])
    yield f"pronouns: {own.sentence()}; AUROC {own_auroc:.3f}"
    contexts = contexts[: config.text_contexts]
    if len(contexts) < 2:
        raise UserError("measuring damage needs at least two held-out contexts; give more text")
    choosing_text, test_text = contexts[0::2], contexts[1::2]
    if site and site not in dictionaries:
        raise UserError(f"no dictionary for {site}; this set has {', '.join(map(str, dictionaries))}")
    sites = [site] if site else [s for s in dictionaries if s.stream in (Stream.RESID_POST, Stream.MLP_OUT)]

    if not sites:
        raise UserError(f"removal needs a resid_post or mlp_out site; this set has {', '.join(map(str, dictionaries))}")

    edits: dict[Site, tuple[Scaled, list[int]]] = {}
    trial: dict[Site, Removal] = {}
    erasers: dict[Site, list[tuple[str, Intervention]]] = {}
    for s in sites:
        yield f"pronouns: choosing features at {s}"
        ground = _Ground(model, s, prompts[Split.SELECTION], choosing_text)
        check = _Ground(model, s, prompts[Split.CHECK], choosing_text)
        try:
            edits[s], trial[s] = choose_edit(ground, check, dictionaries[s], config)
        except UserError:
            if len(sites) == 1:
                raise
            yield f"pronouns: no feature at {s} supports them"
            continue
        x, labels = ground.last_tokens(), ground.prompts.female.long()
        erasers[s] = [("LEACE", fit_leace(s, x, labels)), ("mean difference", mean_difference(s, x, labels))]
    sites = list(edits)
    if not sites:
        raise UserError("no feature at any site supports the pronouns; give more training")
    best_site = min(
        sites, key=lambda s: (not trial[s].gone, trial[s].damage if trial[s].gone else abs(trial[s].auroc - 0.5))
    )

    judged: dict[Site, list[Removal]] = {}
    for s in sites:
        yield f"pronouns: measuring at {s}"
        test = _Ground(model, s, prompts[Split.TEST], test_text)
        edit, chosen = edits[s]
        judged[s] = [test.judge(edit, "features", chosen)]
        judged[s] += [test.judge(eraser, name) for name, eraser in erasers[s]]
        if s == best_site:
            fit = _Ground(model, s, prompts[Split.SELECTION], choosing_text)
            judged[s].append(test.judge(edit.edit, "features, plain ablation", chosen))
            for name, eraser in erasers[s]:
                judged[s].append(test.judge(Scaled(eraser, _meeting_strength(fit, eraser)), f"{name}, tuned"))
            judged[s].append(_random_features(test, dictionaries[s], chosen, judged[s][0].edit_size, config))
    methods = judged.pop(best_site)
    gone = [m for m in methods if m.gone]
    yield RemovalResult(
        own=own,
        own_auroc=own_auroc,
        site=str(best_site),
        methods=tuple(methods),
        elsewhere=tuple(m for rest in judged.values() for m in rest),
        best=min(gone, key=lambda m: m.damage).method if gone else None,
    )


def choose_edit(
    ground: _Ground, check: _Ground, dictionary: Dictionary, config: RemovalConfig
) -> tuple[tuple["Scaled", list[int]], Removal]:
    """The edit of least damage after which the capability is gone on the `check` prompts, and its figures there.

    Tried are the first 2, 4, 8, ... of the features that `choose_features` finds on the selection
    prompts, each with the strength at which the classes meet there; where none gets there on the names
    of `check`, the one that gets closest.
    """
    found = choose_features(ground.first(config.greedy_prompts), dictionary, config)
    sizes = sorted({min(2**i, len(found)) for i in range(1, 8)} - {0})
    if not found:
        raise UserError(f"no feature at {ground.site} supports the pronouns; give more training or another site")
    trials = []
    for size in sizes:
        edit = ablate(ground.site, dictionary, found[:size])
        scaled = Scaled(edit, _meeting_strength(ground, edit))
        trials.append(((scaled, found[:size]), check.judge(scaled, "features", found[:size])))
    return min(trials, key=lambda t: (not t[1].gone, t[1].damage if t[1].gone else abs(t[1].auroc - 0.5)))


def _meeting_strength(ground: _Ground, edit: Intervention) -> float:
    """The strength between 0.5 and 3 at which the AUROC on the prompts is closest to 0.5, to 0.01."""
    change, best = replace(edit, mask=ground.mask)(ground.x) - ground.x, 1.75
    for reach, step in ((1.25, 0.125), (0.12, 0.01)):
        grid = best + torch.arange(-reach, reach + step / 2, step)
        scores = ground.scores(grid.to(change)[:, None, None, None] * change).cpu()
        far = torch.tensor([abs(auroc(row, ground.prompts.female) - 0.5) for row in scores])
        best = float(grid[far.argmin()])
    return round(best, 4)


def choose_features(ground: _Ground, dictionary: Dictionary, config: RemovalConfig) -> list[int]:
    """Features to ablate, by greedy search on the selection prompts.

    A first-order estimate of how much each ablation closes the gap between the classes' mean scores
    makes a shortlist; each step then keeps the feature after which the classes lie closest, measured as
    |difference of means| / pooled standard deviation, until the AUROC is within 0.02 of 0.5.
    """
    codes = dictionary.encode(ground.x) * ground.mask[..., None]
    female = ground.prompts.female.to(codes.device)
    sign = torch.where(female, 1.0 / female.sum(), -1.0 / (~female).sum())
    change = torch.zeros_like(ground.residual)[None].requires_grad_()
    with torch.enable_grad():
        (ground.scores(change)[0] * sign).sum().backward()
    closing = (codes * (change.grad[0] @ dictionary.directions.T)).sum((0, 1))
    candidates = closing.topk(min(config.shortlist, len(closing))).indices.tolist()
    candidates = [j for j in candidates if codes[..., j].any()]

    chosen: list[int] = []
    done = torch.zeros_like(ground.residual)
    apart = _separation(ground.scores(done[None]), female)[0]
    while candidates and len(chosen) < config.max_features:
        steps = torch.stack([-codes[..., j, None] * dictionary.directions[j] for j in candidates])
        scores = ground.scores(done + steps)
        separations = _separation(scores, female)
        best = int(separations.argmin())
        if separations[best] >= apart:
            break
        apart, done = separations[best], done + steps[best]
        chosen.append(candidates.pop(best))
        if abs(auroc(scores[best].cpu(), ground.prompts.female) - 0.5) <= 0.02:
            break
    return chosen


def _separation(scores: Float[Tensor, "trials batch"], female: Bool[Tensor, "batch"]) -> Float[Tensor, "trials"]:
    one, other = scores[:, female], scores[:, ~female]
    return (one.mean(-1) - other.mean(-1)).abs() / ((one.var(-1) + other.var(-1)) / 2).sqrt().clamp_min(1e-9)


def _random_features(
    ground: _Ground, dictionary: Dictionary, chosen: list[int], size: float, config: RemovalConfig
) -> Removal:
    """Mean over draws of ablating as many features of like density, each draw scaled to edit size `size`."""
    codes = dictionary.encode(ground.text_x)[ground.text_mask]
    density = (codes != 0).double().mean(0).cpu()
    runs = []
    for draw in range(config.random_draws):
        generator = generator_for(config.seed, "random features", draw)
        drawn: list[int] = []
        for j in chosen:
            apart = (density.clamp_min(1e-9).log() - density[j].clamp_min(1e-9).log()).abs()
            apart[[*chosen, *drawn]] = torch.inf
            left = int(apart.isfinite().sum())
            if not left:
                raise UserError(f"the dictionary of {ground.site} has too few latents to compare with random ones")
            near = apart.topk(min(10, left), largest=False).indices
            drawn.append(int(near[torch.randint(len(near), (1,), generator=generator)]))
        edit = ablate(ground.site, dictionary, drawn)
        own_size = ground.judge(edit, "unscaled").edit_size
        runs.append(ground.judge(Scaled(edit, size / max(own_size, 1e-9)), "random features"))
    fields = ("auroc", "accuracy", "damage", "edit_size", "strength")
    means = {field: sum(getattr(run, field) for run in runs) / len(runs) for field in fields}
    return Removal(method="random features", site=str(ground.site), **means)


@dataclass(frozen=True, eq=False)
class Scaled:
    """Another intervention's change, multiplied: h + strength * (edit(h) - h)."""

    edit: Intervention
    strength: float
    mask: Bool[Tensor, "batch pos"] | None = None

    @property
    def site(self) -> Site:
        return self.edit.site

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        edit = self.edit if self.mask is None else replace(self.edit, mask=self.mask)
        return h + self.strength * (edit(h) - h)
