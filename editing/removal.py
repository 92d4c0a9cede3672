"""Removing a capability by ablating features, and what the removal costs elsewhere.

Capability: AUROC of logit(she) - logit(he) over balanced prompts whose names and templates were not used
to choose anything; it is gone within 0.05 of 0.5. Damage: KL per token from the unedited model on
held-out text, where that model gives pronouns less than 1%. Every method edits the same site at the
same positions, all content tokens. Beside the features: LEACE and the projection along the difference
of the class means, both fitted on the last tokens of every prompt that is not a test prompt, and random
features of like density, scaled to the same mean edit size.

Two figures say what the AUROC alone would hide: the AUROC within single sentences (an edit can leave
leftovers that cancel only across sentences) and P(she) + P(he), which an edit may simply have destroyed.
Edits are chosen for small differences within sentences as well as over all.

Features are ablated with a strength, x' = x - s * sum_i c_i f_i. At s = 1 they are set to zero, and what
the encoder missed of them stays behind in the error; as an AUROC does not depend on scale, that rest
can still tell the classes apart, and s > 1 pushes against it. The strength at which the classes meet is
read off the selection prompts; the plain ablation, s = 1, is reported beside it, and so are LEACE and the
mean difference with a strength found in the same way.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.erase import fit_leace, mean_difference
from editing.metrics import auroc, kl_divergence
from editing.patch import FeaturePatch, ablate
from editing.tasks.pairs import OwnScore, at_end
from editing.tasks.pronouns import PronounPrompts, Split, own_score, pronoun_ids, pronoun_prompts
from editing.tradeoff import stacked_logits
from sae_core.dictionaries import Dictionary
from sae_core.errors import UserError
from sae_core.models import Intervention, LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site, Stream

GONE = 0.05  # AUROC within this of 0.5
HIDDEN = 0.15  # the same within sentences, where some dozen prompts leave chance a wide berth


@dataclass(frozen=True)
class RemovalConfig:
    """How much to run."""

    selection_prompts: int = 160
    """To choose features and strength, and as many again, with other names, to check the choice."""
    test_prompts: int = 256
    greedy_prompts: int = 96
    """Of the selection prompts, those on which features are tried one by one."""
    shortlist: int = 16
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
    within: float
    """AUROC for somebody who knows the sentence (`PronounPrompts.within`)."""
    pronoun_mass: float
    """Mean P(she) + P(he) at the prompts' ends."""
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

    def rank(self) -> tuple[int, float]:
        """Smaller is better: what is left, over all and within sentences, in steps of 0.15; then the damage.

        Finer differences are noise: the check prompts hold ten names of each class.
        """
        left = abs(self.auroc - 0.5) + self.within - 0.5
        return int(left / 0.15), self.damage


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
        beside = "; ".join(f"{m.method} {m.damage:.4f}" for m in others) or "nothing else removes it at this site"
        cost = f"{least.damage:.4f} nats per token"
        within = "" if least.within <= 0.5 + HIDDEN else f", though within single sentences {least.within:.2f} is left"
        return f"at {self.site} the least damage that removes it is that of {self.best}: {cost} ({beside}){within}"


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
        if not self.counted.any():
            raise UserError("the model expects a pronoun everywhere in this text; damage cannot be measured on it")

    def first(self, n: int) -> "_Ground":
        """The same ground with the first `n` prompts only."""
        fewer = copy.copy(self)
        fewer.prompts, fewer.x = self.prompts.first(n), self.x[:n]
        fewer.residual, fewer.mask = self.residual[:n], self.mask[:n]
        return fewer

    def last_tokens(self) -> Tensor:
        """Activations at the prompts' ends, what erasers are fitted on."""
        return at_end(self.x, self.prompts.end)

    def logits(self, change: Float[Tensor, "trials batch pos d"]) -> Float[Tensor, "trials batch vocab"]:
        """Logits at the prompts' ends when the activation is changed."""
        return stacked_logits(self.model, self.residual, change, self.site.layer, self.prompts.end)

    def scores(self, change: Float[Tensor, "trials batch pos d"]) -> Float[Tensor, "trials batch"]:
        """logit(she) - logit(he) at the prompts' ends when the activation is changed."""
        return self.prompts.score(self.logits(change))

    def told_apart(self, scores: Float[Tensor, "batch"]) -> float:
        """How far the classes are from being alike: |AUROC - 0.5| over all plus the same within sentences."""
        return abs(auroc(scores, self.prompts.female) - 0.5) + self.prompts.within(scores) - 0.5

    def judge(self, edit: Intervention, method: str) -> Removal:
        """Capability left and damage done by one edit."""
        ablated = edit.edit if isinstance(edit, Scaled) else edit
        latents = ablated.latents.tolist() if isinstance(ablated, FeaturePatch) else []
        logits = self.logits((replace(edit, mask=self.mask)(self.x) - self.x)[None])[0].cpu()
        scores, female = self.prompts.score(logits), self.prompts.female
        change = replace(edit, mask=self.text_mask)(self.text_x) - self.text_x
        edited = self.model.unembed(self.model.final(self.text_residual + change, self.site.layer))
        return Removal(
            method=method,
            site=str(self.site),
            auroc=auroc(scores, female),
            within=self.prompts.within(scores),
            pronoun_mass=logits.softmax(-1)[:, [self.prompts.she, self.prompts.he]].sum(-1).mean().item(),
            accuracy=((scores > 0) == female).double().mean().item(),
            damage=kl_divergence(self.text_logits[self.counted], edited[self.counted]).mean().item(),
            edit_size=change.norm(dim=-1)[self.text_mask].mean().item(),
            features=tuple(str(FeatureId(self.site, j)) for j in latents),
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
    features ranks best (`Removal.rank`) on the check prompts and the other half of the text. There the
    features are chosen anew, as many, on selection and check prompts together.
    """
    prompts = {split: _prompts(model, [split], config) for split in Split}
    own, own_auroc = own_score(model, prompts[Split.TEST])
    yield f"pronouns: {own.sentence()}; AUROC {own_auroc:.3f}"
    contexts = contexts[: config.text_contexts]
    if len(contexts) < 2:
        raise UserError("measuring damage needs at least two held-out contexts; give more text")
    choosing_text, test_text = contexts[0::2], contexts[1::2]
    sites = _sites(dictionaries, site)

    edits: dict[Site, Scaled] = {}
    trial: dict[Site, Removal] = {}
    for s in sites:
        yield f"pronouns: choosing features at {s}"
        ground = _Ground(model, s, prompts[Split.SELECTION], choosing_text)
        check = _Ground(model, s, prompts[Split.CHECK], choosing_text)
        found = choose_edit(ground, check, dictionaries[s], config)
        if found is None:
            yield f"pronouns: no feature at {s} supports them"
        else:
            edits[s], trial[s] = found
    if not edits:
        raise UserError("no feature at any site supports the pronouns; give more training or another site")
    best_site = min(edits, key=lambda s: trial[s].rank())

    yield f"pronouns: choosing again at {best_site}, on all but the test prompts"
    everything = _Ground(model, best_site, _prompts(model, [Split.SELECTION, Split.CHECK], config), choosing_text)
    found = choose_features(everything.first(2 * config.greedy_prompts), dictionaries[best_site], config)
    if found:
        edit = ablate(best_site, dictionaries[best_site], found[: len(edits[best_site].edit.latents)])
        edits[best_site] = Scaled(edit, _meeting_strength(everything, edit))

    erasers = _fit_erasers(model, list(edits), config)
    judged: dict[Site, list[Removal]] = {}
    for s, edit in edits.items():
        yield f"pronouns: measuring at {s}"
        test = _Ground(model, s, prompts[Split.TEST], test_text)
        judged[s] = [test.judge(edit, "features"), *(test.judge(eraser, name) for name, eraser in erasers[s].items())]
        if s == best_site:
            judged[s].append(test.judge(edit.edit, "features, plain ablation"))
            for name, eraser in erasers[s].items():
                judged[s].append(test.judge(Scaled(eraser, _meeting_strength(everything, eraser)), f"{name}, tuned"))
            latents = edit.edit.latents.tolist()
            judged[s].append(_random_features(test, dictionaries[s], latents, judged[s][0].edit_size, config))
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


def _sites(dictionaries: dict[Site, Dictionary], site: Site | None) -> list[Site]:
    """The site asked for, or all that can be edited."""
    if site and site not in dictionaries:
        raise UserError(f"no dictionary for {site}; this set has {', '.join(map(str, dictionaries))}")
    sites = [site] if site else [s for s in dictionaries if s.stream in (Stream.RESID_POST, Stream.MLP_OUT)]
    if not sites:
        raise UserError(f"removal needs a resid_post or mlp_out site; this set has {', '.join(map(str, dictionaries))}")
    return sites


def _prompts(model: LanguageModel, splits: Sequence[Split], config: RemovalConfig) -> PronounPrompts:
    """As many prompts of the splits as the configuration says."""
    n = sum(config.test_prompts if split is Split.TEST else config.selection_prompts for split in splits)
    return pronoun_prompts(model, splits, n, seed=config.seed, prepend_bos=config.prepend_bos)


def _fit_erasers(
    model: LanguageModel, sites: Sequence[Site], config: RemovalConfig
) -> dict[Site, dict[str, Intervention]]:
    """LEACE and the mean difference at each site, fitted on the ends of every selection and check prompt there is.

    They estimate means and a covariance; with as few prompts as the search for features uses they would
    be much worse than they can be.
    """
    whole = replace(config, selection_prompts=10**6)
    prompts = _prompts(model, [Split.SELECTION, Split.CHECK], whole)
    x: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for rows in torch.arange(len(prompts)).split(256):
        for site, h in model.record(prompts.tokens[rows], sites).items():
            x[site].append(at_end(h, prompts.end[rows]))
    labels, fits = prompts.female.long(), {"LEACE": fit_leace, "mean difference": mean_difference}
    return {
        site: {name: fit(site, torch.cat(parts), labels) for name, fit in fits.items()} for site, parts in x.items()
    }


def choose_edit(
    ground: _Ground, check: _Ground, dictionary: Dictionary, config: RemovalConfig
) -> tuple["Scaled", Removal] | None:
    """The edit that ranks best on the `check` prompts, and its figures there; None if no feature helps.

    Tried are the first 1, 2, 4, 8, ... of the features that `choose_features` finds on the selection
    prompts, each with the strength at which the classes meet there.
    """
    found = choose_features(ground.first(config.greedy_prompts), dictionary, config)
    trials = []
    for size in sorted({min(2**i, len(found)) for i in range(8)} - {0}):
        edit = ablate(ground.site, dictionary, found[:size])
        scaled = Scaled(edit, _meeting_strength(ground, edit))
        trials.append((scaled, check.judge(scaled, "features")))
    return min(trials, key=lambda trial: trial[1].rank(), default=None)


def _meeting_strength(ground: _Ground, edit: Intervention) -> float:
    """The strength between 0.5 and 3 at which the classes are told apart least, to 0.05."""
    change, best = replace(edit, mask=ground.mask)(ground.x) - ground.x, 1.75
    for reach, step in ((1.25, 0.25), (0.2, 0.05)):
        grid = (best + torch.arange(-reach, reach + step / 2, step)).clamp(0.5, 3.0)
        scores = ground.scores(grid.to(change)[:, None, None, None] * change).cpu()
        best = float(grid[torch.tensor([ground.told_apart(row) for row in scores]).argmin()])
    return round(best, 4)


def choose_features(ground: _Ground, dictionary: Dictionary, config: RemovalConfig) -> list[int]:
    """Features to ablate, by greedy search on the selection prompts.

    A first-order estimate of how much each ablation closes the gap between the classes' mean scores
    makes a shortlist; each step then keeps the feature after which the classes lie closest, measured as
    |difference of means| / pooled standard deviation, averaged over the sentences.
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
    apart = _separation(ground.scores(done[None]), ground.prompts)[0]
    while candidates and len(chosen) < config.max_features:
        steps = torch.stack([-codes[..., j, None] * dictionary.directions[j] for j in candidates])
        scores = ground.scores(done + steps)
        separations = _separation(scores, ground.prompts)
        best = int(separations.argmin())
        if separations[best] >= apart:
            break
        apart, done = separations[best], done + steps[best]
        chosen.append(candidates.pop(best))
    return chosen


def _separation(scores: Float[Tensor, "trials batch"], prompts: PronounPrompts) -> Float[Tensor, "trials"]:
    """Mean over sentences of |difference of the classes' means|, in pooled standard deviations of all scores."""
    female, sentence = prompts.female.to(scores.device), prompts.sentence.to(scores.device)
    spread = ((scores[:, female].var(-1) + scores[:, ~female].var(-1)) / 2).sqrt().clamp_min(1e-9)
    gaps = []
    for one in sentence.unique():
        she, he = female & (sentence == one), ~female & (sentence == one)
        if she.any() and he.any():
            gaps.append((scores[:, she].mean(-1) - scores[:, he].mean(-1)).abs())
    return torch.stack(gaps).mean(0) / spread


def _random_features(
    ground: _Ground, dictionary: Dictionary, chosen: list[int], size: float, config: RemovalConfig
) -> Removal:
    """Mean over draws of ablating as many features of like density, each draw scaled to edit size `size`."""
    codes = torch.cat(
        [dictionary.encode(x)[m] for x, m in ((ground.text_x, ground.text_mask), (ground.x, ground.mask))]
    )
    density = (codes != 0).double().mean(0).cpu()
    runs = []
    for draw in range(config.random_draws):
        generator = generator_for(config.seed, "random features", draw)
        drawn: list[int] = []
        for j in chosen:
            apart = (density.clamp_min(1e-9).log() - density[j].clamp_min(1e-9).log()).abs()
            apart[[*chosen, *drawn]] = torch.inf
            apart[density == 0] = torch.inf
            left = int(apart.isfinite().sum())
            if not left:
                raise UserError(f"the dictionary of {ground.site} has too few latents to compare with random ones")
            near = apart.topk(min(10, left), largest=False).indices
            drawn.append(int(near[torch.randint(len(near), (1,), generator=generator)]))
        edit = ablate(ground.site, dictionary, drawn)
        own_size = ground.judge(edit, "unscaled").edit_size
        runs.append(ground.judge(Scaled(edit, size / max(own_size, 1e-9)), "random features"))
    fields = ("auroc", "within", "pronoun_mass", "accuracy", "damage", "edit_size", "strength")
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
